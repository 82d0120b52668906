"""Rows of DPR: a question with contexts that have a title and a text."""

from trainer.data.fields import Row, titled_text
from trainer.data.formats.adapter import NO_RECORD, Adapter, RowRecords
from trainer.data.records import IrRecord

QUERIES = ("question", "query")


def parse_ir(row: Row) -> IrRecord | RowRecords:
    """`{"question": str, "positive_ctxs": [...], "hard_negative_ctxs": [...], ...}`.

    Hard negatives are taken, and plain `negative_ctxs` only where there are none, as DPR does. Its
    files have questions without a positive, which it leaves out, and so does this.

    Raises:
        RowError: if a field is missing or wrong.
    """
    positives = row.items("positive_ctxs")
    if not positives:
        return NO_RECORD
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
