"""Labelled rows as a source: each distinct text is one record, beside the index of all by label."""

import hashlib
import json
import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from trainer.data.cache import Arrays, cached_arrays
from trainer.data.classes import Classes
from trainer.data.fields import BlankTextError, RowError, check_text, shown
from trainer.data.label_index import LabelIndex, LabelPairs
from trainer.data.over_table import OverTable, records_of
from trainer.data.records import Label, LabelledRecord
from trainer.data.scan import CACHE_FROM_ROWS, text_key
from trainer.data.table_source import TableSource
from trainer.errors import DataError
from trainer.recipe.schema import SourceRecipe

logger = logging.getLogger(__name__)

NUM_SHOWN = 10
"""Names that a message lists."""


@dataclass(frozen=True, kw_only=True)
class LabelledSource(OverTable):
    """Distinct texts of a table with all their labels."""

    index: LabelIndex
    """Which texts have which labels; row i of the source is its text i."""
    label_texts: tuple[str, ...] | None
    """Text of each label of the index; None where texts are compared with each other."""
    texts_digest: str = ""
    """Of `label_texts` that stand in a file, hexadecimal; empty: there is no such file."""

    @property
    def fingerprint(self) -> str:
        """See `Source.fingerprint`."""
        if not self.texts_digest:
            return self.table.fingerprint
        return hashlib.sha256(f"{self.table.fingerprint}{self.texts_digest}".encode()).hexdigest()

    @property
    def identity(self) -> str:
        """See `Source.identity`."""
        texts = "" if self.label_texts is None else f"|{_digest(self.label_texts)}"
        return f"{self.table.identity}|{len(self)}{texts}"

    @property
    def min_texts(self) -> int:
        """A label with fewer texts has no positive for its texts."""
        return 1 if self.label_texts is not None else 2

    def text(self, row: int) -> str:
        """The text of a row."""
        found: LabelledRecord = self.table.record(int(self.records[row]))
        return found.text

    def record(self, row: int) -> LabelledRecord:
        """A text with the labels of all rows that have it."""
        labels = self.index.labels_of(row)
        return LabelledRecord(
            text=self.text(row),
            labels=tuple(self.index.names[label] for label in labels),
            label_texts=()
            if self.label_texts is None
            else tuple(self.label_texts[label] for label in labels),
        )

    def drawable(self, row: int) -> list[int]:
        """Labels of a row that have a positive for it, ascending."""
        labels = self.index.labels_of(row)
        return [label for label in labels if self.index.num_texts(label) >= self.min_texts]

    def classes(self) -> Classes:
        """Rows by label, of labels that have a positive for them."""
        index = self.index
        sizes = np.diff(index.starts)
        kept = sizes >= self.min_texts
        ends = np.cumsum(sizes[kept])
        return Classes(
            rows=index.texts[np.repeat(kept, sizes)],
            starts=np.concatenate([np.zeros(1, np.int64), ends]),
        )


def labelled_source(table: TableSource, recipe: SourceRecipe, root: str) -> LabelledSource:
    """The source that the rows of a table are, with labels of a single text told of and left out.

    Args:
        table: each row or part of one a `LabelledRecord`.
        recipe: its section of the recipe.
        root: folder that a relative path of `label_texts` starts from.

    Raises:
        DataError: if labels are of two types, fewer than two are left, one is on every text, or one
            has no text where the recipe has `label_texts`.
    """
    owner = f"data.sources.{recipe.name}"
    min_texts = 2 if recipe.label_texts is None else 1
    arrays = _arrays(table, min_texts)
    index = LabelIndex.of(arrays)
    alone = json.loads(arrays["alone"].tobytes())
    if alone:
        logger.warning(
            "%s: %d labels have a single text, so nothing is a positive for it: %s. Texts without "
            "another label, %d, are left out",
            owner, len(alone), _listed(alone), int(arrays["num_left_out"]),
        )  # fmt: skip
    _check_labels(index, owner, alone)
    texts, texts_digest = None, ""
    if recipe.label_texts is not None:
        given, place = _read_texts(recipe.label_texts, root, owner)
        texts = _texts_in_order(index, given, place)
        texts_digest = _digest(texts) if isinstance(recipe.label_texts, str) else ""
    rows = f"{len(table.rows)} rows" if len(table.rows) != len(index) else "each a row"
    described = f"{table.describe}, {len(index)} texts of {len(index.names)} labels ({rows})"
    return LabelledSource(
        table=table,
        records=index.records,
        describe=described,
        index=index,
        label_texts=texts,
        texts_digest=texts_digest,
    )


