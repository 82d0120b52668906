"""A path of a recipe to one table of raw rows, whatever files it names; rows keep their place."""

import glob
import hashlib
from bisect import bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import accumulate
from pathlib import Path
from typing import Any, Protocol

from trainer.data.fields import Row, RowError
from trainer.data.files import TextFile, array_ranges, decode_json, line_ranges, open_text_file
from trainer.errors import DataError

ROWS_TO_FIND_COLUMNS = 100
"""Rows that are looked at to find a format; an early row may be spoiled."""
JSON_SUFFIXES = (".jsonl", ".ndjson", ".json")


class TableFile(Protocol):
    """Rows of one file."""

    @property
    def path(self) -> Path:
        """The file."""

    @property
    def sha256(self) -> str:
        """Content of the file, hexadecimal."""

    def __len__(self) -> int: ...

    def values(self, row: int) -> Mapping[str, Any]:
        """Raw fields of a row."""

    def place(self, row: int) -> str:
        """Where the row stands, for messages."""


@dataclass(frozen=True)
class Table:
    """The rows of one or more files, one after another."""

    files: tuple[TableFile, ...]
    """In the order of their names."""
    typed: bool = True
    """Whether the files tell numbers from texts."""
    ends: tuple[int, ...] = field(init=False)
    """Rows up to and including each file."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "ends", tuple(accumulate(len(file) for file in self.files)))

    def __len__(self) -> int:
        return self.ends[-1]

    def row(self, index: int) -> Row:
        """The fields of a row, to be checked when asked for.

        Raises:
            RowError: if the row cannot be decoded.
        """
        file, inner = self._locate(index)
        return Row(file.values(inner), self.typed)

    def place(self, index: int) -> str:
        """`path:line` of a row."""
        file, inner = self._locate(index)
        return file.place(inner)

    @property
    def columns(self) -> frozenset[str]:
        """Names of the fields of the first rows that can be decoded.

        Raises:
            DataError: if none of them can be decoded.
        """
        names: set[str] = set()
        faults = []
        for index in range(min(len(self), ROWS_TO_FIND_COLUMNS)):
            try:
                names.update(self.row(index).values)
            except RowError as fault:
                faults.append(fault)
        if not names:
            raise self.error(0, faults[0])
        return frozenset(names)

    @property
    def name(self) -> str:
        """The file, or the first of several."""
        more = f" and {len(self.files) - 1} more" if len(self.files) > 1 else ""
        return f"{self.files[0].path}{more}"

    @property
    def sha256(self) -> str:
        """One digest for the contents of all files."""
        return hashlib.sha256("".join(file.sha256 for file in self.files).encode()).hexdigest()

    def error(self, index: int, fault: RowError) -> DataError:
        """A row's fault with its place, ready to be raised."""
        return DataError(
            f"{self.place(index)}: {fault}. Correct the row, or leave such rows out with "
            "data.on_bad_row=skip."
        )

    def _locate(self, index: int) -> tuple[TableFile, int]:
        number = bisect_right(self.ends, index)
        return self.files[number], index - (self.ends[number] - len(self.files[number]))


def open_table(pattern: str, root: str, *, owner: str) -> Table:
    """The table that a path, folder or glob names.

    Args:
        pattern: as in the recipe; relative to `root`.
        root: `data.root`.
        owner: recipe key that holds the pattern, for messages.

    Raises:
        DataError: if nothing is there, or a file is unreadable, empty or of an unknown kind.
    """
    return table_of(find_files(pattern, root, owner=owner))


def table_of(paths: Sequence[Path]) -> Table:
    """The table of some files, all of one kind.

    Raises:
        DataError: if one is unreadable, empty or of an unknown kind.
    """
    return Table(tuple(_open_json(path) for path in paths))


def find_files(pattern: str, root: str, *, owner: str) -> list[Path]:
    """The files that a path, folder or glob names, sorted.

    Raises:
        DataError: if there are none.
    """
    path = Path(root).expanduser() / Path(pattern).expanduser()
    if path.is_dir():
        found = [file for file in path.iterdir() if _is_data(file)]
    elif path.exists():
        found = [path]
    else:
        found = [Path(name) for name in glob.glob(str(path), recursive=True)]
    files = sorted(file.absolute() for file in found if file.is_file())
    if not files:
        raise DataError(
            f"{owner}: path = {pattern}; expected a file, a folder with data files or a glob "
            f"(looked for {path.absolute()}). Correct the path or data.root."
        )
    return files


def _is_data(path: Path) -> bool:
    return path.suffix in JSON_SUFFIXES


def _open_json(path: Path) -> TextFile:
    """JSON lines, or, in a `.json` file that starts with a bracket, an array of objects."""
    is_array = path.suffix == ".json" and path.is_file() and _first_byte(path) == b"["
    return open_text_file(path, decode_json, array_ranges if is_array else line_ranges)


def _first_byte(path: Path) -> bytes:
    with path.open("rb") as file:
        return file.read(1024).removeprefix(b"\xef\xbb\xbf").lstrip()[:1]
