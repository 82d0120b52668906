"""Whether the rows that a run began with are still the first ones of a source; it must not plan.

Files are told apart by their content: those that the run began with must be there whole, and the
last of them may be longer now. What cannot be cut after a row, such as a Parquet file or a JSON
array, is the same or another one. Records that are joined from several rows or files must be made
of the same ones.
"""

import hashlib
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from trainer.data.files import BLOCK_BYTES, TextFile
from trainer.data.ids import Lists
from trainer.data.label_source import LabelledSource
from trainer.data.premise_source import PremiseSource
from trainer.data.sources import BeirSource, Source
from trainer.data.table_source import TableSource
from trainer.data.tables import Table, TableFile

ROWS = "rows"
"""Name of the table whose rows are records, or parts of them."""
OTHERS = "they are others"
"""Why rows are no addition where their content alone says so."""
JOINED_OTHERS = "rows were added to records that it had, or others are missing or changed"
"""The same of records that are joined from several rows."""


@dataclass(frozen=True, kw_only=True)
class FileState:
    """One file as a run found it."""

    sha256: str
    """Of its content, hexadecimal."""
    size: int
    """Bytes of its content."""
    num_rows: int
    """Rows it has, malformed ones too."""
    is_quoted: bool = True
    """Whether quotes enclose fields, which the whole of a delimited file tells."""
    table: str = ROWS
    """What its rows are, where a source has several tables."""


@dataclass(frozen=True, kw_only=True)
class SourceState:
    """The data of a source as a run found it."""

    fingerprint: str
    """Changes when the content of any of its files does, hexadecimal."""
    num_rows: int
    """Records it has."""
    reading: str = ""
    """How rows become records: format and range of scores."""
    files: tuple[FileState, ...] = ()
    """In order; empty where rows added to the source cannot be told from others."""
    joined: str = ""
    """Digest of which rows each record is made of, hexadecimal; empty where each is one row."""


def state_of(source: Source) -> SourceState:
    """The data of a source as it is now."""
    if _reason_against(source):
        return SourceState(fingerprint=source.fingerprint, num_rows=len(source))
    return SourceState(
        fingerprint=source.fingerprint,
        num_rows=len(source),
        reading=_reading(source),
        files=tuple(
            _file_state(file, name) for name, table in _tables(source) for file in table.files
        ),
        joined=_joined(source, len(source)),
    )


def read_state(values: Mapping[str, Any]) -> SourceState:
    """The state that plain values of JSON spell.

    Raises:
        LookupError, TypeError: if they spell none.
    """
    files = tuple(FileState(**file) for file in values.get("files", ()))
    return SourceState(**{**values, "files": files})


def added_rows(old: SourceState, source: Source) -> int | str:
    """Records that were added after those that a run found; why not, if the first ones changed.

    Args:
        old: the data as the run found it.
        source: opened now.
    """
    if source.fingerprint == old.fingerprint:
        return 0
    reason = _reason_against(source)
    if reason or not old.files:
        return reason or "the release that began the run did not record its files"
    if _reading(source) != old.reading:
        return f"they are read as {_reading(source)}, and were read as {old.reading}"
    if len(source) < old.num_rows:
        return f"there are only {len(source):,} now"
    for name, table in _tables(source):
        if not _has_grown([file for file in old.files if file.table == name], table):
            return OTHERS if name == ROWS else f"its {name} are others"
    if old.joined:
        is_same = _joined(source, old.num_rows) == old.joined
        return len(source) - old.num_rows if is_same else JOINED_OTHERS
    num_table_rows = sum(file.num_rows for file in old.files if file.table == ROWS)
    assert isinstance(source, TableSource)
    if int(np.searchsorted(source.rows, num_table_rows)) != old.num_rows:
        return OTHERS
    return len(source) - old.num_rows


def all_added_rows(
    old: Mapping[str, SourceState], sources: Sequence[Source]
) -> dict[str, int | str]:
    """`added_rows` of each source that a run found and that is still there, by name."""
    return {
        source.name: added_rows(old[source.name], source)
        for source in sources
        if source.name in old
    }


