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
    queries: np.ndarray
    """Keys of what usable rows ask: a query, or a pair in either order [n], uint64, ascending."""
    scores: np.ndarray
    """Scores as written [n], float64; empty for IR."""
    num_skipped: int
    """Rows left out."""
    num_duplicates: int
    """Usable rows whose query and positives, or whose pair, an earlier row has too."""


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
    cached = len(table) >= CACHE_FROM_ROWS

    def build() -> Arrays:
        if cached:
            logger.info("%s: checking %d rows, once for all runs", table.name, len(table))
        rows, keys, queries, scores = array("q"), array("Q"), array("Q"), array("d")
        for row, record in parsed_rows(table, parse, skip=skip):
            rows.append(row)
            keys.append(record_key(record))
            queries.append(query_key(record))
            if isinstance(record, ScoredPair):
                scores.append(record.score)
        distinct = np.sort(np.array(keys, np.uint64))
        return {
            "rows": np.array(rows, np.int64),
            "queries": np.sort(np.array(queries, np.uint64)),
            "scores": np.array(scores, np.float64),
            "num_duplicates": np.array(np.sum(distinct[1:] == distinct[:-1])),
        }

    arrays = cached_arrays(f"scan2|{table.sha256}|{identity}|{skip}", build) if cached else build()
    return Scan(
        rows=arrays["rows"],
        queries=arrays["queries"],
        scores=arrays["scores"],
        num_skipped=len(table) - len(arrays["rows"]),
        num_duplicates=int(arrays["num_duplicates"]),
    )


def record_key(record: IrRecord | ScoredPair) -> int:
    """64 bits of what a record teaches: query and positives, or a pair in either order."""
    if isinstance(record, ScoredPair):
        return query_key(record)
    return text_key("\0".join([record.query, *sorted(record.positives)]))


def query_key(record: IrRecord | ScoredPair) -> int:
    """64 bits of what a record asks: its query, or its pair in either order."""
    if isinstance(record, ScoredPair):
        return text_key("\0".join(sorted((record.text1, record.text2))))
    return text_key(record.query)


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
