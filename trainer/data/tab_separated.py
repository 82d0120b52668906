"""How a tab-separated file is written: one row a line with plain quotes, or quoted as CSV is.

Published sets (STSbenchmark, MRPC, QQP) have one row a line and texts with quotes in them; what
spreadsheets and pandas write has quoted fields that may hold tabs and line breaks. Which of the two
a file is follows from the whole of it, never from its first rows:

1. Each line has as many fields as the header: one row a line. If every field with a quote in it is
   quoted as in CSV, the quotes are taken off; else they are part of the texts.
2. Otherwise, if the whole file can be read as quoted: rows end outside quotes. A row whose first
   and last line each are a full row by themselves is refused, as no rule can know what it is.
3. Otherwise one row a line, with plain quotes; lines of another number of fields are faults.
"""

import mmap
import re
from collections.abc import Sequence

import numpy as np

from trainer.data.fields import RowError, shown
from trainer.data.files import line_ranges

FIELD = re.compile(rb'(?:"[^"]*+(?:""[^"]*+)*+"|[^\t\n"]*+)(\t|\r?\n|\r?\Z)')
"""A field as CSV quotes it, with what ends it; possessive, so that a lone quote costs one pass."""
BLOCK_BYTES = 1 << 22
"""Looked at while counting."""


def tab_separated_ranges(data: mmap.mmap) -> tuple[np.ndarray, bool]:
    """First and last byte of each row that is not blank [n, 2], int64, and whether it is quoted.

    Raises:
        RowError: if lines could be one row as well as several.
    """
    lines = line_ranges(data)
    if data.find(b'"') < 0 or not len(lines):
        return lines, False
    num_tabs = _counts(data, lines, b"\t")
    if np.all(num_tabs == num_tabs[0]):
        with_quotes = np.flatnonzero(_counts(data, lines, b'"'))
        rows = (data[start:end] for start, end in lines[with_quotes])
        return lines, all(_is_quoted(row) for row in rows)
    quoted = _quoted_ranges(data, int(lines[0, 0]))
    if quoted is None:
        return lines, False
    _check_unambiguous(data, quoted, int(num_tabs[0]))
    blank = np.array([not data[start:end].strip() for start, end in quoted], bool)
    return quoted[~blank], True


def plain_fields(row: bytes) -> list[str]:
    """The fields of a row whose quotes are part of the texts.

    Raises:
        RowError: if it is not UTF-8.
    """
    try:
        return row.rstrip(b"\r\n").decode().split("\t")
    except UnicodeDecodeError:
        raise RowError("row", ascii(bytes(row[:24])), "UTF-8 text") from None


def _counts(data: mmap.mmap, ranges: np.ndarray, character: bytes) -> np.ndarray:
    """How often a character stands in each range [n], int64."""
    counts = np.zeros(len(ranges), np.int64)
    for start in range(0, len(data), BLOCK_BYTES):
        block = np.frombuffer(data, np.uint8, min(BLOCK_BYTES, len(data) - start), start)
        found = np.flatnonzero(block == ord(character)) + start
        owners = np.searchsorted(ranges[:, 1], found, side="right")
        inside = (owners < len(ranges)) & (found >= ranges[np.minimum(owners, len(ranges) - 1), 0])
        counts += np.bincount(owners[inside], minlength=len(ranges))
    return counts


def _is_quoted(row: bytes) -> bool:
    """Whether each field of a row is quoted as in CSV, or has no quote."""
    at = 0
    while at < len(row):
        found = FIELD.match(row, at)
        if found is None:
            return False
        at = found.end()
    return True


def _quoted_ranges(data: mmap.mmap, start: int) -> np.ndarray | None:
    """Rows of a file that is quoted as CSV is [n, 2], int64; None if it is not."""
    ranges = []
    at = start
    while at < len(data):
        found = FIELD.match(data, at)
        if found is None:
            return None
        at = found.end()
        if found[1] != b"\t":
            ranges.append((start, at))
            start = at
    if start < at:
        ranges.append((start, at))
    return np.array(ranges, np.int64).reshape(-1, 2)


def one_row_or_several(data: mmap.mmap, start: int, lines: Sequence[bytes]) -> RowError:
    """What is wrong with lines of which nothing says whether they are one row or several.

    Args:
        data: the file.
        start: where the first of the lines begins, in bytes.
        lines: at least two.
    """
    line = data[:start].count(b"\n") + 1
    return RowError(
        f"lines {line} to {line + len(lines) - 1}",
        shown(lines[0][:60].decode(errors="replace")),
        "lines that are either one row with a quoted line break or a row each; both are "
        "full rows here. Write the file as .jsonl, or remove the quotes of these lines",
    )


def _check_unambiguous(data: mmap.mmap, rows: np.ndarray, num_tabs: int) -> None:
    for start, end in rows:
        first, *rest = data[start:end].rstrip(b"\r\n").split(b"\n")
        if rest and first.count(b"\t") == num_tabs == rest[-1].count(b"\t"):
            raise one_row_or_several(data, start, [first, *rest])