def _reason_against(source: Source) -> str:
    """Why a source cannot grow while a run goes on; empty where it can."""
    if isinstance(source, LabelledSource):
        if source.label_texts is not None:
            return "rows and label_texts are drawn from the whole source"
        return "texts with labels are drawn beside each other from the whole source"
    rows = _rows_of(source)
    if source.teacher_vectors is not None:
        return "the vectors of teacher_embeddings are one file"
    if rows is not None and rows.left_out:
        return "data.overlap leaves rows out by what evaluation sets ask"
    if any(file.path is None for _, table in _tables(source) for file in table.files):
        return "a set of the hub does not say which of its rows are new"
    return ""


def _rows_of(source: Source) -> TableSource | None:
    """The source whose records stand row by row, by itself or below one that joins them."""
    if isinstance(source, PremiseSource):
        return source.table
    return source if isinstance(source, TableSource) else None


def _tables(source: Source) -> Iterator[tuple[str, Table]]:
    """What a source reads, by name."""
    if isinstance(source, BeirSource):
        yield "documents", source.records.folder.corpus
        yield "queries", source.records.folder.queries
    rows = _rows_of(source)
    if rows is not None:
        yield ROWS, rows.reader.table
        if rows.documents is not None:
            yield "documents", rows.documents.table


def _file_state(file: TableFile, name: str) -> FileState:
    assert file.path is not None
    return FileState(
        sha256=file.sha256,
        size=os.stat(file.path).st_size,
        num_rows=len(file),
        is_quoted=not isinstance(file, TextFile) or file.is_quoted,
        table=name,
    )


def _joined(source: Source, count: int) -> str:
    """Digest of the rows that the first records are made of; empty where each is one row."""
    if isinstance(source, BeirSource):
        records = source.records
        return _digest(records.query[:count], *_first(records.positives, count),
                       *_first(records.negatives, count))  # fmt: skip
    if isinstance(source, PremiseSource):
        starts = source.starts[: count + 1]
        return _digest(starts, source.members[: starts[-1]])
    return ""


def _first(lists: Lists, count: int) -> tuple[np.ndarray, np.ndarray]:
    ends = lists.ends[:count]
    return ends, lists.values[: ends[-1] if count else 0]


def _digest(*arrays: np.ndarray) -> str:
    """Of numbers of rows, with the length of each array."""
    digest = hashlib.sha256()
    for values in arrays:
        digest.update(f"{len(values)} ".encode())
        digest.update(values.astype("<i8").tobytes())
    return digest.hexdigest()


def _reading(source: Source) -> str:
    """How rows become records, for a person too."""
    rows = _rows_of(source)
    if rows is None:
        return "beir"
    low, high = rows.score_range
    return f"{rows.reader.adapter.name} {low:g}..{high:g}"


def _has_grown(old: Sequence[FileState], table: Table) -> bool:
    """Whether a table begins with the rows of older files, the last of which may be longer now."""
    if not old or len(table.files) < len(old):
        return False
    *whole, last = old
    now = [_file_state(file, last.table) for file in table.files[: len(old)]]
    if now[:-1] != whole:
        return False
    return now[-1] == last or _begins_with(table.files[len(whole)], last)


def _begins_with(file: TableFile, old: FileState) -> bool:
    """Whether a text file's first bytes are an older one, which ends where a row does."""
    if not isinstance(file, TextFile) or file.is_quoted != old.is_quoted:
        return False
    if len(file) < old.num_rows or len(file.data) < old.size:
        return False
    start, end = map(int, file.bounds[old.num_rows - 1])
    if start + len(file.data[start:end].rstrip(b"\r\n")) > old.size:
        return False
    if len(file) > old.num_rows and int(file.bounds[old.num_rows, 0]) < old.size:
        return False
    digest = hashlib.sha256()
    for start in range(0, old.size, BLOCK_BYTES):
        digest.update(file.data[start : min(start + BLOCK_BYTES, old.size)])
    return digest.hexdigest() == old.sha256
