"""A teacher's scores of the passages of a row, in the shapes that published sets have.

Where a set has margins, the positive counts as 0 and each negative as minus its margin. Several
margins then share one positive, and both a difference of two scores and a softmax over the scores
are what the teacher's own scores give, as neither depends on a constant that all of them have.
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from trainer.data.fields import Named, Row, RowError, named_items, shown
from trainer.data.records import IrRecord

COLUMNS = ("scores", "score", "labels", "label")
"""Where sentence-transformers has scores or margins; the first that a row has counts."""
LABELS = ("labels", "label")
"""Those of them in which a list of 1 and 0 says which text is the positive."""
LARGEST = 3.4e38
"""Scores are float32 in a batch."""


class TeacherScores(NamedTuple):
    """Of the passages of a row, as it has them."""

    positives: tuple[float, ...]
    """Of each positive."""
    negatives: tuple[float, ...]
    """Of each negative, those without text included."""


def make_record(
    query: str,
    positives: Sequence[str],
    negatives: Mapping[int, str],
    scores: TeacherScores | None,
) -> IrRecord:
    """The record of a row.

    Args:
        query: its query.
        positives: its positives.
        negatives: those that are used, by their number in the row.
        scores: of all its passages, if a teacher scored them.
    """
    texts = tuple(negatives.values())
    if scores is None:
        return IrRecord(query=query, positives=tuple(positives), negatives=texts)
    return IrRecord(
        query=query,
        positives=tuple(positives),
        negatives=texts,
        positive_scores=scores.positives,
        negative_scores=tuple(scores.negatives[number] for number in negatives),
    )


def is_given(row: Row, field: str) -> bool:
    """Whether a field has scores: an empty list has none, as null has."""
    return row.has(field) and row.values[field] != []


def score_lists(row: Row, fields: tuple[str, str], counts: tuple[int, int]) -> TeacherScores | None:
    """The scores of a list of positives and a list of negatives; None if neither has any.

    Args:
        row: the row.
        fields: where the scores of positives and of negatives stand.
        counts: number of positives and of negatives.

    Raises:
        RowError: if a list has not one finite number for each text, or is there without the other.
    """
    if not any(is_given(row, field) for field in fields):
        return None
    lists = (score_list(row, field, count) for field, count in zip(fields, counts, strict=True))
    return TeacherScores(*lists)


def score_list(row: Row, field: str, count: int) -> tuple[float, ...]:
    """A list of scores; nothing is an empty list.

    Raises:
        RowError: if it is no list, or has not one finite number for each text.
    """
    expected = f"a list of length {count}, a number for each text"
    values = row.values[field] if row.has(field) else []
    if not isinstance(values, list):
        raise RowError(field, shown(values), expected)
    if len(values) != count:
        got = f"a list of length {len(values)}" if row.has(field) else "nothing"
        raise RowError(field, got, expected)
    return _numbers(named_items(field, values))


def margins_or_scores(row: Row, *, num_positives: int, num_negatives: int) -> TeacherScores | None:
    """What sentence-transformers' MarginMSE and listwise losses take; None if the row has none.

    A number is the margin of one positive over one negative; beside other numbers of texts it says
    something else, and is left alone, as are names of classes and labels of 1 and 0. A list has the
    margin over each negative, or the score of each passage, positives first.

    Raises:
        RowError: if the list is of another length, or something in it is no finite number.
    """
    field = next((name for name in COLUMNS if is_given(row, name)), None)
    if field is None:
        return None
    values, is_triplet = row.values[field], (num_positives, num_negatives) == (1, 1)
    if not isinstance(values, list):
        return (
            _margins([_number(field, row.number(field))])
            if is_triplet and _may_be(values)
            else None
        )
    if field in LABELS and values == [1] * num_positives + [0] * num_negatives:
        # which text is the positive, as losses of rerankers take it
        return None
    numbers = _numbers(named_items(field, values))
    if len(numbers) == num_positives + num_negatives:
        return TeacherScores(numbers[:num_positives], numbers[num_positives:])
    if num_positives == 1 and len(numbers) == num_negatives:
        return _margins(numbers)
    expected = f"a list of length {num_positives + num_negatives}, scores of positives first"
    if num_positives == 1 and num_negatives:
        expected += f", or of length {num_negatives}, margins"
    raise RowError(field, f"a list of length {len(numbers)}", expected)


def passage_scores(positives: Sequence[Named], negatives: Sequence[Named]) -> TeacherScores | None:
    """The `score` that each passage carries; None if none does.

    Raises:
        RowError: if only some do, or one is no finite number.
    """
    passages = (*positives, *negatives)
    scores = [passage.get("score") for _, passage in passages]
    if all(score is None for score in scores):
        return None
    numbers = [
        _number(f"{name}.score", score) for (name, _), score in zip(passages, scores, strict=True)
    ]
    return TeacherScores(tuple(numbers[: len(positives)]), tuple(numbers[len(positives) :]))


def _may_be(value: Any) -> bool:
    """Whether a value is a number, or a text that begins like one; others are names of classes."""
    if isinstance(value, str):
        return value.strip()[:1] in {*"+-.0123456789"}
    return isinstance(value, int | float) and not isinstance(value, bool)


def _margins(margins: Sequence[float]) -> TeacherScores:
    """Scores that have these margins."""
    return TeacherScores((0.0,), tuple(-margin for margin in margins))


def _numbers(named: Sequence[Named]) -> tuple[float, ...]:
    return tuple(_number(*item) for item in named)


def _number(name: str, value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise RowError(name, shown(value), "a number")
    if not -LARGEST <= value <= LARGEST:
        raise RowError(name, "nan" if value != value else str(value)[:20], "a finite number")
    return float(value)
