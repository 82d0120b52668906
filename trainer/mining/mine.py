"""Mine a source: embed, search, choose, write; continued where an earlier call was interrupted."""

import hashlib
import json
import logging
import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache
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
from trainer.mining.approximate import build_search, recall_of
from trainer.mining.choose import MiningSettings
from trainer.mining.limits import EXACT_UP_TO, check_index
from trainer.mining.scores import score_pairs
from trainer.mining.search import Nearest, nearest_passages
from trainer.mining.selected import (
    Candidates,
    Lines,
    Scored,
    Selection,
    Selector,
    candidates_of,
    scored_pairs,
)
from trainer.mining.tally import Tally
from trainer.mining.teacher import Embed, Score
from trainer.mining.texts import Passages, Queries, blocks, passages_like, read_texts
from trainer.mining.vectors import VectorStore

logger = logging.getLogger(__name__)

QUERY_BLOCK = 8192
"""Queries that are searched at a time: for each block all vectors of passages are read once."""
QUERY_UNIT = 512
"""Queries of such a block that one rank embeds together."""
SCORE_BLOCK = 1024
"""Queries whose pairs are scored by a teacher at a time; divides `QUERY_BLOCK`."""
NUM_EXAMPLES = 8
"""Queries that are shown with their negatives."""

RECALL_QUERIES = 100
"""Queries that are also searched exactly where an index is used."""

Search = Callable[[torch.Tensor, NDArray[np.int64], int], Nearest]
"""From vectors of queries [b, D], pairs whose cosines are wanted [m, 2], and k."""
Progress = Callable[[str, int, int], None]
"""Gets what is counted, how many are done, and how many there are."""


