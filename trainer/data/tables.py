"""A path of a recipe to one table of raw rows, whatever files it names; rows keep their place."""

import glob
import hashlib
from bisect import bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import accumulate
from pathlib import Path
from typing import Any, Protocol

from trainer.data import compressed
from trainer.data.arrow import open_arrow_file
from trainer.data.delimited import Delimited, delimited_ranges, read_header
from trainer.data.fields import Row, RowError
from trainer.data.files import TextFile, array_ranges, decode_json, line_ranges, open_text_file
from trainer.errors import DataError

ROWS_TO_FIND_COLUMNS = 100
"""Rows that are looked at to find a format; an early row may be spoiled."""
DELIMITERS = {".csv": ",", ".tsv": "\t"}
COLUMNAR = (".parquet", ".arrow")
KINDS = (".jsonl", ".ndjson", ".json", *DELIMITERS, *COLUMNAR)


class TableFile(Protocol):
    """Rows of one file."""

    @property
    def path(self) -> Path | None:
        """What is read; None for a set of the hub."""

    @property
    def name(self) -> Path:
        """What messages call it."""

    @property
    def sha256(self) -> str:
        """Content of the file, hexadecimal."""

    @property
    def typed(self) -> bool:
        """Whether it tells numbers from texts."""

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
        return Row(file.values(inner), file.typed)

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
        if faults and not names:
            raise self.error(0, faults[0])
        return frozenset(names)

    @property
    def name(self) -> str:
        """The file, or the first of several."""
        more = f" and {len(self.files) - 1} more" if len(self.files) > 1 else ""
        return f"{self.files[0].name}{more}"

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
    """The table of some files.

    Raises:
        DataError: if one is unreadable, empty or of an unknown kind.
    """
    return Table(tuple(_open_file(path) for path in paths))


def find_files(pattern: str, root: str, *, owner: str) -> list[Path]:
    """The files that a path, folder or glob names, sorted.

    Raises:
        DataError: if there are none, or a folder holds several kinds of data files.
    """
    path = Path(root).expanduser() / Path(pattern).expanduser()
    if path.is_dir():
        found = _in_folder(path, owner)
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


def _in_folder(folder: Path, owner: str) -> list[Path]:
    """The data files of a folder, which are all of one kind.

    A folder with Arrow files is one that `datasets` saved, whose JSON files describe it.
    """
    by_kind: dict[str, list[Path]] = {}
    for file in folder.iterdir():
        if _kind(file) in KINDS:
            by_kind.setdefault(_kind(file), []).append(file)
    if ".arrow" in by_kind:
        return by_kind[".arrow"]
    if len(by_kind) > 1:
        raise DataError(
            f"{owner}: path = {folder}; expected data files of one kind, not "
            f"{', '.join(sorted(by_kind))}. Name those meant with a glob, such as "
            f"{folder.name}/*{min(by_kind)}."
        )
    return [file for files in by_kind.values() for file in files]


def _kind(path: Path) -> str:
    """Suffix of the plain file."""
    return Path(path.stem).suffix if path.suffix in compressed.SUFFIXES else path.suffix


def _open_file(path: Path) -> TableFile:
    """Opens a file as its suffix says.

    Raises:
        DataError: if it is unreadable, empty or of an unknown kind.
    """
    kind = _kind(path)
    if kind not in KINDS:
        known = ", ".join([*KINDS, *(f"the same with {suffix}" for suffix in compressed.SUFFIXES)])
        raise DataError(
            f"{path}: suffix = {kind or 'none'}; expected {known}. Rename or convert it."
        )
    plain = compressed.unpacked(path)
    if kind in COLUMNAR:
        return open_arrow_file(plain)
    if kind in DELIMITERS:
        return _open_delimited(plain, path, DELIMITERS[kind])
    if kind == ".json" and _first_byte(plain) == b"[":
        return open_text_file(plain, decode_json, array_ranges, kind="array", name=path)
    return open_text_file(plain, decode_json, line_ranges, kind="lines", name=path)


def _open_delimited(plain: Path, path: Path, delimiter: str) -> TextFile:
    """A CSV or TSV file; its first row names the columns."""
    index = partial(delimited_ranges, delimiter=delimiter)
    file = open_text_file(plain, decode_json, index, kind=f"rows{delimiter}", name=path)
    start, end = file.ranges[0]
    try:
        header = read_header(file.data[start:end], delimiter)
    except RowError as fault:
        raise DataError(f"{file.place(0)}: {fault}. Correct the header.") from None
    if len(file) == 1:
        raise DataError(f"{path}: rows = 0; expected at least one row. Fill it or remove it.")
    decode = Delimited(delimiter, header).decode
    return replace(file, ranges=file.ranges[1:], decode=decode, typed=False)


def _first_byte(path: Path) -> bytes:
    """The first byte that is not blank; nothing if the file cannot be read."""
    if not path.is_file():
        return b""
    with path.open("rb") as file:
        return file.read(1024).removeprefix(b"\xef\xbb\xbf").lstrip()[:1]
