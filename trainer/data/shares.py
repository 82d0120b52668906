"""Shares of the steps that sources and tasks take, by `data.schedule`; it must not deal them."""

import math
from collections.abc import Mapping, Sequence
from fractions import Fraction

from trainer.errors import RecipeError
from trainer.recipe.schema import DataRecipe
from trainer.recipe.tasks import TASKS

LARGEST_LOG = 709.7
"""Natural logarithm of the largest power that a float holds, nearly."""
LEAST_SHARE = 1e-300
"""Of a source beside one that is larger, however much a low temperature favours that one."""


def source_shares(data: DataRecipe, batches: Mapping[str, Fraction]) -> dict[str, Fraction]:
    """Share of each source, of its task's turns under `alternate` and of all turns otherwise.

    Args:
        data: sources with weights, and the schedule.
        batches: rows of each source divided by rows of its steps, by name in the recipe's order.
    """
    sizes = list(batches.values())
    if data.schedule == "alternate":
        sizes = [Fraction(1)] * len(sizes)
    elif data.schedule == "temperature":
        sizes = flattened(sizes, data.temperature)
    return {
        source.name: Fraction(source.weight) * size
        for source, size in zip(data.sources, sizes, strict=True)
    }


def flattened(sizes: Sequence[Fraction], temperature: float) -> list[Fraction]:
    """Each size to the power of 1 / T, or numbers in the same ratios.

    Where the powers are too large for a float they are taken of the ratios to the largest size;
    one that is too small then counts as `LEAST_SHARE`, so that every source keeps a turn.

    Args:
        sizes: batches of each source, at least 1.
        temperature: T, above 0.
    """
    logs = [math.log(size) for size in sizes]
    if max(logs) < LARGEST_LOG * temperature:
        return [Fraction(float(size) ** (1 / temperature)) for size in sizes]
    floor = math.log(LEAST_SHARE)
    # a ratio below the floor is not divided: the quotient may pass the floats
    exponents = [
        floor if log - max(logs) <= floor * temperature else (log - max(logs)) / temperature
        for log in logs
    ]
    return [Fraction(math.exp(exponent)) for exponent in exponents]


def task_shares(
    data: DataRecipe, by_task: Mapping[str, Mapping[str, Fraction]]
) -> dict[str, Fraction]:
    """Share of each task that has sources; tasks without sources take no turns.

    Args:
        data: the schedule.
        by_task: shares of the sources of each task, by name.

    Raises:
        RecipeError: if a task with sources has no turn in the pattern, or the pattern names an
            unknown task.
    """
    if data.schedule != "alternate":
        return {task: sum(shares.values(), Fraction(0)) for task, shares in by_task.items()}
    unknown = sorted(set(data.pattern) - set(TASKS))
    if unknown:
        raise RecipeError(
            f"recipe: data.pattern = {data.pattern}; expected tasks among {', '.join(TASKS)}, not "
            f"{', '.join(unknown)}. Correct the name."
        )
    for task in by_task:
        if task not in data.pattern or data.pattern[task] < 1:
            raise RecipeError(
                f"recipe: data.pattern = {data.pattern}; expected at least one turn for {task}, "
                f"which has sources. Add `{task}: 1` or remove the sources."
            )
    return {task: Fraction(turns) for task, turns in data.pattern.items() if task in by_task}
