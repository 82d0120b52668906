"""Which sides the texts of a run have; it must not know any task or kind."""

from trainer.recipe.eval_kinds import EVAL_KINDS
from trainer.recipe.kind import Side
from trainer.recipe.per_source import settings_of
from trainer.recipe.schema import Recipe, SourceRecipe
from trainer.recipe.tasks import TASKS

SIDES: tuple[Side, ...] = ("query", "passage")


def sides_of(recipe: Recipe) -> list[Side]:
    """Sides of the texts of all sources and held-out sets, queries first."""
    found = {side for source in recipe.data.sources for side in sides_of_source(recipe, source)}
    found |= {side for held_out in recipe.eval.sets for side in EVAL_KINDS[held_out.task].prompts}
    return [side for side in SIDES if side in found]


def sides_of_source(recipe: Recipe, source: SourceRecipe) -> list[Side]:
    """Sides of the texts that the steps of a source have."""
    number = TASKS[source.task].texts_of_row(settings_of(recipe, source.name))
    return [side for side in SIDES if side in number]
