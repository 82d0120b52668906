"""Rows of the evaluation kinds that are no task, as this project writes them."""

from trainer.data.fields import Row, RowError, check_text, shown
from trainer.data.formats.adapter import Adapter
from trainer.data.held_out_records import Candidates, LabelledText, TextPair
from trainer.data.records import Label
from trainer.recipe.eval_kinds import (
    BITEXT,
    CLASSIFICATION,
    CLUSTERING,
    PAIR_CLASSIFICATION,
    RERANKING,
)


def read_label(field: str, value: object) -> Label:
    """A class: a text that is not blank, or a whole number.

    Raises:
        RowError: if it is neither.
    """
    if isinstance(value, int) and not isinstance(value, bool):
        return value
    if not isinstance(value, str):
        raise RowError(field, shown(value), "a label: a text or a whole number")
    return check_text(field, value)


def read_truth(field: str, value: object) -> int:
    """Whether a pair belongs together.

    Raises:
        RowError: if it is neither 0 nor 1.
    """
    if isinstance(value, bool) or value not in (0, 1, "0", "1"):
        raise RowError(field, shown(value), "0 or 1")
    return int(value)


def parse_labelled(row: Row) -> LabelledText:
    """`{"text": str, "label": str or int}`.

    Raises:
        RowError: if a field is missing or wrong.
    """
    return LabelledText(row.text("text"), read_label("label", row.require("label", "a label")))


def parse_pair(row: Row) -> TextPair:
    """`{"text1": str, "text2": str, "label": 0 or 1}`.

    Raises:
        RowError: if a field is missing or wrong.
    """
    truth = read_truth("label", row.require("label", "0 or 1"))
    return TextPair(row.text("text1"), row.text("text2"), truth)


def parse_candidates(row: Row) -> Candidates:
    """`{"query": str, "positives": [str, ...], "negatives": [str, ...]}`, both with texts.

    Raises:
        RowError: if a field is missing, empty or wrong.
    """
    return Candidates(row.text("query"), row.texts("positives"), row.texts("negatives"))


def parse_translation(row: Row) -> TextPair:
    """`{"text1": str, "text2": str}`.

    Raises:
        RowError: if a field is missing or wrong.
    """
    return TextPair(row.text("text1"), row.text("text2"))


ADAPTERS = (
    *(
        Adapter(
            name="records",
            task=kind.name,
            columns=frozenset({"text", "label"}),
            parse=parse_labelled,
        )
        for kind in (CLASSIFICATION, CLUSTERING)
    ),
    Adapter(
        name="records",
        task=PAIR_CLASSIFICATION.name,
        columns=frozenset({"text1", "text2", "label"}),
        parse=parse_pair,
    ),
    Adapter(
        name="records",
        task=RERANKING.name,
        columns=frozenset({"query", "positives", "negatives"}),
        parse=parse_candidates,
    ),
    Adapter(
        name="records",
        task=BITEXT.name,
        columns=frozenset({"text1", "text2"}),
        parse=parse_translation,
    ),
)
