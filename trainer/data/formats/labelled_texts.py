"""Rows of texts with labels, of this project, sentence-transformers and MTEB alike.

`labels.py` beside this file is about something else: scores of pairs that a column calls labels.
"""

from typing import Any

from trainer.data.fields import Row, RowError, named_items, shown
from trainer.data.formats.adapter import Adapter, RowRecords
from trainer.data.formats.held_out import read_label
from trainer.data.records import Label, LabelledRecord
from trainer.recipe import labels

TEXTS = ("text", "sentence")
"""Columns of a text; the first that a row has."""
LABELS = ("label", "labels", "label_text")
"""Columns of its label, or of a list of them; the first that a row has."""
EXPECTED = "a label: a text or a whole number, or a list of them"


def parse_text(row: Row) -> LabelledRecord:
    """`{"text": str, "label": int | str | list}`, or the other usual names of the two columns.

    Raises:
        RowError: if a field is missing, the text blank, or the label neither number nor text.
    """
    return LabelledRecord(text=row.text(row.first(TEXTS)), labels=_labels_of(row))


def parse_set(row: Row) -> RowRecords:
    """`{"sentences": [str, ...], "labels": [int | str, ...]}`: one set of MTEB's clustering tasks.

    Raises:
        RowError: if a field is missing or wrong, or there are not as many labels as texts.
    """
    texts, found = row.texts("sentences"), row.items("labels")
    if len(texts) != len(found):
        raise RowError("labels", f"{len(found)} of {len(texts)} texts", "one for each text")
    named = named_items("labels", found)
    return RowRecords(
        tuple(
            LabelledRecord(text=text, labels=_checked(*label))
            for text, label in zip(texts, named, strict=True)
        )
    )


def _labels_of(row: Row) -> tuple[Label, ...]:
    field = row.first(LABELS)
    return _checked(field, row.require(field, EXPECTED))


def _checked(field: str, value: Any) -> tuple[Label, ...]:
    """One or several labels of a text, each once.

    Raises:
        RowError: if there is none, or one is neither a whole number nor a text.
    """
    if not isinstance(value, list):
        return (read_label(field, value),)
    if not value:
        raise RowError(field, "[]", "at least one label")
    found = [read_label(*named) for named in named_items(field, value)]
    other = next((label for label in found if type(label) is not type(found[0])), None)
    if other is not None:
        raise RowError(field, shown(value), f"{type_name(found[0])}s alone, not {shown(other)} too")
    return tuple(dict.fromkeys(found))


def type_name(label: Label) -> str:
    """What messages call the type of a label."""
    return "whole number" if isinstance(label, int) else "text"


ADAPTERS = (
    *(
        Adapter(
            name="records" if text == "text" and label != "label_text" else "labelled-texts",
            task=labels.KIND.name,
            columns=frozenset({text, label}),
            parse=parse_text,
            joins="label",
        )
        for text in TEXTS
        for label in LABELS
    ),
    Adapter(
        name="mteb",
        task=labels.KIND.name,
        columns=frozenset({"sentences", "labels"}),
        parse=parse_set,
        joins="label",
    ),
)
