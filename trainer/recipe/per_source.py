"""Settings of the steps of one source: those of its task, and what the source overrides.

Sources that share steps have the same settings, so the name of their mix has these too.
Whatever decides about a step of a source asks here, so that no room reads a task's settings alone.
"""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import PurePath
from typing import Any, cast

from trainer.recipe.embedding_distillation import TERM, embedding_distillation
from trainer.recipe.kind import TaskSettings
from trainer.recipe.schema import DataRecipe, Recipe, SourceRecipe, Task
from trainer.recipe.tasks import TASKS

OVERRIDES = ("global_batch_size", "negatives", "in_batch")
"""Keys of a source that take the place of its task's key of the same name; null: the task's."""
NO_IN_BATCH_NEGATIVES = "no_in_batch_neg"
"""End of a file's or folder's name by which FlagEmbedding switches in-batch negatives off."""


def settings_of(recipe: Recipe, source: str) -> TaskSettings:
    """Settings of the steps of a source.

    Args:
        recipe: has settings for the task of the source.
        source: its name, or that of a mix, whose sources have the same settings.
    """
    found = members_of(recipe.data, source)[0]
    settings: Any = TASKS[found.task].of_source(recipe.tasks[found.task], found)
    overrides = dict(overrides_of(found))
    if found.teacher_embeddings is None and embedding_distillation(settings) is not None:
        overrides[TERM.name] = None
    own = dataclasses.replace(settings, **overrides)
    return cast(TaskSettings, TASKS[found.task].overridden(own, frozenset(overrides)))


def members_of(data: DataRecipe, name: str) -> tuple[SourceRecipe, ...]:
    """The sources of a mix in its order, or the one source of that name."""
    by_name = {one.name: one for one in data.sources}
    return tuple(by_name[one] for one in data.mix.get(name, (name,)))


def turn_of(data: DataRecipe, source: str) -> str:
    """Whose turn the rows of a source are drawn in: the mix that it is in, or its own."""
    return next((name for name, members in data.mix.items() if source in members), source)


def is_balanced(recipe: Recipe, source: str) -> bool:
    """Whether the classes of a source are drawn equally often, rather than its rows."""
    return getattr(settings_of(recipe, source), "balance", None) == "classes"


def num_length_buckets(data: DataRecipe, source: SourceRecipe) -> int:
    """Buckets of length that the rows of a source lie in; 1: a step holds texts of any length."""
    own = source.length_buckets
    return (data.length_buckets if own is None else own) or 1


def overrides_of(source: SourceRecipe) -> Mapping[str, Any]:
    """What a source overrides, by key; in-batch negatives also by the name of its files."""
    values = {name: getattr(source, name) for name in OVERRIDES}
    if source.in_batch is None and TASKS[source.task].has_corpus:
        values["in_batch"] = False if source.path and forbids_in_batch(source.path) else None
    return {name: value for name, value in values.items() if value is not None}


def forbids_in_batch(path: str) -> bool:
    """Whether the name of a file, or of its folder, says that rows have no in-batch negatives."""
    name = PurePath(path)
    parts = (name.name.partition(".")[0], name.parent.name)
    return any(part.endswith(NO_IN_BATCH_NEGATIVES) for part in parts)


def key_of(source: SourceRecipe, name: str) -> str:
    """Dotted key that a setting of a source comes from, for messages."""
    if name in overrides_of(source):
        return f"data.sources.{source.name}.{name}"
    return f"tasks.{source.task}.{name}"


@dataclass(frozen=True, kw_only=True)
class StepKind:
    """Steps of one task that have the same settings."""

    name: str
    """The task, with the sources where another kind of step of the task is there."""
    task: Task
    """Their task."""
    sources: tuple[SourceRecipe, ...]
    """Their sources, at least one, in the recipe's order."""
    settings: TaskSettings
    """Their settings."""


def step_kinds(recipe: Recipe) -> tuple[StepKind, ...]:
    """Every kind of step of a run, in the order of the table of tasks."""
    active = [task for task in TASKS if task in recipe.tasks]
    return tuple(kind for task in active for kind in _kinds_of_task(recipe, task))


def _kinds_of_task(recipe: Recipe, task: Task) -> list[StepKind]:
    """Sources of a task, grouped by their settings."""
    # settings hold mappings, so they have no hash to group by
    groups: list[tuple[TaskSettings, list[SourceRecipe]]] = []
    for source in recipe.data.sources:
        if source.task != task:
            continue
        settings = settings_of(recipe, source.name)
        found = next((sources for known, sources in groups if known == settings), None)
        if found is None:
            groups.append((settings, [source]))
        else:
            found.append(source)
    return [
        StepKind(
            name=task if len(groups) == 1 else f"{task} ({', '.join(one.name for one in sources)})",
            task=task,
            sources=tuple(sources),
            settings=settings,
        )
        for settings, sources in groups
    ]
