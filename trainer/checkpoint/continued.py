"""How a run goes on from a checkpoint: its stretches and their plans; it must not load anything."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from trainer.checkpoint.compare import compare_runs, next_stretches
from trainer.checkpoint.record import Record
from trainer.checkpoint.tags import step_of
from trainer.data.growth import SourceState, all_added_rows, state_of
from trainer.data.sources import Source
from trainer.data.stretch import PlannedStretch, Stretch, plan_stretches
from trainer.errors import CheckpointError
from trainer.recipe.load import plain_recipe
from trainer.recipe.schema import Recipe


@dataclass(frozen=True, kw_only=True)
class Continued:
    """A run as it goes on from a checkpoint."""

    tag: str
    """Name of the checkpoint."""
    step: int
    """Steps done there."""
    lines: tuple[str, ...]
    """What differs since then, and passes."""
    stretches: tuple[Stretch, ...]
    """Those of the whole run."""
    planned: tuple[PlannedStretch, ...]
    """What follows from each of them; empty where a source's rows are not counted."""


def continue_run(
    record: Record, recipe: Recipe, sources: Sequence[Source], named: Sequence[str]
) -> Continued:
    """Compare a run with what it is to go on with, and plan it.

    Args:
        record: the run as a checkpoint has it.
        recipe: as resolved.
        sources: opened and checked. One that is missing has the rows that the run found.
        named: keys that may differ from the run so far.

    Raises:
        CheckpointError: a change that was not named or cannot be made, or a run that is shorter
            than the steps that were done.
        RecipeError: the recipe does not fit the data.
    """
    current, step = record.stretches[-1], step_of(record.tag)
    added = all_added_rows(current.sources, sources)
    found = compare_runs(record.tag, current, plain_recipe(recipe), named=named, added=added)
    opened = {source.name: state_of(source) for source in sources}
    states = {
        one.name: opened[one.name] if one.name in opened else current.sources[one.name]
        for one in recipe.data.sources
        if one.name in opened or one.name in current.sources
    }
    now = Stretch(first_step=0, recipe=plain_recipe(recipe), sources=states)
    stretches = next_stretches(
        [_with_counts(one, opened, added) for one in record.stretches], step, now, found.changed
    )
    planned: tuple[PlannedStretch, ...] = ()
    if len(states) == len(recipe.data.sources):
        planned = plan_stretches(stretches, recipe, sources)
        _check_length(record.tag, step, planned[-1].num_steps)
    return Continued(
        tag=record.tag,
        step=step,
        lines=tuple(found.lines),
        stretches=stretches,
        planned=planned,
    )


def _with_counts(
    stretch: Stretch, opened: Mapping[str, SourceState], added: Mapping[str, Any]
) -> Stretch:
    """The stretch with the numbers of rows that an older release did not record."""
    sources = {
        name: opened[name] if state.num_rows == 0 and added.get(name) == 0 else state
        for name, state in stretch.sources.items()
    }
    return replace(stretch, sources=sources)


def _check_length(tag: str, step: int, num_steps: int) -> None:
    if step > num_steps:
        raise CheckpointError(
            f"checkpoint {tag}: steps done = {step}; expected at most {num_steps}, the length of "
            "the run. Undo the change of train.max_steps."
        )
