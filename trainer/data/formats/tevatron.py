"""Rows of Tevatron: a query with passages that have a title and a text."""

from trainer.data.fields import Row, RowError, titled_text
from trainer.data.formats.adapter import Adapter
from trainer.data.records import IrRecord


def parse_ir(row: Row) -> IrRecord:
    """`{"query": str, "positive_passages": [{"title", "text"}], "negative_passages": [...]}`.

    Raises:
        RowError: if a field is missing or wrong, or there is no positive.
    """
    positives = row.items("positive_passages")
    if not positives:
        raise RowError("positive_passages", "[]", "at least one passage")
    has_negatives = row.has("negative_passages")
    negatives = row.items("negative_passages") if has_negatives else ()
    return IrRecord(
        query=row.text(row.first(("query", "query_text"))),
        positives=tuple(
            titled_text(f"positive_passages[{i}]", item) for i, item in enumerate(positives)
        ),
        negatives=row.kept("negative_passages", negatives, titled_text),
    )


ADAPTERS = (
    Adapter(
        name="tevatron",
        task="ir",
        columns=frozenset({"positive_passages"}),
        parse=parse_ir,
    ),
)
