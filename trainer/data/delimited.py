"""CSV and TSV files by byte range: quoted fields may hold line breaks; it reads no meaning."""

import csv
import io
import mmap
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from trainer.data.cache import Arrays
from trainer.data.fields import RowError, shown
from trainer.data.tab_separated import plain_fields, tab_separated_ranges

MAX_FIELD_CHARS = 1 << 30
"""Python's own limit of 131,072 would refuse long passages."""


OTHER_DELIMITERS = (",", ";", "\t", "|")
"""Looked for in a header that the suffix's own delimiter leaves in one piece."""


@dataclass(frozen=True)
class Delimited:
    """How one such file is cut into rows and a row into fields."""

    delimiter: str
    """One character."""
    header: tuple[str, ...]
    """Column names."""
    is_quoted: bool = True
    """Whether quotes enclose fields; else they are part of the texts."""

    def decode(self, row: bytes) -> Mapping[str, str]:
        """The fields of a row, all texts.

        Raises:
            RowError: if it is not UTF-8, badly quoted, or has more or fewer fields than the header.
        """
        fields = split_row(row, self.delimiter, is_quoted=self.is_quoted)
        if len(fields) != len(self.header):
            got = f"{len(fields)} fields"
            plain = "" if self.is_quoted else " (one row a line; this file's quotes enclose none)"
            raise RowError("row", got, f"{len(self.header)}: {', '.join(self.header)}{plain}")
        return dict(zip(self.header, fields, strict=True))


def find_delimiter(data: mmap.mmap, usual: str) -> str:
    """What stands between the names of the header: usually what the suffix says.

    A header in one piece is of no use to any format, so that another delimiter in it, such as the
    semicolon of European spreadsheets, is the file's own.
    """
    data.seek(3 if data[:3] == b"\xef\xbb\xbf" else 0)
    line = data.readline().decode(errors="replace")
    if usual in line:
        return usual
    return next((delimiter for delimiter in OTHER_DELIMITERS if delimiter in line), usual)


def index_delimited(data: mmap.mmap, delimiter: str) -> Arrays:
    """Ranges of the rows, and whether their fields are quoted.

    Raises:
        RowError: if a row has no clear end.
    """
    if delimiter == "\t":
        ranges, is_quoted = tab_separated_ranges(data)
        return {"ranges": ranges, "is_quoted": np.array(is_quoted)}
    return {"ranges": delimited_ranges(data, delimiter), "is_quoted": np.array(True)}


def delimited_ranges(data: mmap.mmap, delimiter: str) -> np.ndarray:
    """First and last byte of each row with the header first, blank lines left out [n, 2], int64.

    Raises:
        RowError: if a row has no clear end, as after a lone carriage return.
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


def read_header(row: bytes, delimiter: str, *, is_quoted: bool) -> tuple[str, ...]:
    """Column names.

    Raises:
        RowError: if it is not UTF-8, or a name is empty or given twice.
    """
    names = tuple(name.strip() for name in split_row(row, delimiter, is_quoted=is_quoted))
    if any("\r" in name for name in names):
        raise RowError("header", shown(list(names)), "a line break (\\n) after it, not \\r alone")
    if not all(names) or len(set(names)) != len(names):
        raise RowError("header", shown(list(names)), "column names, each once")
    return names


def split_row(row: bytes, delimiter: str, *, is_quoted: bool) -> list[str]:
    """The fields of a row.

    Raises:
        RowError: if it is not UTF-8 or badly quoted.
    """
    if not is_quoted:
        return plain_fields(row)
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
