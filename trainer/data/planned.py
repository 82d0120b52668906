"""The plan of opened sources; the rules of a plan are in `trainer.data.plan`."""

from collections.abc import Sequence

from trainer.data.labels import classes_of
from trainer.data.lengths import lengths_of
from trainer.data.plan import DataPlan, make_plan
from trainer.data.sources import Source
from trainer.data.streams import Groups
from trainer.recipe.per_source import num_length_buckets
from trainer.recipe.schema import Recipe


def plan_of(recipe: Recipe, sources: Sequence[Source]) -> DataPlan:
    """The plan of a recipe.

    Args:
        recipe: the run.
        sources: all of its sources.

    Raises:
        RecipeError: as `make_plan`.
        DataError: if a file changed since it was checked.
    """
    sizes = {source.name: len(source) for source in sources}
    return make_plan(recipe, sizes, groups_of(sources, recipe))


def groups_of(sources: Sequence[Source], recipe: Recipe) -> dict[str, Groups]:
    """What the order of rows follows from besides chance, of the sources that need it, by name.

    Args:
        sources: opened; those that the recipe does not have are passed over.
        recipe: the run.

    Raises:
        DataError: if a file changed since it was checked.
    """
    by_name = {one.name: one for one in recipe.data.sources}
    known = [source for source in sources if source.name in by_name]
    found: dict[str, Groups] = {
        source.name: lengths_of(source)
        for source in known
        if num_length_buckets(recipe.data, by_name[source.name]) > 1
    }
    return found | classes_of(known, recipe)
