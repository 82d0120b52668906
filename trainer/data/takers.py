"""What takes turns in a plan: sources by themselves and mixes of several; it deals no turns."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import NamedTuple

import numpy as np

from trainer.data.mixed_stream import MixedPart, MixedStream
from trainer.data.row_stream import RowStream
from trainer.data.schedule import make_schedule, most_turns
from trainer.data.shares import source_shares
from trainer.data.streams import Groups, Stream, make_stream
from trainer.data.subset import Subset, key_of_subset, subset_of
from trainer.errors import RecipeError
from trainer.recipe.per_source import key_of, members_of, settings_of, turn_of
from trainer.recipe.schema import Recipe, SourceRecipe, Task


@dataclass(frozen=True, kw_only=True)
class PlannedSource:
    """What the plan knows of a source, or of a mix of several."""

    name: str
    """As in the recipe."""
    task: Task
    """Task of its steps."""
    num_rows: int
    """Records it has."""
    batch_size: int
    """Rows of one step over all ranks."""
    subset: Subset | None = None
    """Which of the source's records `num_rows` are; None: all, or those of the members."""
    members: "tuple[PlannedSource, ...]" = ()
    """Sources of a mix; empty for a source by itself."""

    def records(self, rows: np.ndarray) -> np.ndarray:
        """Records of the source that stand for rows of the stream [n], int64."""
        return rows if self.subset is None else self.subset.records(rows)


class Taker(NamedTuple):
    """A source or a mix with what a plan makes of it."""

    source: PlannedSource
    stream: Stream
    """Its rows, from the beginning of a run."""
    share: Fraction
    """Of the turns, as `source_shares` counts them."""


def takers_of(
    recipe: Recipe, sizes: Mapping[str, int], groups: Mapping[str, Groups]
) -> list[Taker]:
    """All that takes turns, in the order of the recipe's sources.

    Args:
        recipe: the run.
        sizes: number of records of each source, by name.
        groups: see `make_plan`.

    Raises:
        RecipeError: as `make_plan`, but for the pattern.
    """
    sources = {one.name: _planned(one, recipe, sizes[one.name]) for one in recipe.data.sources}
    batches = {one.name: Fraction(one.num_rows, one.batch_size) for one in sources.values()}
    shares = source_shares(recipe.data, batches)
    takers = []
    for name in dict.fromkeys(turn_of(recipe.data, one) for one in sources):
        settings = members_of(recipe.data, name)
        members = [sources[one.name] for one in settings]
        streams = [
            _stream(one, recipe, of, groups) for one, of in zip(members, settings, strict=True)
        ]
        own = {one.name: shares[one.name] for one in members}
        if name in recipe.data.mix:
            takers.append(_mixed(name, members, streams, own))
        else:
            takers.append(Taker(members[0], streams[0], own[name]))
    return takers


def _stream(
    source: PlannedSource, recipe: Recipe, settings: SourceRecipe, groups: Mapping[str, Groups]
) -> Stream:
    """The stream of one source; of one that is in no mix, a step must find its rows.

    Raises:
        RecipeError: a batch has more rows than the source, or than a bucket of it.
    """
    if turn_of(recipe.data, source.name) == source.name:
        _check_rows(source, settings)
    return make_stream(
        recipe,
        settings,
        groups.get(source.name),
        num_rows=source.num_rows,
        batch_size=source.batch_size,
        subset=source.subset,
    )


def _planned(source: SourceRecipe, recipe: Recipe, num_rows: int) -> PlannedSource:
    if source.task not in recipe.tasks:
        raise RecipeError(
            f"recipe: tasks.{source.task} = null; expected settings, as source {source.name} has "
            f"this task. Set tasks.{source.task}.global_batch_size."
        )
    subset = subset_of(recipe.data, source, num_rows)
    return PlannedSource(
        name=source.name,
        task=source.task,
        num_rows=num_rows if subset is None else subset.size,
        batch_size=settings_of(recipe, source.name).global_batch_size,
        subset=subset,
    )


def _check_rows(source: PlannedSource, settings: SourceRecipe) -> None:
    """A step has no row twice."""
    if source.batch_size <= source.num_rows:
        return
    key = key_of(settings, "global_batch_size")
    own = f"data.sources.{source.name}.global_batch_size"
    advice = "Lower it" if key == own else f"Lower it, set {own}"
    part = "" if source.subset is None else f" in {key_of_subset(settings)}"
    raise RecipeError(
        f"recipe: {key} = {source.batch_size}; expected at most {source.num_rows}, the rows of "
        f"source {source.name}{part}. {advice}, or "
        "add rows. Sources of one task may also share steps (data.mix)."
    )


def _mixed(
    name: str,
    members: Sequence[PlannedSource],
    streams: Sequence[Stream],
    shares: Mapping[str, Fraction],
) -> Taker:
    """A mix, whose places are dealt to its sources by their shares.

    Raises:
        RecipeError: a step takes more rows of a source than it has.
    """
    turns, size = make_schedule(shares), members[0].batch_size
    most = most_turns(turns, size)
    for one in members:
        if most[one.name] > one.num_rows:
            raise RecipeError(
                f"recipe: data.mix.{name} takes up to {most[one.name]} of {size} rows of a step "
                f"from source {one.name}; expected at most {one.num_rows}, the rows that it has. "
                "Lower its weight, or mix it by size with data.schedule=proportional."
            )
    parts = []
    for one, stream in zip(members, streams, strict=True):
        assert isinstance(stream, RowStream), f"{one.name} is drawn by class"
        parts.append(MixedPart(name=one.name, stream=stream, subset=one.subset))
    mix = PlannedSource(
        name=name,
        task=members[0].task,
        num_rows=sum(one.num_rows for one in members),
        batch_size=size,
        members=tuple(members),
    )
    return Taker(
        mix, MixedStream(parts=tuple(parts), turns=turns), sum(shares.values(), Fraction(0))
    )
