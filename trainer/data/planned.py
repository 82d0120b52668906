"""The plan of opened sources; the rules of a plan are in `trainer.data.plan`."""

from collections.abc import Sequence

from trainer.data.labels import classes_of
from trainer.data.plan import DataPlan, make_plan
from trainer.data.sources import Source
from trainer.recipe.schema import Recipe


def plan_of(recipe: Recipe, sources: Sequence[Source]) -> DataPlan:
    """The plan of a recipe.

    Args:
        recipe: the run.
        sources: all of its sources.

    Raises:
        RecipeError: as `make_plan`.
    """
    sizes = {source.name: len(source) for source in sources}
    return make_plan(recipe, sizes, classes_of(sources, recipe))
