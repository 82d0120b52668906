"""The one table of tasks: every kind that a recipe may train on.

A new kind is one file in each room that it needs, and one line here. It must not know more of a
kind than `TaskKind` says.
"""

from trainer.recipe import ir, labels, sts
from trainer.recipe.kind import TaskKind

TASKS: dict[str, TaskKind] = {kind.name: kind for kind in (ir.KIND, sts.KIND, labels.KIND)}
"""Kinds by name, in the order of charts and tables."""


def task_names() -> tuple[str, ...]:
    """Names of all kinds."""
    return tuple(TASKS)


def task_schemas() -> dict[str, type]:
    """Schema of each kind's section under `tasks`."""
    return {name: kind.settings for name, kind in TASKS.items()}


def default_pattern() -> dict[str, int]:
    """One turn for each kind."""
    return dict.fromkeys(TASKS, 1)
