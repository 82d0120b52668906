"""Rows of a table by their id: a 64-bit key and a number for each; texts stay in the files."""

import logging
from array import array
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from trainer.data.cache import Arrays, cached_arrays
from trainer.data.fields import Row, RowError, shown
from trainer.data.scan import CACHE_FROM_ROWS, parsed_rows, text_key
from trainer.data.tables import Table

logger = logging.getLogger(__name__)


class Identified(NamedTuple):
    """What is kept of a row."""

    identifier: str
    """Its id."""
    is_blank: bool
    """Whether it has no text."""


@dataclass(frozen=True)
class Lists:
    """Many lists of numbers in two arrays."""

    values: np.ndarray
    """All lists, one after another, int64."""
    ends: np.ndarray
    """End of each list in `values` [n], int64."""

    @classmethod
    def of(cls, lists: Iterable[Iterable[int]]) -> "Lists":
        """Packs lists."""
        arrays = [np.fromiter(numbers, np.int64) for numbers in lists]
        values = np.concatenate(arrays) if arrays else np.empty(0, np.int64)
        return cls(values, np.cumsum([len(numbers) for numbers in arrays], dtype=np.int64))

    def __getitem__(self, index: int) -> list[int]:
        start = self.ends[index - 1] if index else 0
        return self.values[start : self.ends[index]].tolist()


@dataclass(frozen=True)
class Ids:
    """Row of each id of a table, at 16 bytes an id."""

    keys: np.ndarray
    """Keys of the ids, ascending [n], uint64."""
    rows: np.ndarray
    """Row of each key [n], int64."""
    blank: np.ndarray
    """Rows without text, ascending, int64."""

    def find(self, identifiers: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
        """The row of each id [n], int64, and whether it is known [n], bool."""
        keys = np.fromiter(map(text_key, identifiers), np.uint64, len(identifiers))
        at = np.minimum(np.searchsorted(self.keys, keys), len(self.keys) - 1)
        return self.rows[at], self.keys[at] == keys

    def row(self, field: str, identifier: str, file: str) -> int:
        """The row of one id.

        Raises:
            RowError: if no row has it; names the field that holds it and the file that lacks it.
        """
        rows, known = self.find([identifier])
        if not known[0]:
            raise RowError(field, shown(identifier), f"an _id of {file}")
        return int(rows[0])

    def is_blank(self, row: int) -> bool:
        """Whether a row has no text."""
        at = int(np.searchsorted(self.blank, row))
        return at < len(self.blank) and bool(self.blank[at] == row)


def index_ids(table: Table, check: Callable[[Row], Identified], *, skip: bool) -> Ids:
    """Checks each row and keeps the key of its id, from the cache where the table is large.

    Raises:
        DataError: if a row is malformed or repeats an id and is not skipped.
    """

    def build() -> Arrays:
        rows, keys, blank = array("q"), array("Q"), array("q")
        for row, found in parsed_rows(table, lambda row: check(table.row(row)), skip=skip):
            rows.append(row)
            keys.append(text_key(found.identifier))
            if found.is_blank:
                blank.append(row)
        order = np.argsort(np.array(keys, np.uint64), kind="stable")
        return {
            "keys": np.array(keys, np.uint64)[order],
            "rows": np.array(rows, np.int64)[order],
            "blank": np.array(blank, np.int64),
        }

    identity = f"ids|{table.sha256}|{check.__module__}.{check.__qualname__}|{skip}"
    cached = len(table) >= CACHE_FROM_ROWS
    ids = Ids(**(cached_arrays(identity, build) if cached else build()))
    return _without_repeats(table, ids, check, skip=skip)


def _without_repeats(
    table: Table, ids: Ids, check: Callable[[Row], Identified], *, skip: bool
) -> Ids:
    """The first row of each id.

    Raises:
        DataError: if there are others and they are not skipped.
    """
    repeats = np.flatnonzero(ids.keys[1:] == ids.keys[:-1]) + 1
    if not len(repeats):
        return ids
    row = int(ids.rows[repeats[0]])
    fault = RowError("_id", shown(check(table.row(row)).identifier), "a new id")
    if not skip:
        raise table.error(row, fault)
    logger.warning("skipped: %d rows that repeat an id, such as %s: %s", len(repeats),
                   table.place(row), fault)  # fmt: skip
    return Ids(np.delete(ids.keys, repeats), np.delete(ids.rows, repeats), ids.blank)
