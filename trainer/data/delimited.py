"""CSV and TSV files by byte range: quoted fields may hold line breaks; it reads no meaning.

Some write texts with quotes in them without quoting them as CSV does. Two lone quotes then make one
row of all lines between them. Such lines are full rows by themselves, as those of a quoted text are
by chance alone: they are refused unless another row of the file shows that it is quoted as CSV is.
"""

import csv
import io
import mmap
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from trainer.data.cache import Arrays
from trainer.data.fields import RowError, shown
from trainer.data.files import line_ranges
from trainer.data.header import Header
from trainer.data.numbers import Numbers
from trainer.data.tab_separated import one_row_or_several, plain_fields, tab_separated_ranges

MAX_FIELD_CHARS = 1 << 30
"""Python's own limit of 131,072 would refuse long passages."""


OTHER_DELIMITERS = (",", ";", "\t", "|")
"""Looked for in a header that the suffix's own delimiter leaves in one piece."""
FULL_SHARE = 0.9
"""So many of the lines of a quoted row are full rows where it can be several rows: one of those may
be malformed, and of a long text hardly any line has the delimiters of a row."""


@dataclass(frozen=True)
class Delimited:
    """How one such file is cut into rows and a row into fields."""

    delimiter: str
    """One character."""
    header: tuple[str, ...]
    """Column names."""
    is_quoted: bool = True
    """Whether quotes enclose fields; else they are part of the texts."""
    may_have_more: bool = False
    """Whether a row may have more fields than there are names; those are left out."""

    def decode(self, row: bytes) -> Mapping[str, str]:
        """The fields of a row, all texts.

        Raises:
            RowError: if it is not UTF-8, badly quoted, or has more or fewer fields than the header.
        """
        fields = split_row(row, self.delimiter, is_quoted=self.is_quoted)
        if self.may_have_more:
            fields = fields[: len(self.header)]
        if len(fields) != len(self.header):
            got = f"{len(fields)} fields"
            plain = "" if self.is_quoted else " (one row a line; this file's quotes enclose none)"
            raise RowError("row", got, f"{len(self.header)}: {', '.join(self.header)}{plain}")
        return dict(zip(self.header, fields, strict=True))


def find_delimiter(data: mmap.mmap, usual: str, header: Header) -> str:
    """What stands between the fields of the first row: usually what the suffix says.

    A row in one piece is of no use to any format, so that another delimiter in it, such as the
    semicolon of European spreadsheets, is the file's own. A tab always is, as names and texts may
    have the other delimiters in them, but hardly tabs.
    """
    data.seek(3 if data[:3] == b"\xef\xbb\xbf" else 0)
    line = data.readline().decode(errors="replace")
    others = OTHER_DELIMITERS if header.headerless is None else ()
    return next((one for one in ("\t", usual, *others) if one in line), usual)


def index_delimited(data: mmap.mmap, delimiter: str, *, is_plain: bool) -> Arrays:
    """Ranges of the rows, and whether their fields are quoted.

    Args:
        data: the file.
        delimiter: one character.
        is_plain: whether each line is known to be a row with plain quotes.

    Raises:
        RowError: if a row has no clear end.
    """
    if is_plain:
        return {"ranges": line_ranges(data), "is_quoted": np.array(False)}
    if delimiter == "\t":
        ranges, is_quoted = tab_separated_ranges(data)
        return {"ranges": ranges, "is_quoted": np.array(is_quoted)}
    return {"ranges": delimited_ranges(data, delimiter), "is_quoted": np.array(True)}


def delimited_ranges(data: mmap.mmap, delimiter: str) -> np.ndarray:
    """First and last byte of each row with the header first, blank lines left out [n, 2], int64.

    Raises:
        RowError: if a row has no clear end, as after a lone carriage return, or if lines could be
            one row as well as several.
    """
    csv.field_size_limit(MAX_FIELD_CHARS)
    ranges = Numbers("q")
    data.seek(3 if data[:3] == b"\xef\xbb\xbf" else 0)
    start = data.tell()
    lines = (line.decode(errors="replace") for line in iter(data.readline, b""))
    quotes = None
    try:
        for fields in csv.reader(lines, delimiter=delimiter):
            # the reader takes no line before it needs it, so the row ends where the file stands
            end = data.tell()
            row = data[start:end]
            if row.strip():
                quotes = quotes or _Quotes(delimiter, len(fields))
                quotes.look_at(row, start)
                ranges.append(start)
                ranges.append(end)
            start = end
    except csv.Error as error:
        got = shown(data[start : start + 60].decode(errors="replace"))
        raise RowError("row", got, f"CSV ({error})") from None
    if quotes is not None:
        quotes.check(data)
    return ranges.whole().reshape(-1, 2)


@dataclass
class _Quotes:
    """Whether the quotes of a file enclose fields, as far as its rows show it."""

    delimiter: str
    """One character."""
    num_fields: int
    """Of the header."""
    are_proven: bool = False
    """Whether a row is one with its quotes alone."""
    doubtful: tuple[int, list[bytes]] | None = None
    """Start and lines of the first row that could be several."""
    malformed: tuple[int, list[bytes]] | None = None
    """The same of the first that is none with its quotes, whatever other rows are."""

    def look_at(self, row: bytes, start: int) -> None:
        """Takes in a row of the reader, which begins at a byte of the file."""
        if b'"' not in row:
            return
        lines = row.rstrip(b"\r\n").split(b"\n")
        if len(lines) == 1 and (self.are_proven or self._is_full(row)):
            return
        written = [line for line in lines if line.strip()]
        is_plain = sum(map(self._is_full, written)) >= FULL_SHARE * len(written)
        if not is_plain:
            self.are_proven = self.are_proven or self._is_well_formed(row)
        elif self._is_well_formed(row):
            self.doubtful = self.doubtful or (start, lines)
        else:
            self.malformed = self.malformed or (start, lines)

    def check(self, data: mmap.mmap) -> None:
        """Refuse lines that could be one row as well as several.

        Raises:
            RowError: naming the first of them.
        """
        found = self.malformed or (None if self.are_proven else self.doubtful)
        if found is not None:
            raise one_row_or_several(data, *found)

    def _is_full(self, line: bytes) -> bool:
        return line.count(self.delimiter.encode()) + 1 == self.num_fields

    def _is_well_formed(self, row: bytes) -> bool:
        try:
            return len(split_row(row, self.delimiter, is_quoted=True)) == self.num_fields
        except RowError:
            return False


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
