"""This project's own records: `query, positives[, negatives]` and `text1, text2, score`.

A teacher's scores stand in `positive_scores` and `negative_scores`.
"""

from trainer.data.fields import Row, RowError, shown
from trainer.data.formats.adapter import Adapter, ScoredPair
from trainer.data.formats.labels import PAIR_SCORES, pair_score
from trainer.data.formats.teacher_scores import make_record, score_lists
from trainer.data.records import IrRecord
from trainer.recipe.schema import Task

SCORES = ("positive_scores", "negative_scores")
"""Lists of a teacher's scores."""


def parse_ir(row: Row) -> IrRecord:
    """`{"query": str, "positives": [str, ...], "negatives": [str, ...]}`.

    Each list of texts may have a list of scores beside it.

    Raises:
        RowError: if a field is missing or wrong, there is no positive, or there are not as many
            scores as texts.
    """
    _check_task(row, "ir")
    query, positives, negatives = row.text("query"), row.texts("positives"), row.listed("negatives")
    scores = score_lists(row, SCORES, (len(positives), len(negatives)))
    return make_record(query, positives, row.keep(negatives), scores)


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
    Adapter(
        name="records",
        task="ir",
        columns=frozenset({"query", "positives"}),
        parse=parse_ir,
        optional=("negatives", *SCORES, "task"),
        teacher_columns=" and ".join(SCORES),
    ),
    Adapter(
        name="records",
        task="sts",
        columns=frozenset({"text1", "text2"}),
        parse=parse_sts,
        any_of=(PAIR_SCORES,),
        optional=("task",),
    ),
)
