"""Mine a source: embed, search, choose, write; continued where an earlier call was interrupted."""

import hashlib
import json
import logging
import os
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from trainer.data.sources import Source
from trainer.distributed.agree import on_all_ranks, on_first_rank
from trainer.distributed.group import Ranks
from trainer.distributed.rows import gather_rows
from trainer.errors import DataError
from trainer.mining.choose import REASONS, Chosen, MiningSettings, choose
from trainer.mining.search import NO_PASSAGE, nearest_passages
from trainer.mining.texts import Passages, Queries, blocks, passages_like, read_texts
from trainer.mining.vectors import VectorStore

logger = logging.getLogger(__name__)

QUERY_BLOCK = 8192
"""Queries that are searched at a time: for each block all vectors of passages are read once."""
QUERY_UNIT = 512
"""Queries of such a block that one rank embeds together."""
BINS = np.linspace(-1, 1, 81)
"""Edges of the histograms of cosines."""
NUM_EXAMPLES = 8
"""Queries that are shown with their negatives."""

Embed = Callable[[Sequence[str], str], Any]
"""From texts and their side (`query`, `passage`) to a tensor of vectors [n, D], norm 1."""
Progress = Callable[[str, int, int], None]
"""Gets what is counted, how many are done, and how many there are."""


@dataclass(kw_only=True)
class Tally:
    """Counts for the record of a mining."""

    positives: NDArray[np.int64] = field(default_factory=lambda: np.zeros(len(BINS) - 1, np.int64))
    """Histogram of the cosines of queries with what answers them."""
    negatives: NDArray[np.int64] = field(default_factory=lambda: np.zeros(len(BINS) - 1, np.int64))
    """The same of chosen negatives."""
    left_out: dict[str, int] = field(default_factory=lambda: dict.fromkeys(REASONS, 0))
    """Candidates by reason."""
    above_positive: int = 0
    """Chosen negatives that are nearer than the query's least similar positive: likely false."""
    without: int = 0
    """Queries for which no negative was left."""
    fewer: int = 0
    """Queries with some, but fewer than asked for."""

    def add(self, chosen: Chosen, positives: NDArray[np.float32], wanted: int) -> None:
        """Count one query."""
        count = len(chosen.passages)
        self.positives += np.histogram(np.clip(positives, -1, 1), BINS)[0]
        self.negatives += np.histogram(np.clip(chosen.scores, -1, 1), BINS)[0]
        for reason, number in chosen.left_out.items():
            self.left_out[reason] += number
        self.above_positive += int((chosen.scores > positives.min()).sum())
        self.without += count == 0
        self.fewer += 0 < count < wanted

    def recorded(self) -> dict[str, Any]:
        """As JSON has it."""
        return {
            "bins": [round(float(edge), 3) for edge in BINS],
            "positives": self.positives.tolist(),
            "negatives": self.negatives.tolist(),
            "left_out": self.left_out,
            "above_positive": self.above_positive,
            "queries_without": self.without,
            "queries_with_fewer": self.fewer,
        }


