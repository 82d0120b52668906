"""One pass over all rows of a table before training: every fault, score and duplicate is found."""

import hashlib
import logging
from array import array
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TypeVar

import numpy as np

from trainer.data.cache import Arrays, cached_arrays
from trainer.data.fields import RowError
from trainer.data.formats.adapter import ScoredPair
from trainer.data.records import IrRecord
from trainer.data.tables import Table
from trainer.errors import DataError

logger = logging.getLogger(__name__)

Parsed = TypeVar("Parsed")
Parse = Callable[[int], IrRecord | ScoredPair]
MAX_SKIPPED_SHARE = 0.01
"""More spoiled rows than this stop the run even where they may be skipped."""
NUM_SHOWN_FAULTS = 5
"""Skipped rows that are logged one by one."""
CACHE_FROM_ROWS = 100_000
"""Smaller tables are checked anew at each start."""


@dataclass(frozen=True, kw_only=True)
class Scan:
    """What one pass over a table found."""

    rows: np.ndarray
    """Table rows that can be used [n], int64, ascending."""
    keys: np.ndarray
    """What each usable row is about [n], uint64; equal for equal texts in either order."""
    scores: np.ndarray
    """Scores as written [n], float64; empty for IR."""
    num_skipped: int
    """Rows left out."""

    @property
    def num_duplicates(self) -> int:
        """Rows whose texts all occur in an earlier row."""
        return len(self.keys) - len(np.unique(self.keys))


def scan_table(table: Table, parse: Parse, *, identity: str, skip: bool) -> Scan:
    """Parses every row once, from the cache where a large table was seen before.

    Args:
        table: the rows.
        parse: row number to record; raises RowError.
        identity: key of `parse` and of its settings, for the cache.
        skip: leave spoiled rows out rather than stop at the first.

    Raises:
        DataError: at the first spoiled row, or if more than 1% of the rows are spoiled, or all.
    """

    def build() -> Arrays:
        rows, keys, scores = array("q"), array("Q"), array("d")
        for row, record in parsed_rows(table, parse, skip=skip):
            rows.append(row)
            keys.append(record_key(record))
            if isinstance(record, ScoredPair):
                scores.append(record.score)
        return {
            "rows": np.frombuffer(rows, np.int64) if rows else np.empty(0, np.int64),
            "keys": np.frombuffer(keys, np.uint64) if keys else np.empty(0, np.uint64),
            "scores": np.frombuffer(scores, np.float64) if scores else np.empty(0),
        }

    cached = len(table) >= CACHE_FROM_ROWS
    arrays = cached_arrays(f"scan|{table.sha256}|{identity}|{skip}", build) if cached else build()
    return Scan(num_skipped=len(table) - len(arrays["rows"]), **arrays)


def record_key(record: IrRecord | ScoredPair) -> int:
    """64 bits of a record's texts; a pair's order and a record's negatives do not count."""
    if isinstance(record, ScoredPair):
        texts = sorted((record.text1, record.text2))
    else:
        texts = [record.query, *sorted(record.positives)]
    return text_key("\\0".join(texts))


def text_key(text: str) -> int:
    """64 bits that are the same in every process."""
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little")


def parsed_rows(
    table: Table, parse: Callable[[int], Parsed], *, skip: bool
) -> Iterator[tuple[int, Parsed]]:
    """Number and record of each row that is not spoiled.

    Raises:
        DataError: at the first spoiled row, or with `skip` if more than 1% of them are.
    """
    num_faults = 0
    first = None
    for row in range(len(table)):
        try:
            yield row, parse(row)
        except RowError as fault:
            if not skip:
                raise table.error(row, fault) from None
            num_faults += 1
            if num_faults <= NUM_SHOWN_FAULTS:
                error = table.error(row, fault)
                first = first or error
                logger.warning("skipped: %s", error)
    if num_faults > MAX_SKIPPED_SHARE * len(table):
        raise DataError(
            f"{table.name}: spoiled rows = {num_faults} of {len(table)}; expected at most "
            f"{MAX_SKIPPED_SHARE:.0%} when they are skipped. The first is {first}"
        )
