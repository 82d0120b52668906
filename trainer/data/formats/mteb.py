"""Rows of MTEB's own sets, of the evaluation kinds that are no task.

Its older sets hold lists in a row, a whole clustering or a whole file of pairs; each of their items
is a record of its own here. Classification has the columns of this project's own rows.
"""

from collections.abc import Sequence
from typing import Any

from trainer.data.fields import Named, Row, RowError, check_text, named_items, shown
from trainer.data.formats.adapter import Adapter, RowRecords
from trainer.data.formats.held_out import read_label, read_truth
from trainer.data.held_out_records import Candidates, LabelledText, TextPair
from trainer.recipe.eval_kinds import BITEXT, CLUSTERING, PAIR_CLASSIFICATION, RERANKING

NAME = "mteb"
PAIRS = (("sentence1", "sentence2"), ("sent1", "sent2"))
"""Columns of two texts; the second of older sets."""


def parse_clustering(row: Row) -> RowRecords:
    """`{"sentences": str, "labels": label}`, or a list of each.

    Raises:
        RowError: if a field is missing or wrong, or the lists differ in length.
    """
    texts, labels = _columns(row, ("sentences", "labels"))
    return RowRecords(
        tuple(
            LabelledText(check_text(*text), read_label(*label))
            for text, label in zip(texts, labels, strict=True)
        )
    )


def parse_pairs(row: Row) -> RowRecords:
    """`{"sentence1": str, "sentence2": str, "labels": 0 or 1}`, or a list of each.

    Raises:
        RowError: if a field is missing or wrong, or the lists differ in length.
    """
    first, second, labels = _columns(row, (*_names(row), "labels"))
    return RowRecords(
        tuple(
            TextPair(check_text(*one), check_text(*other), read_truth(*label))
            for one, other, label in zip(first, second, labels, strict=True)
        )
    )


def parse_translation(row: Row) -> RowRecords:
    """`{"sentence1": str, "sentence2": str}`, or a list of each.

    Raises:
        RowError: if a field is missing or wrong, or one language has more texts than the other.
    """
    first, second = _columns(row, _names(row))
    return RowRecords(
        tuple(
            TextPair(check_text(*one), check_text(*other))
            for one, other in zip(first, second, strict=True)
        )
    )


def parse_candidates(row: Row) -> RowRecords:
    """`{"query": str, "positive": [str, ...], "negative": [str, ...]}`.

    A row without a positive or without a negative is no record, as mteb leaves it out.

    Raises:
        RowError: if a field is missing or wrong.
    """
    if not all(row.items(name) for name in ("positive", "negative")):
        return RowRecords(())
    found = Candidates(row.text("query"), row.texts("positive"), row.texts("negative"))
    return RowRecords((found,))


def _names(row: Row) -> tuple[str, str]:
    """The columns of the two texts."""
    return next((names for names in PAIRS if row.has(names[0])), PAIRS[0])


def _columns(row: Row, names: Sequence[str]) -> list[list[Named]]:
    """The items of some columns, which all hold a list or all one value.

    Raises:
        RowError: if one is missing, or they differ in length.
    """
    values: list[Any] = [row.require(name, "a value or a list") for name in names]
    is_list = isinstance(values[0], list)
    for name, value in zip(names, values, strict=True):
        if isinstance(value, list) != is_list:
            expected = "a list" if is_list else "one value alone"
            raise RowError(name, shown(value), f"{expected}, as {names[0]} is")
    if not is_list:
        return [[(name, value)] for name, value in zip(names, values, strict=True)]
    columns = []
    for name in names:
        items = row.items(name)
        if not items or len(items) != len(row.items(names[0])):
            expected = f"as many as {names[0]}, at least one"
            raise RowError(name, f"{len(items)} items", expected)
        columns.append(named_items(name, items))
    return columns


ADAPTERS = (
    Adapter(
        name=NAME,
        task=CLUSTERING.name,
        columns=frozenset({"sentences", "labels"}),
        parse=parse_clustering,
    ),
    *(
        Adapter(
            name=NAME,
            task=PAIR_CLASSIFICATION.name,
            columns=frozenset({*names, "labels"}),
            parse=parse_pairs,
        )
        for names in PAIRS
    ),
    Adapter(
        name=NAME,
        task=RERANKING.name,
        columns=frozenset({"query", "positive", "negative"}),
        parse=parse_candidates,
        left_out="without a positive or without a negative text",
    ),
    *(
        Adapter(name=NAME, task=BITEXT.name, columns=frozenset(names), parse=parse_translation)
        for names in PAIRS
    ),
)
