"""Judgements: which documents answer which queries, in every form that they are published in.

Lines of BEIR (`query-id, corpus-id, score`, separated by tabs, with or without a header), lines of
TREC (`query iteration document grade`), and tables with such columns.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from trainer.data.fields import Row, RowError, shown
from trainer.data.files import TextFile, index_lines, open_text_file
from trainer.data.layouts import SetFolder, label_files, qrel_files
from trainer.data.tables import KINDS, Table, kind_of, open_text, table_of
from trainer.errors import DataError

QUERY_NAMES = ("query-id", "query_id", "qid", "QUERY_ID")
DOCUMENT_NAMES = ("corpus-id", "corpus_id", "doc_id", "docid", "document_id", "pid", "DOCUMENT_ID")
GAIN_NAMES = ("score", "relevance", "rel", "label", "grade", "gain", "RELEVANCE")
"""Columns of tables; by those of gains a header is known, any other word is a malformed line."""


@dataclass(frozen=True)
class Judgement:
    """One row."""

    query: str
    document: str
    gain: int


@dataclass(frozen=True, kw_only=True)
class Qrels:
    """The judgements of a split, one a row."""

    table: Table
    """Raw rows."""
    names_negatives: bool = False
    """Whether a gain below 0 makes a hard negative; elsewhere it is a grade like another."""

    def judgement(self, index: int) -> Judgement:
        """A row.

        Raises:
            RowError: if a field is missing, or the gain no whole number.
        """
        row = self.table.row(index)
        query = row.identifier(row.first(QUERY_NAMES))
        document = row.identifier(row.first(DOCUMENT_NAMES))
        return Judgement(query, document, _gain(row))


def open_qrels(place: SetFolder, split: str) -> Qrels:
    """The judgements of a split, without the header.

    Raises:
        DataError: if the file is missing or empty, or its first line is no text.
    """
    labels = [] if (place.path / "qrels").is_dir() else label_files(place.path)
    files = labels or qrel_files(place, split)
    if all(_has_lines(file) for file in files):
        return Qrels(table=Table(tuple(map(_open_lines, files))))
    return Qrels(table=table_of(files), names_negatives=bool(labels))


def _has_lines(path: Path) -> bool:
    return kind_of(path) == ".tsv" or kind_of(path) not in KINDS


def _gain(row: Row) -> int:
    """The gain; a table without such a column names relevant documents only."""
    name = row.first(GAIN_NAMES)
    if name not in row.values:
        return 1
    gain = row.number(name)
    if gain != int(gain):
        raise RowError(name, str(gain), "a whole number")
    return int(gain)


def _open_lines(path: Path) -> TextFile:
    """A file of lines in BEIR's or TREC's form, as its first line is."""
    file = open_text_file(open_text(path), decode_beir, index_lines, kind="lines", name=path)
    try:
        first = _line_text(file.data[file.ranges[0, 0] : file.ranges[0, 1]])
    except RowError as fault:
        raise DataError(f"{file.place(0)}: {fault}. Correct the header.") from None
    if len(first.split("\t")) != 3 and len(first.split()) == 4:
        file = replace(file, decode=decode_trec)
    if first.split()[-1].lower() in GAIN_NAMES and len(first.split("\t")) in (3, 4):
        file = replace(file, ranges=file.ranges[1:])
    if not len(file):
        raise DataError(f"{path}: rows = 0; expected at least one judgement. Fill it or remove it.")
    return file


def decode_beir(line: bytes) -> Mapping[str, Any]:
    """Query, document and gain, separated by tabs.

    Raises:
        RowError: if it is not UTF-8 or has not three fields.
    """
    return _named(
        line, _line_text(line).split("\t"), "query-id, corpus-id and score, tab-separated"
    )


def decode_trec(line: bytes) -> Mapping[str, Any]:
    """Query, iteration, document and grade, separated by tabs or spaces.

    Raises:
        RowError: if it is not UTF-8 or has not four fields.
    """
    fields = _line_text(line).split()
    expected = "query, iteration, document and grade, as in the first line"
    if len(fields) != 4:
        raise RowError("line", shown(line[:60].decode(errors="replace")), expected)
    return _named(line, [fields[0], *fields[2:]], expected)


def _named(line: bytes, fields: Sequence[str], expected: str) -> Mapping[str, Any]:
    if len(fields) != 3:
        raise RowError("line", shown(line[:60].decode(errors="replace")), expected)
    return dict(zip(("query-id", "corpus-id", "score"), fields, strict=True))


def _line_text(line: bytes) -> str:
    try:
        return line.decode().rstrip("\r\n")
    except UnicodeDecodeError:
        raise RowError("line", ascii(bytes(line[:24])), "UTF-8 text") from None
