"""Rows of Tevatron: a query with passages that have a title and a text."""

from typing import Any

from trainer.data.fields import Row, RowError, check_string, check_text, shown
from trainer.data.formats.adapter import Adapter
from trainer.data.records import IrRecord


def parse_ir(row: Row) -> IrRecord:
    """`{"query": str, "positive_passages": [{"title", "text"}], "negative_passages": [...]}`.

    Raises:
        RowError: if a field is missing or wrong, or there is no positive.
    """
    positives = _passages(row, "positive_passages")
    if not positives:
        raise RowError("positive_passages", "[]", "at least one passage")
    has_negatives = row.has("negative_passages")
    return IrRecord(
        query=row.text("query"),
        positives=positives,
        negatives=_passages(row, "negative_passages") if has_negatives else (),
    )


def _passages(row: Row, field: str) -> tuple[str, ...]:
    return tuple(_passage(f"{field}[{i}]", item) for i, item in enumerate(row.items(field)))


def _passage(field: str, passage: Any) -> str:
    """Title and text joined by a space, or the text alone."""
    if not isinstance(passage, dict):
        raise RowError(field, shown(passage), "an object with title and text")
    text = check_text(f"{field}.text", passage.get("text"))
    title = passage.get("title")
    if title is not None:
        check_string(f"{field}.title", title)
    return f"{title} {text}" if title else text


ADAPTERS = (
    Adapter(
        name="tevatron",
        task="ir",
        columns=frozenset({"query", "positive_passages"}),
        parse=parse_ir,
    ),
)
