"""Text files as tables of rows: a memory map and one byte range per row; it reads no meaning.

Nothing of a file is held in memory but the ranges, and for large files these are memory-mapped
from the cache too.
"""

import hashlib
import json
import mmap
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from itertools import takewhile
from pathlib import Path
from typing import Any

import numpy as np

from trainer.data.cache import Arrays, cached_arrays, file_identity
from trainer.data.fields import RowError, shown
from trainer.data.numbers import Numbers
from trainer.errors import DataError

BLOCK_BYTES = 1 << 22
"""Read at a time while indexing."""
CACHE_FROM_BYTES = 1 << 25
"""Smaller files are indexed anew at each start, in a fraction of a second."""

JSON_TOKEN = re.compile(rb'"(?:[^"\\]++|\\.)*+(?:"|\Z)|[\[\]{}]', re.DOTALL)
"""A text or a bracket. A text without an end goes to the end of the file, and nothing is tried
twice: looking for its end from each quote in it would take time that grows with the square."""

Decoder = Callable[[bytes], Mapping[str, Any]]
Indexer = Callable[[mmap.mmap], Arrays]


def decode_json(line: bytes) -> Mapping[str, Any]:
    """The object written in some bytes.

    Raises:
        RowError: if they are not UTF-8, not JSON, or not an object.
    """
    value = decode_value(line)
    if not isinstance(value, dict):
        raise RowError("row", shown(value), "a JSON object")
    return value


def decode_array(line: bytes) -> Mapping[str, Any]:
    """The array written in some bytes, each item under its place: `[0]`, `[1]` and so on.

    Raises:
        RowError: if they are not UTF-8, not JSON, or not an array.
    """
    value = decode_value(line)
    if not isinstance(value, list):
        raise RowError("row", shown(value), "a JSON array, as the first row is")
    return {f"[{number}]": item for number, item in enumerate(value)}


def decode_value(line: bytes) -> Any:
    """What is written in some bytes as JSON.

    Raises:
        RowError: if they are not UTF-8 or not JSON.
    """
    try:
        return json.loads(line.decode())
    except UnicodeDecodeError:
        raise RowError("row", ascii(bytes(line[:24])), "UTF-8 text") from None
    except (ValueError, RecursionError) as error:
        raise RowError(
            "row", shown(line[:60].decode(errors="replace")), f"JSON ({error})"
        ) from None


def index_lines(data: mmap.mmap) -> Arrays:
    """Ranges of the lines."""
    return {"ranges": line_ranges(data)}


def index_array(data: mmap.mmap) -> Arrays:
    """Ranges of the items of a JSON array.

    Raises:
        RowError: if it is no array of objects, or of arrays.
    """
    return {"ranges": array_ranges(data)}


def line_ranges(data: mmap.mmap) -> np.ndarray:
    """First and last byte of each line that is not blank [n, 2], int64."""
    found, start = Numbers("q"), _start(data)
    for ends in _line_ends(data):
        ranges = np.stack([np.append(start, ends[:-1] + 1), ends], axis=1)
        ranges = ranges[ranges[:, 0] < ends]
        suspects = np.frombuffer(data, np.uint8)[ranges[:, 0]] <= ord(" ")
        for row in np.flatnonzero(suspects):
            suspects[row] = not data[ranges[row, 0] : ranges[row, 1]].strip()
        found.extend(ranges[~suspects].reshape(-1))
        start = int(ends[-1]) + 1
    return found.whole().reshape(-1, 2)


def _line_ends(data: mmap.mmap) -> Iterator[np.ndarray]:
    """Where lines end, block by block; the last one may end with the file."""
    for start, newlines in _newlines(data):
        if len(newlines):
            yield start + newlines
    yield np.array([len(data)])


def array_ranges(data: mmap.mmap) -> np.ndarray:
    """First and last byte of each item of a JSON array of objects or arrays [n, 2], int64."""
    ranges, depth, start = Numbers("q"), 0, 0
    for found in JSON_TOKEN.finditer(data):
        token = found[0]
        if token in b"[{":
            depth += 1
            start = found.start() if depth == 2 else start
        elif token in b"]}":
            depth -= 1
            if depth == 1:
                ranges.append(start)
                ranges.append(found.end())
    if depth:
        raise RowError("file", "an array that does not end", "JSON: [{...}, {...}]")
    items = ranges.whole().reshape(-1, 2)
    _check_gaps(data, items)
    return items


def _check_gaps(data: mmap.mmap, items: np.ndarray) -> None:
    """Refuses an array that has anything but commas between its objects."""
    end, expected = _start(data), b"["
    for start, next_end in items:
        _check_gap(data, end, int(start), expected)
        end, expected = int(next_end), b","
    _check_gap(data, end, len(data), b"]" if len(items) else b"[]")


