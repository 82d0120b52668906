"""Rows of DPR: a question with contexts that have a title and a text."""

from trainer.data.fields import Row, RowError, titled_text
from trainer.data.formats.adapter import Adapter
from trainer.data.records import IrRecord

QUERIES = ("question", "query")


def parse_ir(row: Row) -> IrRecord:
    """`{"question": str, "positive_ctxs": [...], "hard_negative_ctxs": [...], ...}`.

    Hard negatives are taken, and plain `negative_ctxs` only where there are none, as DPR does.

    Raises:
        RowError: if a field is missing or wrong, or there is no positive.
    """
    positives = row.items("positive_ctxs")
    if not positives:
        raise RowError("positive_ctxs", "[]", "at least one context")
    has_hard = row.has("hard_negative_ctxs") and row.items("hard_negative_ctxs")
    field = "hard_negative_ctxs" if has_hard else "negative_ctxs"
    negatives = row.items(field) if row.has(field) else ()
    texts = [titled_text(f"positive_ctxs[{i}]", item) for i, item in enumerate(positives)]
    return IrRecord(
        query=row.text(row.first(QUERIES)),
        positives=tuple(texts),
        negatives=row.kept(field, negatives, titled_text),
    )


ADAPTERS = (
    Adapter(
        name="dpr",
        task="ir",
        columns=frozenset({"positive_ctxs"}),
        parse=parse_ir,
        any_of=(QUERIES,),
        optional=("hard_negative_ctxs", "negative_ctxs"),
    ),
)
