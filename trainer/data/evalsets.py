"""What each evaluation kind is to the data room: a held-out set, opened and checked.

A new kind is a file beside this one and one line in the table.
"""

from collections.abc import Callable, Iterator
from typing import Protocol

from trainer.data import ir, labelled, paired, reranking, sts
from trainer.data.fetching import at_hand
from trainer.data.held_out_source import owner_of
from trainer.recipe import ir as retrieval
from trainer.recipe import sts as similarity
from trainer.recipe.eval_kinds import (
    BITEXT,
    CLASSIFICATION,
    CLUSTERING,
    PAIR_CLASSIFICATION,
    RERANKING,
)
from trainer.recipe.schema import DataRecipe, EvalSetRecipe, Recipe


class EvalSet(Protocol):
    """A held-out set, as it crosses the door to evaluation; its records are those of its kind."""

    @property
    def kind(self) -> str:
        """Its evaluation kind."""

    def asked(self) -> Iterator[str]:
        """What each of its records asks, as `RawRecord.asked` has it."""


OpenEvalSet = Callable[[EvalSetRecipe, DataRecipe], EvalSet]
"""Opens a held-out set, every row checked; raises DataError."""

EVAL_DATA: dict[str, OpenEvalSet] = {
    retrieval.EVAL_KIND.name: ir.open_eval_set,
    similarity.EVAL_KIND.name: sts.open_eval_set,
    CLASSIFICATION.name: labelled.open_classification,
    CLUSTERING.name: labelled.open_clustering,
    PAIR_CLASSIFICATION.name: paired.open_pairs,
    RERANKING.name: reranking.open_reranking,
    BITEXT.name: paired.open_bitext,
}
"""By name of the kind."""


def open_eval_sets(recipe: Recipe) -> dict[str, EvalSet]:
    """All held-out sets of a recipe by name, every row checked.

    Raises:
        DataError: if a file is missing or empty, or a row is malformed; names file and line.
    """
    return {one.name: open_eval_set(one, recipe.data) for one in recipe.eval.sets}


def open_eval_set(recipe: EvalSetRecipe, data: DataRecipe) -> EvalSet:
    """One held-out set of any kind, every row checked.

    Raises:
        DataError: if a file is missing or empty, or a row is malformed; names file and line.
    """
    recipe = at_hand(recipe, data.root, owner=owner_of(recipe))
    return EVAL_DATA[recipe.task](recipe, data)
