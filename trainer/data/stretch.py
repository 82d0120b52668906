"""The stretches of a run: each with its recipe and data, all with one plan; it must not decide.

A run that goes on with named changes has a further stretch. What a step trains on, and by which
rate, is a function of the stretches up to it alone, so that the run can be continued at any step.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from trainer.data.growth import SourceState, read_state
from trainer.data.plan import DataPlan, continue_plan, make_plan
from trainer.data.planned import groups_of
from trainer.data.sources import Source
from trainer.data.streams import Groups
from trainer.errors import RecipeError
from trainer.recipe.load import recipe_of
from trainer.recipe.per_source import is_balanced, num_length_buckets
from trainer.recipe.schema import Recipe


@dataclass(frozen=True, kw_only=True)
class Stretch:
    """A part of a run that one recipe was used for."""

    first_step: int
    """Where it begins, in steps of the run; 0 for the first stretch alone."""
    recipe: Mapping[str, Any]
    """As resolved, in the plain values of JSON."""
    sources: Mapping[str, SourceState]
    """Its data, by name of the source."""
    changed: tuple[str, ...] = ()
    """Keys that `--change` named and that differ from the stretch before."""


@dataclass(frozen=True, kw_only=True)
class PlannedStretch:
    """A stretch with what follows from it and from those before it."""

    recipe: Recipe
    """As resolved."""
    plan: DataPlan
    """What its steps train on."""
    num_steps: int
    """Steps of the whole run as this recipe has it; shapes the learning rate."""

    @property
    def first_step(self) -> int:
        """Where it begins, in steps of the run."""
        return self.plan.first_step


def plan_stretches(
    stretches: Sequence[Stretch],
    recipe: Recipe | None = None,
    sources: Sequence[Source] = (),
) -> tuple[PlannedStretch, ...]:
    """The plans of a run's stretches.

    Args:
        stretches: at least one, in order.
        recipe: of the last one, where it is at hand.
        sources: opened; needed of those whose rows' classes or lengths shape the plan.

    Raises:
        RecipeError: a recipe does not fit its data, is one of a release with other keys, or needs a
            source that is not at hand.
        DataError: if a file changed since it was checked.
    """
    planned: list[PlannedStretch] = []
    for stretch in stretches:
        is_last = stretch is stretches[-1]
        own = recipe if recipe is not None and is_last else recipe_of(stretch.recipe)
        sizes = {name: state.num_rows for name, state in stretch.sources.items()}
        plan = make_plan(own, sizes, _groups_of(own, sources))
        if planned:
            plan = continue_plan(planned[-1].plan, stretch.first_step, plan)
        planned.append(PlannedStretch(recipe=own, plan=plan, num_steps=length_of(own, plan)))
    return tuple(planned)


def _groups_of(recipe: Recipe, sources: Sequence[Source]) -> dict[str, Groups]:
    """Those that a recipe needs.

    Raises:
        RecipeError: they are not at hand.
    """
    found = groups_of(sources, recipe)
    for source in recipe.data.sources:
        if source.name in found:
            continue
        if is_balanced(recipe, source.name):
            shown, told = f"balance of source {source.name} = classes", "what the classes are"
        elif (buckets := num_length_buckets(recipe.data, source)) > 1:
            shown, told = f"length_buckets of source {source.name} = {buckets}", "how long they are"
        else:
            continue
        raise RecipeError(
            f"recipe: {shown}; expected its rows beside the plan, which say {told}. Show the plan "
            "of the recipe in place of the run's."
        )
    return found


def length_of(recipe: Recipe, plan: DataPlan) -> int:
    """Steps of a whole run.

    Raises:
        RecipeError: `train.epochs` asks for more steps than any run has.
    """
    if recipe.train.max_steps is not None:
        return recipe.train.max_steps
    assert recipe.train.epochs is not None
    return plan.num_steps(recipe.train.epochs)


def stretch_at(planned: Sequence[PlannedStretch], step: int) -> PlannedStretch:
    """The stretch that a step belongs to."""
    return max((one for one in planned if one.first_step <= step), key=lambda one: one.first_step)


def spans(
    planned: Sequence[PlannedStretch], start: int, stop: int
) -> list[tuple[PlannedStretch, int, int]]:
    """The stretches that some steps of a run lie in, each with the first and the end of these."""
    ends = [*(one.first_step for one in planned[1:]), stop]
    found = []
    for one, end in zip(planned, ends, strict=True):
        first, last = max(start, one.first_step), min(stop, end)
        if first < last:
            found.append((one, first, last))
    return found


def plain_stretches(stretches: Sequence[Stretch]) -> list[dict[str, Any]]:
    """Stretches in the values of JSON."""
    return [asdict(stretch) | {"changed": list(stretch.changed)} for stretch in stretches]


def read_stretches(values: Any) -> tuple[Stretch, ...]:
    """The stretches that values of JSON spell.

    Raises:
        LookupError, TypeError, AttributeError: if they spell none.
    """
    return tuple(
        Stretch(
            first_step=int(one["first_step"]),
            recipe=dict(one["recipe"]),
            sources={name: read_state(state) for name, state in one["sources"].items()},
            changed=tuple(map(str, one["changed"])),
        )
        for one in values
    )
