"""Texts by id: the corpus of a BEIR folder, or one that stands beside rows which name documents."""

from collections.abc import Sequence
from dataclasses import dataclass

from trainer.data.columns import listed
from trainer.data.fields import BlankTextError, Row, check_string, shown
from trainer.data.header import Header
from trainer.data.ids import Identified, Ids, index_ids
from trainer.data.layouts import part_files, short_name
from trainer.data.tables import CORPUS, Table, table_of
from trainer.errors import DataError

IDS = ("_id", "id", "docid", "doc_id", "document_id", "corpus-id", "pid", "DOCUMENT_ID")
TEXTS = ("text", "contents", "passage", "document_text", "DOCUMENT_TEXT")
"""Columns of a document; the first that a row has counts."""


@dataclass(frozen=True)
class DocumentTable:
    """Documents on disk, with the row of each id."""

    table: Table
    """Raw rows."""
    ids: Ids
    """Where each document is."""

    def text(self, field: str, identifier: object) -> str:
        """The text of a document that a row names.

        Args:
            field: what holds the id, for messages.
            identifier: a text or a whole number.

        Raises:
            RowError: if it is no id, or no document has it.
            BlankTextError: if the document has no text.
        """
        name = Row({field: identifier}).identifier(field)
        row = self.ids.row(field, name, short_name(self.table.files[0].name))
        if self.ids.is_blank(row):
            raise BlankTextError(field, shown(name), "a document with text")
        return self.at(row)

    def at(self, row: int) -> str:
        """Title and text of a row, possibly blank."""
        return document_text(self.table.row(row))

    def identifier(self, row: int) -> str:
        """The id of a row."""
        fields = self.table.row(row)
        return fields.identifier(fields.first(IDS))


def document_text(row: Row) -> str:
    """Title and text joined by a space, or the text alone.

    Raises:
        RowError: if one is no text.
    """
    field = row.first(TEXTS)
    text = check_string(field, row.require(field, "a text")).strip()
    title = check_string("title", row.values["title"]).strip() if row.has("title") else ""
    return f"{title} {text}".strip()


def check_header(table: Table, ids: Sequence[str], texts: Sequence[str]) -> None:
    """Refuse a file of fields that does not name them, as MS MARCO's `collection.tsv`.

    Args:
        table: documents or queries.
        ids: names of which the file has one.
        texts: likewise.

    Raises:
        DataError: if it has none of them.
    """
    if not table.is_delimited:
        return
    there = {column for row in table.sample() for column in row.values}
    missing = [names for names in (ids, texts) if there.isdisjoint(names)]
    if missing:
        expected = " and ".join(f"{first} (or {', '.join(others)})" for first, *others in missing)
        raise DataError(
            f"{table.files[0].name}:1: columns = {listed(there)}; expected a header that names "
            f"{expected}. {Header().advice}, such as {ids[0]} and {texts[0]} with a tab between."
        )


def open_documents(table: Table, *, skip: bool) -> DocumentTable:
    """Checks and indexes a corpus.

    Raises:
        DataError: if columns are not named, or a row is malformed or repeats an id, and is not
            skipped.
    """
    check_header(table, IDS, TEXTS)
    return DocumentTable(table, index_ids(table, identified, skip=skip))


def documents_beside(table: Table, *, owner: str, skip: bool) -> DocumentTable:
    """The corpus that stands in the folder of a table's first file.

    Raises:
        DataError: if there is none, or a row of it is malformed and not skipped.
    """
    path = table.files[0].path
    folder = table.files[0].name.parent
    files = part_files(folder, (CORPUS, "documents")) if path is not None else []
    if not files:
        raise DataError(
            f"{owner}: {folder}/{CORPUS}.jsonl = missing; expected the documents that the rows "
            "name by id, with docid and text. Put the file there, or write the texts into the rows."
        )
    return open_documents(table_of(files), skip=skip)


def identified(row: Row) -> Identified:
    """What is kept of a document.

    Raises:
        RowError: if it has no id, or its text is no text.
    """
    text = _text_or_blank(row)
    return Identified(row.identifier(row.first(IDS)), not text)


def _text_or_blank(row: Row) -> str:
    """The document's text; a page that is an image has null for it."""
    field = row.first(TEXTS)
    if row.values.get(field, "") is None and "image" in row.values:
        return ""
    return document_text(row)
