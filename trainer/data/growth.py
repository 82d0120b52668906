"""Whether the rows that a run began with are still the first ones of a source; it must not plan.

Files are told apart by their content: those that the run began with must be there whole, and the
last of them may be longer now. What cannot be cut after a row, such as a Parquet file or a JSON
array, is the same or another one.
"""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from trainer.data.files import BLOCK_BYTES, TextFile
from trainer.data.sources import Source
from trainer.data.table_source import TableSource
from trainer.data.tables import TableFile


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


def state_of(source: Source) -> SourceState:
    """The data of a source as it is now."""
    if not isinstance(source, TableSource):
        return SourceState(fingerprint=source.fingerprint, num_rows=len(source))
    return SourceState(
        fingerprint=source.fingerprint,
        num_rows=len(source),
        reading=_reading(source),
        files=_files(source),
    )


def read_state(values: Mapping[str, Any]) -> SourceState:
    """The state that plain values of JSON spell.

    Raises:
        LookupError, TypeError: if they spell none.
    """
    files = tuple(FileState(**file) for file in values.get("files", ()))
    return SourceState(**{**values, "files": files})


def added_rows(old: SourceState, source: Source) -> int | None:
    """Records that were added after those that a run found; None if the first ones are others."""
    if source.fingerprint == old.fingerprint:
        return 0
    if not isinstance(source, TableSource) or not old.files or _reading(source) != old.reading:
        return None
    now, table = state_of(source), source.reader.table
    *whole, last = old.files
    if len(now.files) < len(old.files) or now.files[: len(whole)] != tuple(whole):
        return None
    at = len(whole)
    if now.files[at] != last and not _begins_with(table.files[at], last):
        return None
    num_table_rows = sum(file.num_rows for file in old.files)
    if int(np.searchsorted(source.rows, num_table_rows)) != old.num_rows:
        return None
    return len(source) - old.num_rows


def all_added_rows(
    old: Mapping[str, SourceState], sources: Sequence[Source]
) -> dict[str, int | None]:
    """`added_rows` of each source that a run found and that is still there, by name."""
    return {
        source.name: added_rows(old[source.name], source)
        for source in sources
        if source.name in old
    }


def _files(source: TableSource) -> tuple[FileState, ...]:
    """The files of a source; none where records depend on more than their rows."""
    files = source.reader.table.files
    if source.documents is not None or source.teacher_vectors is not None or source.left_out:
        return ()
    if len(source.marks) != len(files):
        return ()  # a set of the hub
    return tuple(
        FileState(
            sha256=file.sha256,
            size=mark.size_bytes,
            num_rows=len(file),
            is_quoted=not isinstance(file, TextFile) or file.is_quoted,
        )
        for file, mark in zip(files, source.marks, strict=True)
    )


def _reading(source: TableSource) -> str:
    low, high = source.score_range
    return f"{source.reader.adapter.name} {low:g}..{high:g}"


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
