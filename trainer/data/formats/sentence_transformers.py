"""Rows as sentence-transformers takes them: triplets and scored pairs, by column name."""

from trainer.data.fields import Row
from trainer.data.formats.adapter import Adapter, ScoredPair
from trainer.data.records import IrRecord


def parse_ir(row: Row) -> IrRecord:
    """`anchor, positive[, negative | negative_1, negative_2, ...]`.

    Raises:
        RowError: if a field is missing or wrong.
    """
    names = [name for name in row.values if name == "negative" or name.startswith("negative_")]
    return IrRecord(
        query=row.text("anchor"),
        positives=(row.text("positive"),),
        negatives=tuple(row.text(name) for name in names if row.has(name)),
    )


def parse_sts(row: Row) -> ScoredPair:
    """`sentence1, sentence2, score`.

    Raises:
        RowError: if a field is missing or wrong.
    """
    return ScoredPair(row.text("sentence1"), row.text("sentence2"), row.number("score"))


ADAPTERS = (
    Adapter(
        name="sentence-transformers",
        task="ir",
        columns=frozenset({"anchor", "positive"}),
        parse=parse_ir,
    ),
    Adapter(
        name="sentence-transformers",
        task="sts",
        columns=frozenset({"sentence1", "sentence2"}),
        parse=parse_sts,
    ),
)