def _check_gap(data: mmap.mmap, start: int, end: int, expected: bytes) -> None:
    gap = data[start:end].strip()
    if b"".join(gap.split()) != expected:
        got = shown(gap[:40].decode(errors="replace"))
        raise RowError("file", f"{got} between objects", "JSON: [{...}, {...}]")


def _newlines(data: mmap.mmap) -> Iterator[tuple[int, np.ndarray]]:
    for start in range(0, len(data), BLOCK_BYTES):
        block = np.frombuffer(data, np.uint8, min(BLOCK_BYTES, len(data) - start), start)
        yield start, np.flatnonzero(block == ord("\n"))


def _start(data: mmap.mmap) -> int:
    """Where the text starts, after a byte order mark."""
    return 3 if data[:3] == b"\xef\xbb\xbf" else 0


@dataclass(frozen=True)
class TextFile:
    """One file and the byte ranges of its rows; opened again after pickling."""

    path: Path
    """What is read."""
    name: Path
    """What messages call it; differs from `path` for a compressed file."""
    decode: Decoder
    """Bytes of a row to its fields."""
    ranges: np.ndarray = field(repr=False)
    """First and last byte of each row [n, 2], int64."""
    sha256: str
    """Of the whole file, hexadecimal."""
    is_quoted: bool = True
    """Whether quotes enclose fields, where rows are fields with something between them."""

    @cached_property
    def data(self) -> mmap.mmap:
        """The file's bytes."""
        return map_file(self.path)

    @cached_property
    def bounds(self) -> np.ndarray:
        """`ranges` without the cost that a memory-mapped array adds to each access."""
        return self.ranges.view(np.ndarray)

    def __getstate__(self) -> dict[str, Any]:
        return {key: value for key, value in self.__dict__.items() if key not in ("data", "bounds")}

    def __len__(self) -> int:
        return len(self.ranges)

    def values(self, row: int) -> Mapping[str, Any]:
        """The fields of a row.

        Raises:
            RowError: if it cannot be decoded, or the file was cut off before its end.
        """
        start, end = self.bounds[row]
        # reading past the end of a file that was cut would kill the process
        if self.data.size() < end:
            raise RowError("file", f"{self.data.size()} bytes", f"{len(self.data)}, as when opened")
        return self.decode(self.data[start:end])

    def place(self, row: int) -> str:
        """`path:line` of a row, for messages; counts lines, so it is slow."""
        first = int(self.bounds[row, 0])
        blocks = takewhile(lambda block: block[0] <= first, _newlines(self.data))
        before = sum(int(np.searchsorted(breaks, first - start)) for start, breaks in blocks)
        return f"{self.name}:{before + 1}"


def map_file(path: Path) -> mmap.mmap:
    """A file's bytes, memory-mapped.

    Raises:
        DataError: if it is missing, unreadable or empty.
    """
    try:
        with path.open("rb") as file:
            return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    except ValueError:
        raise DataError(
            f"{path}: size = 0; expected at least one row. Fill it or remove it."
        ) from None
    except OSError as error:
        raise DataError(
            f"{path}: {error.strerror}; expected a readable file. Correct the path or its rights."
        ) from error


def open_text_file(
    path: Path, decode: Decoder, index: Indexer, *, kind: str, name: Path | None = None
) -> TextFile:
    """A text file with its rows indexed, from the cache where it is large.

    Args:
        path: what is read.
        decode: bytes of a row to its fields.
        index: the whole file to the byte ranges of its rows, and how they are written.
        kind: distinguishes indexers in the cache.
        name: what messages call the file, `path` if not given.

    Raises:
        DataError: if it is missing, unreadable, without rows, or cannot be indexed.
    """
    data = map_file(path)
    name = name or path

    def build() -> Arrays:
        return index(data) | {"sha256": digest_of(data)}

    try:
        if len(data) < CACHE_FROM_BYTES:
            arrays = build()
        else:
            arrays = cached_arrays(f"rows|{kind}|{file_identity(path)}", build)
    except RowError as fault:
        raise DataError(f"{name}: {fault}. Correct the file.") from None
    if not len(arrays["ranges"]):
        raise DataError(f"{name}: rows = 0; expected at least one row. Fill it or remove it.")
    return TextFile(
        path=path,
        name=name,
        decode=decode,
        ranges=arrays["ranges"],
        sha256=arrays["sha256"].tobytes().hex(),
        is_quoted=bool(arrays.get("is_quoted", True)),
    )


def digest_of(data: mmap.mmap) -> np.ndarray:
    """SHA-256 of a file's content [32], uint8."""
    digest = hashlib.sha256()
    for start in range(0, len(data), BLOCK_BYTES):
        digest.update(data[start : start + BLOCK_BYTES])
    return np.frombuffer(digest.digest(), np.uint8)