@dataclass(frozen=True, kw_only=True)
class Texts:
    """What a source holds."""

    passages: Passages
    queries: Queries
    alike: dict[int, int]
    """The passage that is a query's own text, by query, where there is one."""


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
    exact_up_to: int = EXACT_UP_TO
    """Passages; more are searched by an index, which may miss some of the nearest."""
    teacher: Score | None = None
    """Scores the pairs of the output, and what its margin may leave out; None: there are none."""
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
            RecipeError: the corpus needs an index, and there is no library for it.
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
        on_all_ranks(lambda: check_index(len(passages), self.exact_up_to), self.ranks)
        alike = passages_like(passages, queries)
        texts = Texts(passages=passages, queries=queries, alike=alike)
        store = self._store(passages)
        own = store.own_blocks(self.ranks)
        for number, block in enumerate(own):
            store.make(block)
            self.progress("passage blocks", number + 1, len(own))
        on_all_ranks(lambda: None, self.ranks)
        search, how = self._way(store, queries)
        self._each("query blocks", len(queries), QUERY_BLOCK, self._found_file,
                   lambda number, members: self._search(number, members, search, queries)
                   )  # fmt: skip
        if self.teacher is not None:
            self._each("blocks of scores", len(queries), SCORE_BLOCK, self._scored_file,
                       lambda number, members: self._score(number, members, texts)
                       )  # fmt: skip
        record = on_first_rank(lambda: self._finish(texts, how), self.ranks)
        shutil.rmtree(self.work, ignore_errors=True)
        return record

    def _each(
        self, what: str, total: int, size: int, file: Callable[[int], Path],
        work: Callable[[int, range], None],
    ) -> None:  # fmt: skip
        """Do a piece of work for each block of queries whose file is not there."""
        members = [*blocks(total, size)]
        done = on_first_rank(lambda: [file(i).is_file() for i in range(len(members))], self.ranks)
        for number, one in enumerate(members):
            if not done[number]:
                work(number, one)
            self.progress(what, number + 1, len(members))

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
        _write_text(file, head)

    def _identity(self) -> dict[str, Any]:
        """What decides the result."""
        settings = self.settings.recorded()
        source = self.source.fingerprint
        return {
            **self.provenance,
            "source": source,
            "settings": settings,
            "exact_up_to": self.exact_up_to,
        }

    def _store(self, passages: Passages) -> VectorStore:
        def embed(texts: Sequence[str]) -> NDArray[np.float32]:
            vectors: NDArray[np.float32] = self.embed(texts, "passage").float().cpu().numpy()
            return vectors

        return VectorStore(
            folder=self.work / "passages", num_texts=len(passages), text=passages.text, embed=embed
        )

    def _way(self, store: VectorStore, queries: Queries) -> tuple[Search, dict[str, Any]]:
        """How passages are searched, and what the record says of it."""

        def exact(vectors: torch.Tensor, pairs: NDArray[np.int64], k: int) -> Nearest:
            return nearest_passages(vectors, store, pairs, k, self.ranks)

        if store.num_texts <= self.exact_up_to:
            return exact, {"exact": True}
        # made only if something is left to search
        built = cache(lambda: build_search(store, self.work / "index.npy", self.ranks))

        def search(vectors: torch.Tensor, pairs: NDArray[np.int64], k: int) -> Nearest:
            return built().nearest(vectors, pairs, k)

        file = self.work / "index.json"
        kept = on_first_rank(lambda: json.loads(file.read_text()) if file.is_file() else None,
                             self.ranks)  # fmt: skip
        if kept is None:
            recall = self._recall(search, exact, queries)
            kept = {"exact": False, **built().recorded(), **recall}
            text = json.dumps(kept)
            on_first_rank(lambda: _write_text(file, text), self.ranks)
        return search, kept

    def _recall(self, search: Search, exact: Search, queries: Queries) -> dict[str, Any]:
        """How many of the truly nearest passages of some queries a search finds."""
        count = min(len(queries), RECALL_QUERIES)
        members = np.linspace(0, len(queries) - 1, count).astype(int).tolist()
        vectors, none = self._query_vectors(members, queries), np.zeros((0, 2), np.int64)
        depth = self.settings.considered
        recall = recall_of(search(vectors, none, depth), exact(vectors, none, depth))
        return {"recall": recall, "recall_queries": count, "recall_depth": depth}

    def _search(self, number: int, members: range, search: Search, queries: Queries) -> None:
        """Search a block of queries and keep what was found, on the first rank."""
        vectors = self._query_vectors(members, queries)
        start, stop = queries.starts[members.start], queries.starts[members.stop]
        counts = np.diff(queries.starts[members.start : members.stop + 1])
        asking = np.repeat(np.arange(len(members)), counts)
        pairs = np.stack([asking, queries.positives[start:stop]], axis=1)
        # sentence-transformers searches as many, so that the same filters leave the same
        depth = self.settings.considered + 2 * queries.most_positives
        found = search(vectors, pairs, depth)

        self._keep(self._found_file(number), passages=found.passages, scores=found.scores,
                   positives=found.positives)  # fmt: skip

    def _score(self, number: int, members: range, texts: Texts) -> None:
        """Let the teacher score the pairs of some queries and keep the scores."""
        assert self.teacher is not None
        pairs = on_first_rank(lambda: self._pairs(members, texts), self.ranks)
        scored = score_pairs(
            pairs, lambda query: self._query(texts.queries, query), texts.passages, self.teacher,
            self.ranks,
        )  # fmt: skip
        self._keep(self._scored_file(number), pairs=scored.pairs, scores=scored.scores)

    def _pairs(self, members: range, texts: Texts) -> NDArray[np.int64]:
        """Queries and the passages of each that the teacher scores [m, 2]."""
        keys = texts.queries.keys
        asked = [
            (one.query, scored_pairs(one, int(keys[one.query]), self.settings))
            for one in self._candidates(members, texts)
        ]
        return np.concatenate(
            [np.stack([np.full(len(found), query), found], axis=1) for query, found in asked]
        )

    def _candidates(self, members: range, texts: Texts) -> Iterator[Candidates]:
        """What was found for some queries of one block of those that were searched."""
        number = members.start // QUERY_BLOCK
        return candidates_of(
            Nearest(**_loaded(self._found_file(number))), number * QUERY_BLOCK, members,
            texts.queries, texts.alike,
        )  # fmt: skip

    def _keep(self, file: Path, **arrays: NDArray[Any]) -> None:
        """Write arrays on the first rank; the file has its name when it is whole."""

        def write() -> None:
            unfinished = _unfinished(file)
            with unfinished.open("wb") as stream:
                np.savez(stream, **arrays)  # type: ignore[arg-type]
                stream.flush()
                os.fsync(stream.fileno())
            unfinished.rename(file)

        on_first_rank(write, self.ranks)

    def _query_vectors(self, members: Sequence[int], queries: Queries) -> torch.Tensor:
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

    def _scored_file(self, number: int) -> Path:
        return self.work / f"scored-{number:06}.npz"

    def _finish(self, texts: Texts, how: dict[str, Any]) -> dict[str, Any]:
        """Choose, and write rows and record; the rows get their name last."""
        tally = Tally()
        lines = Lines(
            source=self.source,
            passages=texts.passages,
            queries=texts.queries,
            selection=self._selection(texts, tally),
        )
        unfinished = self.work / "rows.jsonl"
        examples: list[dict[str, Any]] = []
        with unfinished.open("w", encoding="utf-8") as stream:
            for row in range(len(self.source)):
                line = lines.line(row)
                stream.write(json.dumps(line, ensure_ascii=False) + "\n")
                if len(examples) < NUM_EXAMPLES and row * NUM_EXAMPLES >= len(examples) * len(
                    self.source
                ):
                    examples.append(line)
            stream.flush()
            os.fsync(stream.fileno())
        record = {
            **self._identity(),
            "passages": len(texts.passages),
            "queries": len(texts.queries),
            "rows": len(self.source),
            "search": how,
            **tally.recorded(),
            "examples": examples,
        }
        text = json.dumps(record, indent=1, ensure_ascii=False)
        self.record_file.write_text(text, encoding="utf-8")
        unfinished.rename(self.output)
        return record

    def _selection(self, texts: Texts, tally: Tally) -> Selection:
        """The negatives of all queries."""
        queries, is_scored = texts.queries, self.teacher is not None
        selection = Selection.empty(queries, self.settings.num_negatives, is_scored=is_scored)
        selector = Selector(
            queries=queries, settings=self.settings, selection=selection, tally=tally
        )
        for number, members in enumerate(blocks(len(queries), SCORE_BLOCK)):
            scored = Scored(**_loaded(self._scored_file(number))) if is_scored else None
            for one in self._candidates(members, texts):
                selector.add(one, None if scored is None else scored.of(one.query))
        return selection


def _unfinished(file: Path) -> Path:
    """Where a process writes a file until it is whole."""
    return file.with_name(f".{file.name}-{os.getpid()}")


def _write_text(file: Path, text: str) -> None:
    """Write a file that has its name when it is whole."""
    unfinished = _unfinished(file)
    unfinished.write_text(text, encoding="utf-8")
    unfinished.rename(file)


def _loaded(file: Path) -> dict[str, NDArray[Any]]:
    """The arrays of a file."""
    with np.load(file) as arrays:
        return {name: arrays[name] for name in arrays.files}


def model_identity(path: str) -> str:
    """Differs when a file of a model's folder does; of a hub id its name."""
    folder = Path(path)
    digest = hashlib.sha256(path.encode())
    for file in sorted(found for found in folder.rglob("*") if found.is_file()):
        state = file.stat()
        digest.update(f"{file.name} {state.st_size} {state.st_mtime_ns}\n".encode())
    return digest.hexdigest()
