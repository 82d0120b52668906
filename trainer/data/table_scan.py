"""One pass over all rows of a table before training, by all cores where it is large.

Started as `python -m trainer.data.table_scan` a process scans its stretches of a table. They are
put together in their order, so that the result, and the fault that is named, are those of one
process.
"""

import logging
import os
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass

import numpy as np

from trainer.data.cache import Arrays, cache_root, cached_arrays
from trainer.data.numbers import Numbers
from trainer.data.processes import as_child, read_sent, receive, send, send_frame, started
from trainer.data.scan import (
    CACHE_FROM_ROWS,
    NUM_SHOWN_FAULTS,
    RowReader,
    Stretch,
    check_share,
    scan_stretch,
)
from trainer.data.unchanged import marks_of
from trainer.errors import DataError, StepError, TrainerError

logger = logging.getLogger(__name__)

MODULE = "trainer.data.table_scan"
ROWS_AT_ONCE = 50_000
"""Of a stretch."""
MAX_PROCESSES = 16
"""More would wait for the disk, and for the process that puts stretches together."""


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


def scan_table(reader: RowReader, *, identity: str) -> Scan:
    """Parses every row once, from the cache where a large table was seen before.

    Args:
        reader: the rows; with `skip`, malformed ones are left out rather than stopped at.
        identity: key of the reader's adapter and settings, for the cache.

    Raises:
        DataError: at the first malformed row, or if more than 1% of the rows are malformed, or all.
        StepError: if a process that scans ended early.
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
    rows, parts, taught = Numbers("q"), Numbers("q"), Numbers("Q")
    queries, scores = Numbers("Q"), Numbers("d")
    num_faults = num_dropped = num_scored = num_without = 0
    first: DataError | None = None
    for found in _stretches(reader):
        for row, fault in found.faults[: max(0, NUM_SHOWN_FAULTS - num_faults)]:
            error = reader.table.error(row, fault)
            if not reader.skip:
                raise error
            first = first or error
            logger.warning("skipped: %s", error)
        for row, fault in found.dropped[: max(0, NUM_SHOWN_FAULTS - num_dropped)]:
            logger.warning("left out: %s: %s", reader.table.place(row), fault)
        rows.extend(found.rows)
        parts.extend(found.parts)
        taught.extend(found.taught)
        queries.extend(found.queries)
        scores.extend(found.scores)
        num_faults += found.num_faults
        num_dropped += found.num_dropped
        num_scored += found.num_scored
        num_without += found.num_without
    check_share(reader.table, num_faults, first)
    keys, asked = taught.whole(), queries.whole()
    keys.sort()
    asked.sort()
    return {
        "rows": rows.whole(),
        "parts": parts.whole(),
        "queries": asked,
        "scores": scores.whole(),
        "num_skipped": np.array(num_faults),
        "num_duplicates": np.array(np.sum(keys[1:] == keys[:-1])),
        "num_dropped": np.array(num_dropped),
        "num_scored": np.array(num_scored),
        "num_without": np.array(num_without),
    }


def _stretches(reader: RowReader) -> Iterator[Stretch]:
    """What each stretch of the table holds, in their order.

    Raises:
        DataError: if a file changed.
        StepError: if a process ended early.
    """
    size = len(reader.table)
    stretches = [
        range(start, min(start + ROWS_AT_ONCE, size)) for start in range(0, size, ROWS_AT_ONCE)
    ]
    num_processes = min(len(os.sched_getaffinity(0)), len(stretches), MAX_PROCESSES)
    # without a cache every rank of a host scans for itself, at the same time
    if size < CACHE_FROM_ROWS or num_processes == 1 or not cache_root().is_dir():
        yield from (scan_stretch(reader, stretch) for stretch in stretches)
        return
    marks = marks_of(reader.table)
    with ExitStack() as running:
        workers = [running.enter_context(started(MODULE)) for _ in range(num_processes)]
        for number, worker in enumerate(workers):
            assert worker.stdin is not None
            send(worker.stdin, (reader, stretches[number::num_processes]))
        for number in range(len(stretches)):
            worker = workers[number % num_processes]
            assert worker.stdout is not None
            found = receive(worker.stdout)
            if isinstance(found, TrainerError):
                raise found
            if found is None:
                for mark in marks:
                    mark.check()  # the system ends a process whose file became shorter
                raise StepError(
                    f"{reader.table.name}: the process that checks its rows ended with code "
                    f"{worker.wait()}; expected 0. See its traceback above and the machine's "
                    "memory."
                )
            yield found


def main() -> None:
    """Reads some stretches and sends what they hold, or what went wrong."""
    pipe = as_child()
    reader, stretches = read_sent(sys.stdin.buffer)
    try:
        for stretch in stretches:
            send_frame(pipe, scan_stretch(reader, stretch))
    except TrainerError as error:
        send_frame(pipe, error)


if __name__ == "__main__":
    main()
