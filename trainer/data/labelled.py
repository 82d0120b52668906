"""Held-out texts with labels: sets of classification and of clustering, opened and checked."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from trainer.data.fields import shown
from trainer.data.held_out_source import (
    folder_of,
    open_file_source,
    open_table_source,
    origin_of,
    owner_of,
    split_of,
)
from trainer.data.records import Label
from trainer.data.table_source import TableSource
from trainer.errors import DataError
from trainer.recipe.eval_kinds import CLASSIFICATION, CLUSTERING
from trainer.recipe.schema import DataRecipe, EvalSetRecipe

TRAIN = "train"
"""The split from which a classifier learns, whichever is scored."""


@dataclass(frozen=True, kw_only=True)
class LabelledTexts:
    """Texts with a label each."""

    texts: tuple[str, ...]
    """Without instruction [n]."""
    labels: tuple[Label, ...]
    """All texts, or all whole numbers [n]."""


@dataclass(frozen=True, kw_only=True)
class ClassificationSet:
    """Texts from which a classifier learns, and those by which it is scored."""

    kind: ClassVar[str] = CLASSIFICATION.name
    train: LabelledTexts
    """At least two labels."""
    test: LabelledTexts
    """With labels that `train` has."""

    def asked(self) -> Iterator[str]:
        """See `EvalSet.asked`: the texts of the test."""
        return iter(self.test.texts)


@dataclass(frozen=True, kw_only=True)
class ClusteringSet:
    """Texts that are to be clustered."""

    kind: ClassVar[str] = CLUSTERING.name
    rows: LabelledTexts
    """At least two labels."""

    def asked(self) -> Iterator[str]:
        """See `EvalSet.asked`."""
        return iter(self.rows.texts)


def open_classification(recipe: EvalSetRecipe, data: DataRecipe) -> ClassificationSet:
    """A folder with files `train` and those of the split that is scored, every row checked.

    Raises:
        DataError: if a file is missing, a row is malformed, labels are of two types, `train` has
            one label only, or the other split has one that `train` lacks; names file and line.
    """
    train, test = (open_file_source(recipe, files, data) for files in _parts(recipe, data))
    learnt = _read(train)
    _check_labels(train, learnt.labels)
    scored = _read(test, like=(learnt.labels[0], train.place(0)))
    known = set(learnt.labels)
    for row, label in enumerate(scored.labels):
        if label not in known:
            raise DataError(
                f"{test.place(row)}: label = {shown(label)}; expected a label that "
                f"{train.reader.table.name} has. Add rows with it there, or remove the row."
            )
    return ClassificationSet(train=learnt, test=scored)


def open_clustering(recipe: EvalSetRecipe, data: DataRecipe) -> ClusteringSet:
    """A file of labelled texts, every row checked.

    Raises:
        DataError: if the file is missing, a row is malformed, labels are of two types, or there is
            one label only; names file and line.
    """
    source = open_table_source(recipe, data)
    rows = _read(source)
    _check_labels(source, rows.labels)
    return ClusteringSet(rows=rows)


def _parts(recipe: EvalSetRecipe, data: DataRecipe) -> list[Sequence[Path]]:
    """The files of `train` and those of the split that is scored.

    Raises:
        DataError: if one of them is missing.
    """
    folder = folder_of(recipe, data)
    splits = {} if folder is None else folder.splits()
    scored = split_of(recipe)
    for name in (TRAIN, scored):
        if name not in splits:
            looked = recipe.path if folder is None else folder.path
            raise DataError(
                f"{owner_of(recipe)}: {origin_of(recipe)}, without {name}.jsonl; expected a "
                f"folder with {TRAIN}.jsonl and {scored}.jsonl of {{text, label}} (looked for "
                f"{looked}/{name}.jsonl). Add the file, or change path, split or task."
            )
    return [splits[TRAIN], splits[scored]]


def _read(source: TableSource, like: tuple[Label, str] | None = None) -> LabelledTexts:
    """All rows, whose labels are of one type.

    Args:
        source: the rows.
        like: a label of the type, and where it stands; None: the first one.

    Raises:
        DataError: naming the first row with a label of another type.
    """
    records = [source.record(row) for row in range(len(source))]
    example, place = like or (records[0].label, source.place(0))
    for row, record in enumerate(records):
        if type(record.label) is not type(example):
            kind = "a text" if isinstance(example, str) else "a whole number"
            raise DataError(
                f"{source.place(row)}: label = {shown(record.label)}; expected {kind}, as "
                f"{shown(example)} at {place} is. Write all labels of a set alike."
            )
    return LabelledTexts(
        texts=tuple(record.text for record in records),
        labels=tuple(record.label for record in records),
    )


def _check_labels(source: TableSource, labels: Sequence[Label]) -> None:
    """There is something to tell apart.

    Raises:
        DataError: if all labels are equal.
    """
    if len(set(labels)) < 2:
        raise DataError(
            f"{source.place(0)}: label = {shown(labels[0])}, as in all {len(labels)} rows; "
            "expected at least two labels. Check the label field, or leave the set out."
        )
