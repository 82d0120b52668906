"""Rows of natural language inference: a premise, a hypothesis, and how they stand to each other."""

from trainer.data.fields import Row, RowError, shown
from trainer.data.formats.adapter import Adapter
from trainer.data.records import InferenceRow, Relation

RELATIONS: dict[object, Relation] = {
    0: "entailment", 1: "neutral", 2: "contradiction", -1: "none",
    "0": "entailment", "1": "neutral", "2": "contradiction", "-1": "none",
    "entailment": "entailment", "neutral": "neutral", "contradiction": "contradiction",
    "-": "none",
}  # fmt: skip
"""By what published sets write; -1 and `-` are rows that annotators did not agree on."""


def parse_row(row: Row) -> InferenceRow:
    """`{"premise": str, "hypothesis": str, "label": 0 | 1 | 2 | -1}`, or the label as a word.

    Raises:
        RowError: if a field is missing, a text blank, or the label unknown.
    """
    expected = "0 or entailment, 1 or neutral, 2 or contradiction"
    label = row.require("label", expected)
    if isinstance(label, bool | float | list | dict) or label not in RELATIONS:
        raise RowError("label", shown(label), expected)
    return InferenceRow(
        premise=row.text("premise"), hypothesis=row.text("hypothesis"), relation=RELATIONS[label]
    )


ADAPTERS = (
    Adapter(
        name="nli",
        task="ir",
        columns=frozenset({"premise", "hypothesis"}),
        any_of=(("label",),),
        parse=parse_row,
        joins="premise",
    ),
)
