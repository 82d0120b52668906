"""Mine a source during a run, by a model that all ranks must run together; methods are collective.

What is chosen is what `trainer.mining.mine` chooses with the same vectors. It is kept as places in
the source, for `trainer.data.mined`, and begins anew after an interruption: the weights are gone.
"""

import os
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from trainer.data.mined import NO_PLACE, places_in_rows
from trainer.data.sources import Source
from trainer.distributed.agree import on_all_ranks
from trainer.distributed.group import Ranks
from trainer.mining.choose import Chosen, MiningSettings, choose
from trainer.mining.mine import QUERY_BLOCK, Progress
from trainer.mining.search import NO_PASSAGE, Nearest, nearest_passages
from trainer.mining.tally import Tally
from trainer.mining.teacher import Embed
from trainer.mining.texts import Ints, Passages, Queries, blocks, passages_like, read_texts
from trainer.mining.vectors import BLOCK_TEXTS, VectorStore


@dataclass(kw_only=True)
class Found:
    """What a mining found, in numbers."""

    tally: Tally = field(default_factory=Tally)
    """Of the queries."""
    enough: int = 0
    """Queries with as many negatives as asked for."""
    positive_sum: float = 0.0
    """Cosines of queries with their least similar positives."""
    negative_sum: float = 0.0
    """Cosines of negatives."""
    num_negatives: int = 0
    """All of them."""

    def add(self, chosen: Chosen, positives: NDArray[np.float32], wanted: int) -> None:
        """Count one query."""
        self.tally.add(chosen, positives, wanted)
        self.enough += len(chosen.passages) == wanted
        self.positive_sum += float(positives.min())
        self.negative_sum += float(chosen.scores.astype(np.float64).sum())
        self.num_negatives += len(chosen.passages)

    def recorded(self, num_queries: int) -> dict[str, Any]:
        """As JSON has it; a mean is null where there is nothing."""
        tally = self.tally
        return {
            "queries": num_queries,
            "queries_enough": self.enough,
            "queries_fewer": tally.fewer,
            "queries_without": tally.without,
            "positive_mean": self.positive_sum / num_queries if num_queries else None,
            "negative_mean": self.negative_sum / self.num_negatives if self.num_negatives else None,
            "above_positive": tally.above_positive,
            "left_out": tally.left_out,
        }


