"""The recipe of an update: the new sources whole, and a part of those of an old run.

It must not read data. For every step on the new sources there are `share` steps on the old ones.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from fractions import Fraction
from pathlib import Path
from typing import Any, Literal

from series.agreement import check_agreement
from series.old_run import OldRun
from series.scores import sets_of
from trainer.data.fetching import PATHS
from trainer.data.remote import placed
from trainer.recipe.load import plain_recipe, recipe_of
from trainer.recipe.model_path import ADAPTER_CONFIG, PACKAGE, hub_id
from trainer.recipe.per_source import num_length_buckets
from trainer.recipe.schema import (
    EvalSetRecipe,
    ModelRecipe,
    Recipe,
    SourceRecipe,
    SubsetRecipe,
)
from trainer.recipe.tasks import TASKS

Start = Literal["old", "base"]
"""What an update is trained from: the old run's model, or what that one was trained from."""


@dataclass(frozen=True, kw_only=True)
class Settings:
    """How an update is trained."""

    start: Start
    """What it begins with."""
    share: float
    """Of the old rows, and steps on them for each step on new ones; above 0 and at most 1."""
    seed: int
    """Which of the old rows."""
    steps: int
    """Optimizer steps."""
    folder: Path
    """Of the run, absolute."""


def joined_recipe(old: OldRun, new: Recipe, file: str, settings: Settings) -> Recipe:
    """The recipe of an update, with absolute paths, so that it reads the same everywhere.

    Old sources stand first, so that the exported prompts are those of the old model, and more.

    Args:
        old: the run that is updated.
        new: with the new sources; what the two recipes share but sources and model is taken of it.
        file: where it stands, for messages.
        settings: how it is trained.

    Raises:
        RecipeError: if the two do not agree, or what they make together contradicts itself.
    """
    check_agreement(old, new, file, start=settings.start)
    share = Fraction(repr(settings.share))
    weights = dict[str, float]()
    pattern = {task: 1 for one in (old.recipe, new) for task in one.data.pattern}
    if new.data.schedule == "alternate":
        pattern, weights = mixture(old.recipe, new, share)
    sources = [*_old_sources(old.recipe, settings), *_new_sources(new)]
    tasks = {source.task for source in sources}
    data = replace(
        new.data,
        sources=tuple(replace(one, weight=weights.get(one.name, one.weight)) for one in sources),
        root=".",
        pattern=pattern,
        subset=None,
        mix={**old.recipe.data.mix, **new.data.mix},
        length_buckets=None,
    )
    joined = replace(
        new,
        output_dir=str(settings.folder),
        model=_model(old, new.model, settings.start),
        data=data,
        # in the order of the table, and what the new recipe lacks from the old one
        tasks={
            task: new.tasks[task] if task in new.tasks else old.recipe.tasks[task]
            for task in TASKS
            if task in tasks
        },
        train=replace(new.train, max_steps=settings.steps, epochs=None),
        eval=replace(new.eval, sets=(*sets_of(old.recipe), *new_sets(old.recipe, new))),
    )
    return recipe_of(plain_recipe(joined), f"{file} with the sources of {old.file}")


def new_sets(old: Recipe, new: Recipe) -> list[EvalSetRecipe]:
    """Held-out sets of the new recipe that are none of the old one's, paths absolute."""
    known = sets_of(old)
    return [one for one in sets_of(new) if one not in known]


def mixture(old: Recipe, new: Recipe, share: Fraction) -> tuple[dict[str, int], dict[str, float]]:
    """Turns of tasks and weights of sources under `alternate`.

    Within the old sources, and within the new ones, steps are shared as their own recipe has it.

    Args:
        old: whose steps are `share` of those of `new`.
        new: the other one.
        share: above 0.

    Returns:
        Turns of each task, the smallest whole numbers; weight of each source within its task, whose
        sum is 1.
    """
    steps: dict[str, Fraction] = {}
    for recipe, factor in ((old, share), (new, Fraction(1))):
        turns = {one.task: recipe.data.pattern[one.task] for one in recipe.data.sources}
        for source in recipe.data.sources:
            of_task = [one.weight for one in recipe.data.sources if one.task == source.task]
            within = Fraction(source.weight) / sum(map(Fraction, of_task))
            of_recipe = Fraction(turns[source.task], sum(turns.values()))
            steps[source.name] = factor * of_recipe * within
    task_of = {one.name: one.task for recipe in (old, new) for one in recipe.data.sources}
    tasks: dict[str, Fraction] = {}
    for name, number in steps.items():
        tasks[task_of[name]] = tasks.get(task_of[name], Fraction(0)) + number
    whole = math.lcm(*(number.denominator for number in tasks.values()))
    counts = {task: int(number * whole) for task, number in tasks.items()}
    least = math.gcd(*counts.values())
    pattern = {task: counts[task] // least for task in TASKS if task in counts}
    return pattern, {name: float(one / tasks[task_of[name]]) for name, one in steps.items()}


def _old_sources(old: Recipe, settings: Settings) -> Iterator[SourceRecipe]:
    """The old sources, of each a part of what the old run was trained on.

    A bucket of length has as many rows as in the old run, so there are fewer of them.
    """
    share = Fraction(repr(settings.share))
    for source in _with_paths(old):
        own = old.data.subset if source.subset is None else source.subset
        if own is not None:
            # the first rows of the same permutation
            own = replace(own, fraction=own.fraction * settings.share)
        elif settings.share < 1 and not TASKS[source.task].has_labels:
            own = SubsetRecipe(fraction=settings.share, seed=settings.seed)
        buckets = _buckets(source, old, Fraction(1) if own is None else share)
        yield replace(source, subset=own, length_buckets=buckets)


def _new_sources(new: Recipe) -> Iterator[SourceRecipe]:
    """The new sources; what their recipe takes of every source stands at each of them."""
    for source in _with_paths(new):
        yield replace(
            source,
            subset=new.data.subset if source.subset is None else source.subset,
            length_buckets=_buckets(source, new),
        )


def _buckets(source: SourceRecipe, recipe: Recipe, share: Fraction = Fraction(1)) -> int | None:
    """Buckets of length for a share of what a source has of rows; None: none."""
    found = int(num_length_buckets(recipe.data, source) * share)
    return found if found > 1 else None


def _with_paths(recipe: Recipe) -> Iterator[SourceRecipe]:
    """The sources with absolute paths, or addresses."""
    for source in recipe.data.sources:
        named = ((key, getattr(source, key)) for key in PATHS)
        changed: dict[str, Any] = {
            key: placed(path, recipe.data.root) for key, path in named if isinstance(path, str)
        }
        yield replace(source, **changed)


def _model(old: OldRun, new: ModelRecipe, start: Start) -> ModelRecipe:
    """The model section: what training begins with, and how it is trained."""
    if start == "base":
        is_path = hub_id(new.path) is None and not new.path.startswith(PACKAGE)
        return replace(new, path=placed(new.path, ".") if is_path else new.path)
    way: Literal["continue", "merge"] | None = None
    if (old.model / ADAPTER_CONFIG).is_file():
        way = "merge" if new.lora is None else "continue"
    return replace(new, path=str(old.model), adapter=way)
