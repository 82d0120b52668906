"""Which sides the texts of a run have; it must not know any task or kind."""

from trainer.recipe.eval_kinds import EVAL_KINDS
from trainer.recipe.kind import Side
from trainer.recipe.schema import Recipe
from trainer.recipe.tasks import TASKS

SIDES: tuple[Side, ...] = ("query", "passage")


def sides_of(recipe: Recipe) -> list[Side]:
    """Sides of the texts of all sources and held-out sets, queries first."""
    found = {side for source in recipe.data.sources for side in TASKS[source.task].prompts.values()}
    found |= {side for held_out in recipe.eval.sets for side in EVAL_KINDS[held_out.task].prompts}
    return [side for side in SIDES if side in found]