@dataclass(frozen=True, kw_only=True)
class SourceMining:
    """One mining of one source."""

    source: Source
    """Of retrieval, opened."""
    embed: Embed
    """Gets the same texts on all ranks and gives all vectors on all of them. Collective: yes."""
    settings: MiningSettings
    """How negatives are chosen."""
    rows: Ints
    """Rows that get negatives, distinct, ascending [n]."""
    work: Path
    """Folder for vectors and for the places while they are not whole; it is not there yet."""
    ranks: Ranks
    """This process."""
    is_keeper: bool
    """Whether this rank writes the places, as one does on each disk."""
    goes_on: Callable[[], bool] = lambda: True
    """Asked again and again; false ends the mining. Collective: yes."""
    progress: Progress = lambda what, done, total: None
    """See there."""
    block_texts: int = BLOCK_TEXTS
    """Passages whose vectors are on the device at a time."""
    query_block: int = QUERY_BLOCK
    """Queries that are searched at a time."""

    @property
    def places(self) -> Path:
        """The file of places, once `run` has ended, on keepers."""
        return self.work / "places.npy"

    def run(self) -> dict[str, Any] | None:
        """Write the places; gives numbers for people, those of queries on keepers, None if ended.

        Raises:
            DataError: there are no two passages, or a file changed since it was checked.
            CheckpointError: the disk refuses.
        """
        passages, queries = read_texts(self.source, owner=f"data.sources.{self.source.name}")
        asked = np.unique(queries.query_of_row[self.rows])
        store = self._store(passages)
        for block in range(store.num_blocks):
            if not self.goes_on():
                return None
            self._embed(block, store)
            self.progress("passages", store.texts_of(block).stop, len(passages))
        on_all_ranks(self._begin_places, self.ranks)
        alike, found = passages_like(passages, queries), Found()
        rows = _RowsOfQueries.of(queries.query_of_row[self.rows], self.rows)
        for members in blocks(len(asked), self.query_block):
            if not self.goes_on():
                return None
            numbers = asked[members.start : members.stop]
            nearest = self._search(numbers, store, queries)

            def keep(numbers: Ints = numbers, nearest: Nearest = nearest) -> None:
                if self.is_keeper:
                    chosen = self._choose(numbers, nearest, queries, alike, found)
                    self._write(rows, numbers, _places(chosen, passages))

            on_all_ranks(keep, self.ranks)
            self.progress("queries", members.stop, len(asked))
        return {"passages": len(passages), "rows": len(self.rows), **found.recorded(len(asked))}

    def _store(self, passages: Passages) -> VectorStore:
        def embed(texts: Any) -> NDArray[np.float32]:
            vectors: NDArray[np.float32] = self.embed(texts, "passage").float().cpu().numpy()
            return vectors

        return VectorStore(
            folder=self.work / "passages",
            num_texts=len(passages),
            text=passages.text,
            embed=embed,
            block_texts=self.block_texts,
            outlives=False,
        )

    def _embed(self, block: int, store: VectorStore) -> None:
        """Embed a block on all ranks, for the one that searches it."""
        vectors = store.embed([store.text(number) for number in store.texts_of(block)])
        own = block in store.own_blocks(self.ranks)
        on_all_ranks(lambda: store.keep(block, vectors) if own else None, self.ranks)

    def _search(self, numbers: Ints, store: VectorStore, queries: Queries) -> Nearest:
        """The nearest passages of some queries."""
        texts = [str(self.source.record(int(row)).query) for row in queries.rows[numbers]]
        vectors = self.embed(texts, "query").float()
        answers = [queries.positives_of(int(number)) for number in numbers]
        asking = np.repeat(np.arange(len(numbers)), [len(one) for one in answers])
        pairs = np.stack([asking, np.concatenate(answers)], axis=1)
        # as deep as `trainer.mining.mine`, so that the same filters leave the same
        depth = self.settings.considered + 2 * queries.most_positives
        return nearest_passages(vectors, store, pairs, depth, self.ranks)

    def _choose(
        self,
        numbers: Ints,
        nearest: Nearest,
        queries: Queries,
        alike: dict[int, int],
        found: Found,
    ) -> NDArray[np.int64]:
        """Passages of some queries, best first, then NO_PASSAGE [b, K]."""
        wanted, start = self.settings.num_negatives, 0
        chosen = np.full((len(numbers), wanted), NO_PASSAGE, np.int64)
        for place, query in enumerate(numbers.tolist()):
            positives = queries.positives_of(query)
            cosines = nearest.positives[start : start + len(positives)]
            start += len(positives)
            is_there = nearest.passages[place] != NO_PASSAGE
            one = choose(
                nearest.passages[place][is_there],
                nearest.scores[place][is_there],
                known={*positives.tolist(), *([alike[query]] if query in alike else [])},
                positive=float(cosines.min()),
                settings=self.settings,
                salt=int(queries.keys[query]),
            )
            found.add(one, cosines, wanted)
            chosen[place, : len(one.passages)] = one.passages
        return chosen

    def _begin_places(self) -> None:
        """Make the file of places, none of which is known yet."""
        if not self.is_keeper:
            return
        self.work.mkdir(parents=True, exist_ok=True)
        shape = (len(self.source), self.settings.num_negatives)
        file = np.lib.format.open_memmap(self.places, mode="w+", dtype=np.int64, shape=shape)
        with self.places.open("r+b") as stream:
            # a disk that fills up while it is written as memory would end the process
            os.posix_fallocate(stream.fileno(), 0, self.places.stat().st_size)
        file[:] = NO_PLACE

    def _write(self, rows: "_RowsOfQueries", numbers: Ints, places_bK: Ints) -> None:
        """Give the rows of some queries their places."""
        file = np.lib.format.open_memmap(self.places, mode="r+")
        found, counts = rows.of_queries(numbers)
        file[found] = np.repeat(places_bK, counts, axis=0)


def _places(passages_bK: Ints, passages: Passages) -> Ints:
    """Places in the source of chosen passages [b, K], NO_PLACE for NO_PASSAGE."""
    is_there = passages_bK != NO_PASSAGE
    places = np.full(passages_bK.shape, NO_PLACE, np.int64)
    found = passages.places[passages_bK[is_there]]
    if passages.row_starts is not None:
        rows = np.searchsorted(passages.row_starts, found, side="right") - 1
        found = places_in_rows(rows, found - passages.row_starts[rows])
    places[is_there] = found
    return places


@dataclass(frozen=True)
class _RowsOfQueries:
    """Rows by the query that they ask."""

    queries: Ints
    """Queries of the rows, ascending [n]."""
    rows: Ints
    """Rows in that order [n]."""

    @classmethod
    def of(cls, query_of_row: Ints, rows: Ints) -> "_RowsOfQueries":
        """From the query of each row [n] and the rows [n]."""
        order = np.argsort(query_of_row, kind="stable")
        return cls(query_of_row[order], rows[order])

    def of_queries(self, numbers: Ints) -> tuple[Ints, Ints]:
        """The rows of consecutive queries, one query after another, and how many each has."""
        starts = np.searchsorted(self.queries, numbers)
        stops = np.searchsorted(self.queries, numbers, side="right")
        return self.rows[starts[0] : stops[-1]], stops - starts
