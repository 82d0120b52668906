"""Rows of Tevatron 2: a query with the ids of documents, whose texts are in a corpus beside it."""

from typing import NoReturn

from trainer.data.fields import Row, RowError
from trainer.data.formats.adapter import Adapter, Documents
from trainer.data.records import IrRecord

POSITIVES, NEGATIVES = "positive_document_ids", "negative_document_ids"
QUERIES = ("query_text", "query")


def joined(documents: Documents, row: Row) -> IrRecord:
    """`{"query_text": str, "positive_document_ids": [id], "negative_document_ids": [id]}`.

    Raises:
        RowError: if a field is missing or wrong, there is no positive, or a document has no text.
    """
    positives = row.items(POSITIVES)
    if not positives:
        raise RowError(POSITIVES, "[]", "at least one id")
    negatives = row.items(NEGATIVES) if row.has(NEGATIVES) else ()
    texts = [documents.text(f"{POSITIVES}[{i}]", item) for i, item in enumerate(positives)]
    return IrRecord(
        query=row.text(row.first(QUERIES)),
        positives=tuple(texts),
        negatives=row.kept(NEGATIVES, negatives, documents.text),
    )


def without_documents(row: Row) -> NoReturn:
    """Rows of ids alone say nothing.

    Raises:
        RowError: always.
    """
    raise RowError(POSITIVES, "ids", "a corpus beside the file")


ADAPTERS = (
    Adapter(
        name="tevatron-ids",
        task="ir",
        columns=frozenset({POSITIVES}),
        parse=without_documents,
        joined=joined,
        any_of=(QUERIES,),
        optional=(NEGATIVES,),
    ),
)
