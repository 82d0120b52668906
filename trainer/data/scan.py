"""One pass over all rows of a table before training: every fault, score and duplicate is found."""

import hashlib
import logging
from array import array
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import NamedTuple, TypeVar

import numpy as np

from trainer.data.cache import Arrays, cached_arrays
from trainer.data.fields import RowError
from trainer.data.formats.adapter import Adapter, RowRecords
from trainer.data.records import RawRecord
from trainer.data.tables import Table
from trainer.errors import DataError

logger = logging.getLogger(__name__)

Parsed = TypeVar("Parsed")
MAX_SKIPPED_SHARE = 0.01
"""More malformed rows than this stop the run even where they may be skipped."""
NUM_SHOWN_FAULTS = 5
"""Skipped rows that are logged one by one."""
CACHE_FROM_ROWS = 100_000
"""Smaller tables are checked anew at each start."""


@dataclass(frozen=True, kw_only=True)
class Scan:
    """What one pass over a table found."""

    rows: np.ndarray
    """Table row of each record [n], int64, ascending."""
    parts: np.ndarray
    """Which of its row's records each is [n], int64; 0 where rows are one record."""
    queries: np.ndarray
    """Keys of what usable rows ask: a query, or a pair in either order [n], uint64, ascending."""
    scores: np.ndarray
    """Scores as written [n], float64; empty for tasks without one."""
    num_skipped: int
    """Rows left out."""
    num_duplicates: int
    """Records whose query and positives, or whose pair, an earlier one has too."""
    num_dropped: int
    """Blank negatives left out of rows that are used."""
    num_scored: int
    """Records whose passages a teacher scored."""
    num_without: int
    """Rows without a record, which their format leaves out."""


@dataclass(frozen=True, kw_only=True)
class RowReader:
    """Rows of a table to records."""

    table: Table
    """Raw rows."""
    adapter: Adapter
    """Raw row to record."""
    score_range: tuple[float, float] | None = None
    """Scores that are allowed; None: any."""
    skip: bool = False
    """Leave blank negatives out rather than refuse their row."""

    def records(self, index: int) -> tuple[RawRecord, ...]:
        """The records of a row: one, one a pair, or none where its format leaves it out.

        Raises:
            RowError: if the row is malformed, or a score out of range.
        """
        return self.read(index).records

    def read(self, index: int) -> "ReadRow":
        """The records of a row, and what was left out of them.

        Raises:
            RowError: if the row is malformed, or a score out of range.
        """
        dropped: list[RowError] | None = [] if self.skip else None
        parsed = self.adapter.parse(self.table.row(index, dropped))
        records = parsed.records if isinstance(parsed, RowRecords) else (parsed,)
        for record in records:
            if self.score_range is not None and record.raw_score is not None:
                _check_score(record.raw_score, *self.score_range)
        return ReadRow(records, dropped or [])


class ReadRow(NamedTuple):
    """One row."""

    records: tuple[RawRecord, ...]
    """As `RowReader.records` has them."""
    dropped: list[RowError]
    """Faults of the negatives that were left out."""


def _check_score(score: float, low: float, high: float) -> None:
    if not low <= score <= high:
        raise RowError("score", f"{score:g}", f"a number from {low:g} to {high:g}")


def scan_table(reader: RowReader, *, identity: str) -> Scan:
    """Parses every row once, from the cache where a large table was seen before.

    Args:
        reader: the rows; with `skip`, malformed ones are left out rather than stopped at.
        identity: key of the reader's adapter and settings, for the cache.

    Raises:
        DataError: at the first malformed row, or if more than 1% of the rows are malformed, or all.
    """
    table = reader.table
    cached = len(table) >= CACHE_FROM_ROWS

    def build() -> Arrays:
        if cached:
            logger.info("%s: checking %d rows, once for all runs", table.name, len(table))
        return _scanned(reader)

    key = f"scan3|{table.sha256}|{identity}|{reader.skip}"
    arrays = cached_arrays(key, build) if cached else build()
    return Scan(
        rows=arrays["rows"],
        parts=arrays["parts"],
        queries=arrays["queries"],
        scores=arrays["scores"],
        num_skipped=int(arrays["num_skipped"]),
        num_duplicates=int(arrays["num_duplicates"]),
        num_dropped=int(arrays["num_dropped"]),
        num_scored=int(arrays["num_scored"]),
        num_without=int(arrays["num_without"]),
    )


def _scanned(reader: RowReader) -> Arrays:
    rows, parts, keys = array("q"), array("q"), array("Q")
    queries, scores = array("Q"), array("d")
    num_used = num_dropped = num_scored = num_without = 0
    for row, read in parsed_rows(reader.table, reader.read, skip=reader.skip):
        num_used += 1
        num_without += not read.records
        for fault in read.dropped:
            num_dropped += 1
            if num_dropped <= NUM_SHOWN_FAULTS:
                logger.warning("left out: %s: %s", reader.table.place(row), fault)
        for part, record in enumerate(read.records):
            rows.append(row)
            parts.append(part)
            keys.append(record_key(record))
            queries.append(query_key(record))
            num_scored += record.has_teacher
            if record.raw_score is not None:
                scores.append(record.raw_score)
    distinct = np.sort(np.array(keys, np.uint64))
    return {
        "rows": np.array(rows, np.int64),
        "parts": np.array(parts, np.int64),
        "queries": np.sort(np.array(queries, np.uint64)),
        "scores": np.array(scores, np.float64),
        "num_skipped": np.array(len(reader.table) - num_used),
        "num_duplicates": np.array(np.sum(distinct[1:] == distinct[:-1])),
        "num_dropped": np.array(num_dropped),
        "num_scored": np.array(num_scored),
        "num_without": np.array(num_without),
    }


def record_key(record: RawRecord) -> int:
    """64 bits of what a record teaches, such as a query and its positives."""
    return text_key(record.taught())


def query_key(record: RawRecord) -> int:
    """64 bits of what a record asks, such as its query, or its pair in either order."""
    return text_key(record.asked())


def text_key(text: str) -> int:
    """64 bits that are the same in every process."""
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little")


def parsed_rows(
    table: Table, parse: Callable[[int], Parsed], *, skip: bool
) -> Iterator[tuple[int, Parsed]]:
    """Number and record of each row that is not malformed.

    Raises:
        DataError: at the first malformed row, or with `skip` if more than 1% of them are.
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
            f"{table.name}: malformed rows = {num_faults} of {len(table)}; expected at most "
            f"{MAX_SKIPPED_SHARE:.0%} when they are skipped. The first is {first}"
        )
