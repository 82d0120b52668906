"""This project's own records: `query, positives[, negatives]` and `text1, text2, score`."""

from trainer.data.fields import Row, RowError, shown
from trainer.data.formats.adapter import Adapter, ScoredPair
from trainer.data.formats.labels import pair_score
from trainer.data.records import IrRecord
from trainer.recipe.schema import Task


def parse_ir(row: Row) -> IrRecord:
    """`{"query": str, "positives": [str, ...], "negatives": [str, ...]}`.

    Raises:
        RowError: if a field is missing or wrong, or there is no positive.
    """
    _check_task(row, "ir")
    return IrRecord(
        query=row.text("query"),
        positives=row.texts("positives"),
        negatives=row.negatives("negatives"),
    )


def parse_sts(row: Row) -> ScoredPair:
    """`{"text1": str, "text2": str, "score": number}`.

    Raises:
        RowError: if a field is missing or wrong.
    """
    _check_task(row, "sts")
    return ScoredPair(row.text("text1"), row.text("text2"), pair_score(row))


def _check_task(row: Row, task: Task) -> None:
    """A row may name its task, and then it is the source's."""
    if row.has("task") and row.values["task"] != task:
        raise RowError(
            "task", shown(row.values["task"]), f'"{task}", as the source says, or nothing'
        )


ADAPTERS = (
    Adapter(name="records", task="ir", columns=frozenset({"query", "positives"}), parse=parse_ir),
    Adapter(name="records", task="sts", columns=frozenset({"text1", "text2"}), parse=parse_sts),
)
