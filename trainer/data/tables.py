"""A path of a recipe to one table of raw rows, whatever files it names; rows keep their place."""

import glob
import hashlib
import logging
import re
from bisect import bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import accumulate
from pathlib import Path
from typing import Any, Protocol

from trainer.data import compressed
from trainer.data.arrow import open_arrow_file
from trainer.data.columns import Columns
from trainer.data.delimited import (
    Delimited,
    find_delimiter,
    index_delimited,
    read_header,
    split_row,
)
from trainer.data.encodings import as_utf8
from trainer.data.fields import BlankNegativeError, Row, RowError, shown
from trainer.data.files import (
    TextFile,
    decode_array,
    decode_json,
    index_array,
    index_lines,
    map_file,
    open_text_file,
)
from trainer.data.header import Header
from trainer.errors import DataError

logger = logging.getLogger(__name__)

ROWS_TO_FIND_COLUMNS = 100
"""Rows that are looked at to find a format; an early row may be malformed."""
CORPUS = "corpus"
"""Name of a file whose rows are not records but what records name by id."""
SHARD = re.compile(r"[-_.]\d+$")
"""Number of a shard where nothing says how many there are: `corpus-0.jsonl`."""
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
    columns: Columns = field(default_factory=Columns)
    """Names that a recipe gives to columns."""
    ends: tuple[int, ...] = field(init=False)
    """Rows up to and including each file."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "ends", tuple(accumulate(len(file) for file in self.files)))

    def __len__(self) -> int:
        return self.ends[-1]

    def row(self, index: int, dropped: list[RowError] | None = None) -> Row:
        """The fields of a row under the recipe's names, to be checked when asked for.

        Args:
            index: which row.
            dropped: takes the faults of blank negatives, which are then left out.

        Raises:
            RowError: if the row cannot be decoded.
        """
        file, inner = self._locate(index)
        return Row(self.columns.renamed(file.values(inner)), dropped)

    def place(self, index: int) -> str:
        """`path:line` of a row."""
        file, inner = self._locate(index)
        return file.place(inner)

    def sample(self) -> tuple[Row, ...]:
        """Those of the first rows that can be decoded; a format is found by them.

        Raises:
            DataError: if none of them can be decoded.
        """
        rows, faults = [], []
        for index in range(min(len(self), ROWS_TO_FIND_COLUMNS)):
            try:
                rows.append(self.row(index))
            except RowError as fault:
                faults.append(fault)
        if faults and not rows:
            raise self.error(0, faults[0])
        return tuple(rows)

    @property
    def name(self) -> str:
        """The file, or the first of several."""
        more = f" and {len(self.files) - 1} more" if len(self.files) > 1 else ""
        return f"{self.files[0].name}{more}"

    @property
    def is_delimited(self) -> bool:
        """Whether a file has fields with something between them, whose names it may lack."""
        return any(
            file.path is not None and kind_of(file.name) in DELIMITERS for file in self.files
        )

    @property
    def sha256(self) -> str:
        """One digest for the contents of all files."""
        return hashlib.sha256("".join(file.sha256 for file in self.files).encode()).hexdigest()

    def error(self, index: int, fault: RowError, advice: str = "") -> DataError:
        """A row's fault with its place, ready to be raised.

        Args:
            index: of the row.
            fault: what is wrong.
            advice: what to do; empty: correct the row or leave it out, where it may be left out.
        """
        skipped = "negatives" if isinstance(fault, BlankNegativeError) else "rows"
        usual = f"Correct the row, or leave such {skipped} out with data.on_bad_row=skip."
        field = self.columns.place_of(fault.field)
        return DataError(
            f"{self.place(index)}: {field} = {fault.got}; expected {fault.expected}. "
            f"{advice or usual}"
        )

    def _locate(self, index: int) -> tuple[TableFile, int]:
        number = bisect_right(self.ends, index)
        return self.files[number], index - (self.ends[number] - len(self.files[number]))


def open_table(pattern: str, root: str, *, owner: str, header: Header | None = None) -> Table:
    """The table that a path, folder or glob names.

    Args:
        pattern: as in the recipe; relative to `root`.
        root: `data.root`.
        owner: recipe key that holds the pattern, for messages.
        header: of delimited files; they begin with the names of their columns if not given.

    Raises:
        DataError: if nothing is there, or a file is unreadable, empty or of an unknown kind.
    """
    return table_of(find_files(pattern, root, owner=owner), header)


def table_of(paths: Sequence[Path], header: Header | None = None) -> Table:
    """The table of some files.

    Args:
        paths: at least one.
        header: of delimited files; they begin with the names of their columns if not given.

    Raises:
        DataError: if one is unreadable, empty or of an unknown kind.
    """
    return Table(tuple(_open_file(path, header or Header()) for path in paths))


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

    A folder with Arrow files is one that `datasets` saved, whose JSON files describe it. A corpus
    beside other files is not rows but what they name by id.
    """
    by_kind: dict[str, list[Path]] = {}
    for file in data_files(folder):
        by_kind.setdefault(kind_of(file), []).append(file)
    if ".arrow" in by_kind:
        return by_kind[".arrow"]
    for kind, files in list(by_kind.items()):
        rows = [file for file in files if not _is_corpus(file)]
        if len(rows) < len(files) and (rows or len(by_kind) > 1):
            logger.info("%s: a corpus, whose rows are not records", folder)
            by_kind[kind] = rows
    by_kind = {kind: files for kind, files in by_kind.items() if files}
    if len(by_kind) > 1:
        raise DataError(
            f"{owner}: path = {folder}; expected data files of one kind, not "
            f"{', '.join(sorted(by_kind))}. Name those meant with a glob, such as "
            f"{folder.name}/*{min(by_kind)}."
        )
    return [file for files in by_kind.values() for file in files]