@dataclass(frozen=True, kw_only=True)
class Mining:
    """One mining; methods are collective."""

    source: Source
    embed: Embed
    settings: MiningSettings
    output: Path
    """File of rows; its record stands beside it."""
    provenance: dict[str, Any]
    """Model and source, as the record and the identity of the work have them."""
    ranks: Ranks
    progress: Progress = lambda what, done, total: None

    @property
    def work(self) -> Path:
        """Folder of vectors and of what was found, beside the output until that is whole."""
        return self.output.with_name(f".mine-{self.output.name}")

    @property
    def record_file(self) -> Path:
        """What was done, beside the output."""
        return self.output.with_name(f"{self.output.name}.json")

    def run(self) -> dict[str, Any]:
        """Write the output and its record; gives the record.

        Raises:
            DataError: the output is there, the work folder is of another mining, or the disk
                refuses, after which the next call continues.
        """
        try:
            return self._run()
        except OSError as error:
            raise DataError(
                f"{error.filename or self.work}: {error.strerror or error}; expected to read and "
                "write there. Make room, and run the same command again: it goes on."
            ) from error

    def _run(self) -> dict[str, Any]:
        on_all_ranks(self.begin, self.ranks)
        passages, queries = read_texts(self.source)
        store = self._store(passages)
        own = store.own_blocks(self.ranks)
        for number, block in enumerate(own):
            store.make(block)
            self.progress("passage blocks", number + 1, len(own))
        on_all_ranks(lambda: None, self.ranks)
        found = [*blocks(len(queries), QUERY_BLOCK)]
        done = on_first_rank(lambda: [self._found_file(i).is_file() for i in range(len(found))],
                             self.ranks)  # fmt: skip
        for number, members in enumerate(found):
            if not done[number]:
                self._search(number, members, store, queries)
            self.progress("query blocks", number + 1, len(found))
        record = on_first_rank(lambda: self._finish(passages, queries), self.ranks)
        shutil.rmtree(self.work, ignore_errors=True)
        return record

    def begin(self) -> None:
        """Make the work folder, or see that it is of this mining; not collective.

        Raises:
            DataError: the output is there, or the folder is of another mining.
        """
        if self.output.exists():
            raise DataError(
                f"{self.output}: file = exists; expected a new one. Give another --output, or "
                "remove it."
            )
        head = json.dumps(self._identity(), sort_keys=True)
        file = self.work / "mining.json"
        if file.is_file() and file.read_text(encoding="utf-8") != head:
            raise DataError(
                f"{file}: mining = of another model, source or settings; expected those of this "
                f"one. Remove {self.work}, or give another --output."
            )
        self.work.mkdir(parents=True, exist_ok=True)
        partial = file.with_name(f".head-{os.getpid()}")
        partial.write_text(head, encoding="utf-8")
        partial.rename(file)

    def _identity(self) -> dict[str, Any]:
        """What decides the result."""
        settings = self.settings.recorded()
        return {**self.provenance, "source": self.source.fingerprint, "settings": settings}

    def _store(self, passages: Passages) -> VectorStore:
        def embed(texts: Sequence[str]) -> NDArray[np.float32]:
            vectors: NDArray[np.float32] = self.embed(texts, "passage").float().cpu().numpy()
            return vectors

        return VectorStore(
            folder=self.work / "passages", num_texts=len(passages), text=passages.text, embed=embed
        )

    def _search(self, number: int, members: range, store: VectorStore, queries: Queries) -> None:
        """Search a block of queries and keep what was found, on the first rank."""
        vectors = self._query_vectors(members, queries)
        start, stop = queries.starts[members.start], queries.starts[members.stop]
        counts = np.diff(queries.starts[members.start : members.stop + 1])
        asking = np.repeat(np.arange(len(members)), counts)
        pairs = np.stack([asking, queries.positives[start:stop]], axis=1)
        # sentence-transformers searches as many, so that the same filters leave the same
        depth = self.settings.considered + 2 * queries.most_positives
        found = nearest_passages(vectors, store, pairs, depth, self.ranks)

        def keep() -> None:
            file = self._found_file(number)
            partial = file.with_name(f".found-{os.getpid()}.npz")
            with partial.open("wb") as stream:
                np.savez(stream, passages=found.passages, scores=found.scores,
                         positives=found.positives)  # fmt: skip
                stream.flush()
                os.fsync(stream.fileno())
            partial.rename(file)

        on_first_rank(keep, self.ranks)

    def _query_vectors(self, members: range, queries: Queries) -> torch.Tensor:
        """Vectors of some queries on all ranks [b, D], each unit embedded by one of them."""
        units = [*blocks(len(members), QUERY_UNIT)]
        mine = units[self.ranks.rank :: self.ranks.world_size]
        parts = [self.embed([self._query(queries, members[i]) for i in unit], "query").float()
                 for unit in mine]  # fmt: skip
        dealt = [units[rank :: self.ranks.world_size] for rank in range(self.ranks.world_size)]
        size = on_all_ranks(lambda: parts[0].shape[1] if parts else 0, self.ranks)
        local = torch.cat(parts) if parts else torch.zeros(0, max(size), device=self.ranks.device)
        gathered = gather_rows(
            local.to(self.ranks.device), counts=[sum(map(len, own)) for own in dealt]
        )
        order = [i for own in dealt for unit in own for i in unit]
        return gathered[torch.argsort(torch.tensor(order, device=gathered.device))]

    def _query(self, queries: Queries, number: int) -> str:
        return str(self.source.record(int(queries.rows[number])).query)

    def _found_file(self, number: int) -> Path:
        return self.work / f"found-{number:06}.npz"

    def _finish(self, passages: Passages, queries: Queries) -> dict[str, Any]:
        """Choose, and write rows and record; the rows get their name last."""
        tally = Tally()
        negatives, scores = self._chosen(queries, passages, tally)
        partial = self.work / "rows.jsonl"
        examples: list[dict[str, Any]] = []
        with partial.open("w", encoding="utf-8") as stream:
            for row in range(len(self.source)):
                query = int(queries.query_of_row[row])
                line = self._line(row, negatives[query], scores[query], passages)
                stream.write(json.dumps(line, ensure_ascii=False) + "\n")
                if len(examples) < NUM_EXAMPLES and row * NUM_EXAMPLES >= len(examples) * len(
                    self.source
                ):
                    examples.append(line)
            stream.flush()
            os.fsync(stream.fileno())
        record = {
            **self._identity(),
            "passages": len(passages),
            "queries": len(queries),
            "rows": len(self.source),
            **tally.recorded(),
            "examples": examples,
        }
        text = json.dumps(record, indent=1, ensure_ascii=False)
        self.record_file.write_text(text, encoding="utf-8")
        partial.rename(self.output)
        return record

    def _chosen(
        self, queries: Queries, passages: Passages, tally: Tally
    ) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
        """The negatives of each query, NO_PASSAGE where there are fewer, and their cosines."""
        shape = (len(queries), self.settings.num_negatives)
        negatives, scores = np.full(shape, NO_PASSAGE, np.int64), np.zeros(shape, np.float32)
        alike = passages_like(passages, queries)
        for number, members in enumerate(blocks(len(queries), QUERY_BLOCK)):
            found = np.load(self._found_file(number))
            arrays = {name: found[name] for name in ("passages", "scores", "positives")}
            base = queries.starts[members.start]
            for place, query in enumerate(members):
                positives = queries.positives_of(query)
                start = queries.starts[query] - base
                cosines = arrays["positives"][start : start + len(positives)]
                is_there = arrays["passages"][place] != NO_PASSAGE
                one = choose(
                    arrays["passages"][place][is_there],
                    arrays["scores"][place][is_there],
                    known={*positives.tolist(), *([alike[query]] if query in alike else [])},
                    positive=float(cosines.min()),
                    settings=self.settings,
                    salt=int(queries.keys[query]),
                )
                tally.add(one, cosines, self.settings.num_negatives)
                negatives[query, : len(one.passages)] = one.passages
                scores[query, : len(one.scores)] = one.scores
        return negatives, scores

    def _line(
        self,
        row: int,
        negatives: NDArray[np.int64],
        scores: NDArray[np.float32],
        passages: Passages,
    ) -> dict[str, Any]:
        """A row of the output, in the project's own format."""
        record = self.source.record(row)
        numbers = [number for number in negatives.tolist() if number != NO_PASSAGE]
        line = {
            "query": record.query,
            "positives": list(record.positives),
            "negatives": [passages.text(number) for number in numbers],
            "mined_scores": [round(float(score), 6) for score in scores[: len(numbers)]],
        }
        if passages.id_at is not None:
            line["negative_ids"] = [passages.identifier(number) for number in numbers]
        return line


def model_identity(path: str) -> str:
    """Differs when a file of a model's folder does; of a hub id its name."""
    folder = Path(path)
    digest = hashlib.sha256(path.encode())
    for file in sorted(found for found in folder.rglob("*") if found.is_file()):
        state = file.stat()
        digest.update(f"{file.name} {state.st_size} {state.st_mtime_ns}\n".encode())
    return digest.hexdigest()
