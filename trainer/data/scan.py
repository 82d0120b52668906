"""Rows of a table to records, and one pass over them: every fault, score and key is found."""

import hashlib
import logging
from array import array
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import NamedTuple, TypeVar

import numpy as np

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


@dataclass(frozen=True, kw_only=True)
class Stretch:
    """What one pass over some rows of a table found."""

    rows: np.ndarray
    """Table row of each record [n], int64, ascending."""
    parts: np.ndarray
    """Which of its row's records each is [n], int64; 0 where rows are one record."""
    taught: np.ndarray
    """Keys of what the records teach [n], uint64, see `record_key`."""
    queries: np.ndarray
    """Keys of what the records ask [n], uint64, see `query_key`."""
    scores: np.ndarray
    """Scores as written [n], float64; empty for tasks without one."""
    num_scored: int
    """Records whose passages a teacher scored."""
    num_without: int
    """Rows without a record, which their format leaves out."""
    faults: list[tuple[int, RowError]]
    """The first malformed rows, and what is wrong with them."""
    num_faults: int
    """All malformed rows; one where they may not be left out."""
    dropped: list[tuple[int, RowError]]
    """The first blank negatives that were left out."""
    num_dropped: int
    """All of them."""


def scan_stretch(reader: RowReader, stretch: range) -> Stretch:
    """Parses some rows once; ends at the first malformed one where none may be left out."""
    rows, parts, scores = array("q"), array("q"), array("d")
    taught, queries = array("Q"), array("Q")
    faults, dropped = list[tuple[int, RowError]](), list[tuple[int, RowError]]()
    num_faults = num_dropped = num_scored = num_without = 0
    for row in stretch:
        try:
            read = reader.read(row)
        except RowError as fault:
            num_faults += 1
            _keep(faults, row, fault)
            if not reader.skip:
                break
            continue
        num_without += not read.records
        num_dropped += len(read.dropped)
        for blank in read.dropped:
            _keep(dropped, row, blank)
        for part, record in enumerate(read.records):
            rows.append(row)
            parts.append(part)
            taught.append(record_key(record))
            queries.append(query_key(record))
            num_scored += record.has_teacher
            if record.raw_score is not None:
                scores.append(record.raw_score)
    return Stretch(
        rows=np.array(rows, np.int64),
        parts=np.array(parts, np.int64),
        taught=np.array(taught, np.uint64),
        queries=np.array(queries, np.uint64),
        scores=np.array(scores, np.float64),
        num_scored=num_scored,
        num_without=num_without,
        faults=faults,
        num_faults=num_faults,
        dropped=dropped,
        num_dropped=num_dropped,
    )


def _keep(faults: list[tuple[int, RowError]], row: int, fault: RowError) -> None:
    if len(faults) < NUM_SHOWN_FAULTS:
        faults.append((row, fault))


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
    check_share(table, num_faults, first)


def check_share(table: Table, num_faults: int, first: DataError | None) -> None:
    """Refuse a table with too many malformed rows.

    Args:
        table: that was read.
        num_faults: rows that were left out.
        first: what is wrong with the first of them.

    Raises:
        DataError: if they are more than 1%.
    """
    if num_faults > MAX_SKIPPED_SHARE * len(table):
        raise DataError(
            f"{table.name}: malformed rows = {num_faults} of {len(table)}; expected at most "
            f"{MAX_SKIPPED_SHARE:.0%} when they are skipped. The first is {first}"
        )
