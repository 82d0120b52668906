"""CSV and TSV files by byte range: quoted fields may hold line breaks; it reads no meaning."""

import csv
import io
import mmap
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from trainer.data.fields import RowError, shown

MAX_FIELD_CHARS = 1 << 30
"""Python's own limit of 131,072 would refuse long passages."""


@dataclass(frozen=True)
class Delimited:
    """How one such file is cut into rows and a row into fields."""

    delimiter: str
    """One character."""
    header: tuple[str, ...]
    """Column names of the first row."""

    def decode(self, row: bytes) -> Mapping[str, str]:
        """The fields of a row, all texts.

        Raises:
            RowError: if it is not UTF-8, badly quoted, or has more or fewer fields than the header.
        """
        fields = _fields(row, self.delimiter)
        if len(fields) != len(self.header):
            got = f"{len(fields)} fields"
            raise RowError("row", got, f"{len(self.header)}: {', '.join(self.header)}")
        return dict(zip(self.header, fields, strict=True))


def delimited_ranges(data: mmap.mmap, delimiter: str) -> np.ndarray:
    """First and last byte of each row with the header first, blank lines left out [n, 2], int64.

    Raises:
        RowError: if a row cannot be told from the next, as after a lone carriage return.
    """
    csv.field_size_limit(MAX_FIELD_CHARS)
    ranges = []
    data.seek(3 if data[:3] == b"\xef\xbb\xbf" else 0)
    start = data.tell()
    lines = (line.decode(errors="replace") for line in iter(data.readline, b""))
    try:
        for _ in csv.reader(lines, delimiter=delimiter):
            # the reader takes no line before it needs it, so the row ends where the file stands
            end = data.tell()
            if data[start:end].strip():
                ranges.append((start, end))
            start = end
    except csv.Error as error:
        got = shown(data[start : start + 60].decode(errors="replace"))
        raise RowError("row", got, f"CSV ({error})") from None
    return np.array(ranges, np.int64).reshape(-1, 2)


def read_header(row: bytes, delimiter: str) -> tuple[str, ...]:
    """Column names.

    Raises:
        RowError: if it is not UTF-8, or a name is empty or given twice.
    """
    names = tuple(name.strip() for name in _fields(row, delimiter))
    if not all(names) or len(set(names)) != len(names):
        raise RowError("header", shown(list(names)), "column names, each once")
    return names


def _fields(row: bytes, delimiter: str) -> list[str]:
    csv.field_size_limit(MAX_FIELD_CHARS)
    try:
        (fields,) = csv.reader(
            io.StringIO(row.decode(), newline=""), delimiter=delimiter, strict=True
        )
    except UnicodeDecodeError:
        raise RowError("row", ascii(bytes(row[:24])), "UTF-8 text") from None
    except (csv.Error, ValueError) as error:
        raise RowError("row", shown(row[:60].decode(errors="replace")), f"CSV ({error})") from None
    return fields