def _is_corpus(file: Path) -> bool:
    return SHARD.sub("", stem_of(file)).partition(".")[0].lower() == CORPUS


def stem_of(file: Path) -> str:
    """Name without suffixes, and without the number of a shard: `dev` of `dev-00000-of-00001`."""
    stem = Path(file.stem).stem if file.suffix.lower() in compressed.SUFFIXES else file.stem
    head, _, shards = stem.partition("-0")
    return head if shards and "-of-0" in stem else stem


def data_files(folder: Path) -> list[Path]:
    """The files of a folder that can be tables, sorted; none if it is no folder."""
    if not folder.is_dir():
        return []
    return sorted(file for file in folder.iterdir() if kind_of(file) in KINDS)


def kind_of(path: Path) -> str:
    """Suffix of the plain file, in small letters."""
    is_packed = path.suffix.lower() in compressed.SUFFIXES
    return (Path(path.stem).suffix if is_packed else path.suffix).lower()


def open_text(path: Path) -> Path:
    """The file that is read in place of a packed one, or of one in another encoding.

    Raises:
        DataError: if it is missing, damaged, or the cache has no room.
    """
    return as_utf8(compressed.unpacked(path), path)


def _open_file(path: Path, header: Header) -> TableFile:
    """Opens a file as its suffix says.

    Raises:
        DataError: if it is unreadable, empty or of an unknown kind.
    """
    kind = kind_of(path)
    if kind not in KINDS:
        known = ", ".join([*KINDS, *(f"the same with {suffix}" for suffix in compressed.SUFFIXES)])
        raise DataError(
            f"{path}: suffix = {kind or 'none'}; expected {known}. Rename or convert it."
        )
    if kind not in DELIMITERS and header.said is not None:
        raise DataError(
            f"{path}: {header.owner}.header = {str(header.said).lower()}; expected nothing for "
            f"{kind} files, whose rows name their fields. Remove it."
        )
    if kind in COLUMNAR:
        return open_arrow_file(compressed.unpacked(path))
    plain = open_text(path)
    if kind in DELIMITERS:
        return _open_delimited(plain, path, DELIMITERS[kind], header)
    return _open_json(plain, path, may_be_array=kind == ".json")


def _open_json(plain: Path, path: Path, *, may_be_array: bool) -> TextFile:
    """Objects or arrays of texts, one a line, or all in one array."""
    start = _first_bytes(plain)
    if may_be_array and start[:1] == b"[" and start[1:2] != b'"':
        decode = decode_array if start[1:2] == b"[" else decode_json
        return open_text_file(plain, decode, index_array, kind="array", name=path)
    decode = decode_array if start == b'["' else decode_json
    return open_text_file(plain, decode, index_lines, kind="lines", name=path)


def _open_delimited(plain: Path, path: Path, usual: str, header: Header) -> TextFile:
    """A CSV or TSV file; its first row names the columns if recipe and format do not deny it."""
    delimiter = find_delimiter(map_file(plain), usual, header)
    if delimiter != usual:
        logger.info("%s: the first row is separated by %r, and so are all", path, delimiter)
    index = partial(index_delimited, delimiter=delimiter, is_plain=header.is_plain)
    kind = f"rows{delimiter}{'plain' if header.is_plain else ''}"
    file = open_text_file(plain, decode_json, index, kind=kind, name=path)
    names = _column_names(file, delimiter, header)
    if header.is_there:
        file = replace(file, ranges=file.ranges[1:])
    if not len(file):
        raise DataError(f"{path}: rows = 0; expected at least one row. Fill it or remove it.")
    decode = Delimited(delimiter, names, file.is_quoted, header.is_plain).decode
    return replace(file, decode=decode)


def _column_names(file: TextFile, delimiter: str, header: Header) -> tuple[str, ...]:
    """What the columns of a delimited file are called, by its first row or without it.

    Raises:
        DataError: if the row can be no header, or nothing says whether it is one.
    """
    start, end = file.ranges[0]
    row = file.data[start:end]
    try:
        if header.is_there:
            return read_header(row, delimiter, is_quoted=file.is_quoted)
        fields = split_row(row, delimiter, is_quoted=file.is_quoted)
    except RowError as fault:
        advice = f"Correct the header. {header.advice}" if header.is_there else "Correct the row"
        raise DataError(f"{file.place(0)}: {fault}. {advice}.") from None
    if header.is_there is None:
        raise DataError(
            f"{file.place(0)}: {header.owner}.header = (missing) beside a first row "
            f"{shown(fields)}; expected true if this row names the columns, or false if it is a "
            "row like the others: by their order alone nobody can tell. Add it to the recipe."
        )
    return header.names(len(fields))


def _first_bytes(path: Path) -> bytes:
    """The first two bytes that are not blank; nothing if the file cannot be read."""
    if not path.is_file():
        return b""
    with path.open("rb") as file:
        return b"".join(file.read(1024).removeprefix(b"\xef\xbb\xbf").split())[:2]
