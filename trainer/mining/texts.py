"""What is searched and what asks: distinct passages and queries of a source, texts left on disk.

Texts are known by 64 bits each. Letters: n passages, m places where a passage stands, q queries.
"""

from array import array
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from trainer.data.documents import DocumentTable
from trainer.data.scan import text_key
from trainer.data.sources import BeirSource, Source
from trainer.errors import DataError

Ints = NDArray[np.int64]


@dataclass(frozen=True, kw_only=True)
class Passages:
    """Distinct passages, in the order in which they first stand in the source."""

    keys: NDArray[np.uint64]
    """Of each passage [n]."""
    places: Ints
    """Where each stands first [n], counted as `text_at` does."""
    text_at: Callable[[int], str]
    """The text at a place."""
    id_at: Callable[[int], str] | None
    """The document's id at a place; None where passages have none."""
    row_starts: Ints | None = None
    """Place of the first passage of each row [rows]; None: places are rows of a corpus."""

    def __len__(self) -> int:
        return len(self.places)

    def text(self, number: int) -> str:
        """The text of a passage."""
        return self.text_at(int(self.places[number]))

    def identifier(self, number: int) -> str | None:
        """The id of a passage, if it has one."""
        return None if self.id_at is None else self.id_at(int(self.places[number]))


@dataclass(frozen=True, kw_only=True)
class Queries:
    """Distinct queries with what answers them."""

    rows: Ints
    """Row of the source where each query stands first [q], ascending."""
    keys: NDArray[np.uint64]
    """Of each query [q]."""
    query_of_row: Ints
    """Which query each row of the source asks [rows]."""
    starts: Ints
    """Where each query's positives begin in `positives` [q + 1]."""
    positives: Ints
    """Passages that answer a query, of all its rows, each once, ascending."""

    def __len__(self) -> int:
        return len(self.rows)

    def positives_of(self, query: int) -> Ints:
        """The passages that answer a query."""
        return self.positives[self.starts[query] : self.starts[query + 1]]

    @property
    def most_positives(self) -> int:
        """Of one query."""
        return int(np.diff(self.starts).max())


def read_texts(source: Source, *, owner: str = "--source") -> tuple[Passages, Queries]:
    """Index a source in one pass.

    The passages of a BEIR folder are its corpus; of rows, all their positives and negatives.

    Args:
        source: opened.
        owner: what the source is called in messages.

    Raises:
        DataError: if there are no two passages, or a file changed since it was checked.
    """
    passages = _of_corpus(source) if isinstance(source, BeirSource) else _of_rows(source)
    if len(passages) < 2:
        raise DataError(
            f"{owner}: passages = {len(passages)}; expected at least 2, to choose negatives from. "
            "Give a larger source."
        )
    return passages, _queries(source, passages)


def _of_corpus(source: BeirSource) -> Passages:
    documents: DocumentTable = source.records.folder.documents
    table, ids = documents.table, documents.ids
    keys = np.zeros(len(table), np.uint64)
    rows = [row for row in range(len(table)) if not ids.is_blank(row)]
    for row in rows:
        keys[row] = text_key(documents.at(row))
    return _distinct(keys, np.array(rows, np.int64), documents.at, documents.identifier)


def _of_rows(source: Source) -> Passages:
    keys, starts = array("Q"), array("q")
    for row in range(len(source)):
        record = source.record(row)
        starts.append(len(keys))
        keys.extend(map(text_key, (*record.positives, *record.negatives)))
    first = np.array(starts, np.int64)

    def text_at(place: int) -> str:
        row = int(np.searchsorted(first, place, side="right")) - 1
        record = source.record(row)
        return str((*record.positives, *record.negatives)[place - int(first[row])])

    every = np.arange(len(keys), dtype=np.int64)
    found = _distinct(np.array(keys, np.uint64), every, text_at, None)
    return replace(found, row_starts=first)


def _distinct(
    keys: NDArray[np.uint64],
    places: Ints,
    text_at: Callable[[int], str],
    id_at: Callable[[int], str] | None,
) -> Passages:
    """The first place of each text. `keys` are of all places, `places` those that count."""
    _, first = np.unique(keys[places], return_index=True)
    kept = places[np.sort(first)]
    return Passages(keys=keys[kept], places=kept, text_at=text_at, id_at=id_at)


def _queries(source: Source, passages: Passages) -> Queries:
    order = np.argsort(passages.keys)
    ascending = passages.keys[order]
    asked, pairs = array("Q"), array("q")
    answers = array("Q")
    for row in range(len(source)):
        record = source.record(row)
        asked.append(text_key(record.query))
        for text in record.positives:
            pairs.append(row)
            answers.append(text_key(text))
    keys = np.array(asked, np.uint64)
    _, first, inverse = np.unique(keys, return_index=True, return_inverse=True)
    # by first row and not by key
    place = np.argsort(np.argsort(first))
    rows, query_of_row = np.sort(first), place[inverse]
    found = order[np.searchsorted(ascending, np.array(answers, np.uint64))]
    both = np.stack([query_of_row[np.array(pairs, np.int64)], found], axis=1)
    both = np.unique(both, axis=0)
    starts = np.searchsorted(both[:, 0], np.arange(len(rows) + 1))
    return Queries(
        rows=rows.astype(np.int64),
        keys=keys[rows],
        query_of_row=query_of_row.astype(np.int64),
        starts=starts.astype(np.int64),
        positives=both[:, 1].astype(np.int64),
    )


def passages_like(passages: Passages, queries: Queries) -> dict[int, int]:
    """The passage that is a query's own text, by query, where there is one."""
    order = np.argsort(passages.keys)
    ascending = passages.keys[order]
    at = np.minimum(np.searchsorted(ascending, queries.keys), len(ascending) - 1)
    same = ascending[at] == queries.keys
    return {int(query): int(order[at[query]]) for query in np.flatnonzero(same)}


def blocks(total: int, size: int) -> Iterator[range]:
    """Consecutive ranges of at most `size`."""
    for start in range(0, total, size):
        yield range(start, min(start + size, total))