def _arrays(table: TableSource, min_texts: int) -> Arrays:
    """The index, from the cache where a large table was seen before."""
    if len(table.rows) < CACHE_FROM_ROWS:
        return _indexed(table, min_texts)
    key = f"labels2|{table.identity}|{min_texts}"
    return cached_arrays(key, lambda: _indexed(table, min_texts))


def _indexed(table: TableSource, min_texts: int) -> Arrays:
    """One pass over the rows.

    Raises:
        DataError: at the first row whose label is of another type than that of the first row.
    """
    pairs = LabelPairs()
    first: tuple[int, Label] | None = None
    for row, record in records_of(table):
        assert isinstance(record, LabelledRecord)
        label = record.labels[0]
        first = first or (row, label)
        if isinstance(label, int) != isinstance(first[1], int):
            advice = "Write all labels of a source alike."
            raise table.reader.table.error(row, _mixed(table, label, *first), advice)
        pairs.add(text_key(record.text), map(str, record.labels))
    return pairs.index(min_texts=min_texts)


def _mixed(table: TableSource, label: Label, row: int, known: Label) -> RowError:
    kind = "a whole number" if isinstance(known, int) else "a text"
    place = table.reader.table.place(row)
    return RowError("label", shown(label), f"{kind}, as {shown(known)} of {place} is")


def _check_labels(index: LabelIndex, owner: str, alone: list[str]) -> None:
    """Two labels at least, and none that every text has.

    Raises:
        DataError: naming the labels.
    """
    sizes = np.diff(index.starts)
    if len(sizes) < 2:
        found = f"{len(sizes)} ({_listed(index.names)})" if len(sizes) else "0"
        more = f" beside {len(alone)} of a single text" if alone else ""
        raise DataError(
            f"{owner}: labels = {found}{more}; expected at least 2, as texts are told from "
            "those of other labels. Add texts of other labels, or check the column of labels."
        )
    everywhere = np.flatnonzero(sizes == len(index))
    if len(everywhere):
        raise DataError(
            f"{owner}: texts with label {shown(index.names[everywhere[0]])} = all {len(index)}; "
            "expected some without it, as others are what a text is told from. Remove the label."
        )


def _read_texts(
    given: Mapping[str, str] | str, root: str, owner: str
) -> tuple[Mapping[str, Any], str]:
    """Label texts with the place that messages call them by.

    Raises:
        DataError: if a file cannot be read or holds something else.
    """
    if not isinstance(given, str):
        return given, f"{owner}.label_texts"
    path = Path(root).expanduser() / Path(given).expanduser()
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        got = error.strerror
    except (ValueError, RecursionError) as error:
        got = f"not JSON ({error})"
    else:
        if isinstance(content, dict):
            return content, str(path)
        got = f"{shown(content)}, no object"
    raise DataError(
        f"{owner}: label_texts = {given} ({got}); expected a JSON file with one object, from label "
        f'to text, such as {{"0": "a request for a refund"}} (looked for {path.absolute()}). '
        "Correct it."
    )


def _texts_in_order(index: LabelIndex, given: Mapping[str, Any], place: str) -> tuple[str, ...]:
    """The text of each label of an index; others are not needed.

    Raises:
        DataError: naming the labels that have none, or the first that is no text, or two labels
            that have the same one.
    """
    missing = [name for name in index.names if name not in given]
    if missing:
        raise DataError(
            f"{place}: labels without a text = {_listed(missing)} ({len(missing)} of "
            f"{len(index.names)}); expected a text for every label of the rows. Add them."
        )
    texts: dict[str, str] = {}
    for name in index.names:
        try:
            text = check_text(f"label {shown(name)}", given[name])
        except (BlankTextError, RowError) as fault:
            raise DataError(f"{place}: {fault}. Correct it.") from None
        if text in texts:
            raise DataError(
                f"{place}: label {shown(name)} = {shown(text)}; expected a text that no other "
                f"label has, and {shown(texts[text])} has it. Tell them apart."
            )
        texts[text] = name
    return tuple(texts)


def _digest(texts: tuple[str, ...]) -> str:
    """Of texts in their order, hexadecimal."""
    return hashlib.sha256(json.dumps(texts).encode()).hexdigest()


def _listed(names: tuple[str, ...] | list[str]) -> str:
    """Names as a message lists them."""
    more = f" and {len(names) - NUM_SHOWN} more" if len(names) > NUM_SHOWN else ""
    return ", ".join(map(shown, names[:NUM_SHOWN])) + more
