"""Held-out pairs without a scale: sets of pair classification and of bitext, opened and checked."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

from trainer.data.held_out_records import TextPair
from trainer.data.held_out_source import open_table_source
from trainer.errors import DataError
from trainer.recipe.eval_kinds import BITEXT, PAIR_CLASSIFICATION
from trainer.recipe.schema import DataRecipe, EvalSetRecipe


@dataclass(frozen=True, kw_only=True)
class PairSet:
    """Pairs of texts that belong together or not."""

    kind: ClassVar[str] = PAIR_CLASSIFICATION.name
    pairs: tuple[TextPair, ...]
    """At least one of each label [n]."""

    def asked(self) -> Iterator[str]:
        """See `EvalSet.asked`."""
        return (pair.asked() for pair in self.pairs)


@dataclass(frozen=True, kw_only=True)
class Bitext:
    """Texts with their translations."""

    kind: ClassVar[str] = BITEXT.name
    pairs: tuple[TextPair, ...]
    """A text and its translation [n]."""

    def asked(self) -> Iterator[str]:
        """See `EvalSet.asked`."""
        return (pair.asked() for pair in self.pairs)


def open_pairs(recipe: EvalSetRecipe, data: DataRecipe) -> PairSet:
    """A file of pairs with a label of 0 or 1, every row checked.

    Raises:
        DataError: if the file is missing, a row is malformed, or all pairs have one label; names
            file and line.
    """
    source = open_table_source(recipe, data)
    pairs = tuple(source.record(row) for row in range(len(source)))
    if len({pair.label for pair in pairs}) < 2:
        raise DataError(
            f"{source.place(0)}: label = {pairs[0].label}, as in all {len(pairs)} rows; expected "
            "pairs of label 0 and pairs of label 1. Check the label field, or leave the set out."
        )
    return PairSet(pairs=pairs)


def open_bitext(recipe: EvalSetRecipe, data: DataRecipe) -> Bitext:
    """A file of texts with their translations, every row checked.

    Raises:
        DataError: if the file is missing, or a row is malformed; names file and line.
    """
    source = open_table_source(recipe, data)
    return Bitext(pairs=tuple(source.record(row) for row in range(len(source))))
