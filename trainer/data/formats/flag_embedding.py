"""Rows of FlagEmbedding: `query, pos, neg`, with scores and a prompt that may be there."""

from trainer.data.fields import Row
from trainer.data.formats.adapter import Adapter
from trainer.data.records import IrRecord


def parse_ir(row: Row) -> IrRecord:
    """`{"query": str, "pos": [str], "neg": [str]}`; teacher scores are not used.

    Raises:
        RowError: if a field is missing or wrong, or there is no positive.
    """
    return IrRecord(
        query=row.text("query"), positives=row.texts("pos"), negatives=row.optional_texts("neg")
    )


def prompt(row: Row) -> str:
    """The instruction that the row carries."""
    found = row.values.get("prompt")
    return found if isinstance(found, str) else ""


ADAPTERS = (
    Adapter(
        name="flag-embedding",
        task="ir",
        columns=frozenset({"query", "pos"}),
        parse=parse_ir,
        instruction=prompt,
    ),
)
