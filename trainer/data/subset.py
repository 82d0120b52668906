"""Which rows of a source a run trains on where it takes a part of them: computed per row."""

from dataclasses import dataclass
from functools import cached_property

import numpy as np

from trainer.data.permutation import keys_of, permute
from trainer.errors import RecipeError
from trainer.recipe.labels import KIND
from trainer.recipe.schema import DataRecipe, SourceRecipe


@dataclass(frozen=True, kw_only=True)
class Subset:
    """Some records of a source: the first of a permutation of all, so that no list is held."""

    source: str
    """Name of the source."""
    seed: int
    """Of the permutation."""
    num_rows: int
    """Records of the source."""
    size: int
    """How many of them are taken, at least 1."""

    @cached_property
    def _keys(self) -> np.ndarray:
        return keys_of("subset", self.seed, self.source)

    def records(self, rows: np.ndarray) -> np.ndarray:
        """Records of the source [n], int64, for numbers in 0..size-1 [n], int64."""
        return permute(rows, self.num_rows, self._keys)


def subset_of(data: DataRecipe, source: SourceRecipe, num_rows: int) -> Subset | None:
    """The part of a source, its own or that of every source; None where all of it is trained on.

    Args:
        data: has the part of every source.
        source: one of its sources, which may have a part of its own.
        num_rows: records that it has.

    Raises:
        RecipeError: if the source has labels, whose texts are drawn beside each other.
    """
    recipe = data.subset if source.subset is None else source.subset
    if recipe is None:
        return None
    if source.task == KIND.name:
        raise RecipeError(
            f"recipe: {key_of_subset(source)}.fraction = {recipe.fraction:g}; expected no source "
            f"of task {KIND.name}, as {source.name} is: its texts are drawn beside each other from "
            "all of them. Remove the source or the section."
        )
    size = max(1, round(recipe.fraction * num_rows))
    return Subset(source=source.name, seed=recipe.seed, num_rows=num_rows, size=size)


def key_of_subset(source: SourceRecipe) -> str:
    """Dotted key of the section that says which part of a source is trained on, for messages."""
    return "data.subset" if source.subset is None else f"data.sources.{source.name}.subset"
