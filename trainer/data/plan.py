"""Which task, source and rows a step trains on: a pure function of recipe, sizes and step.

Nothing is walked through and nothing is stored, so resuming is a jump, any rank can compute any
step, and the number of ranks does not enter. Each source is an endless stream of its rows, one
permutation after another, and its k-th step takes the k-th block of the stream: rows left over at
the end of an epoch open the next one. A source whose classes are drawn
equally often has the stream of `trainer.data.classes`.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction

import numpy as np

from trainer.data.batch import StepPlan
from trainer.data.classes import Classes, balanced_counts, balanced_rows
from trainer.data.permutation import keys_of, permute
from trainer.data.schedule import Schedule, make_schedule, turn_at, turns_before
from trainer.errors import RecipeError
from trainer.recipe.per_source import key_of, settings_of
from trainer.recipe.schema import DataRecipe, Recipe, SourceRecipe, Task
from trainer.recipe.tasks import TASKS

LARGEST_LOG = 709.7
"""Natural logarithm of the largest power that a float holds, nearly."""
LEAST_SHARE = 1e-300
"""Of a source beside one that is larger, however much a low temperature favours that one."""
MAX_STEPS = 1 << 53
"""No run is longer; above it not every number of steps has its float."""


@dataclass(frozen=True, kw_only=True)
class PlannedSource:
    """What the plan knows of a source."""

    name: str
    """As in the recipe."""
    task: Task
    """Task of its steps."""
    num_rows: int
    """Records it has."""
    batch_size: int
    """Rows of one step over all ranks."""
    classes: Classes | None = None
    """Its rows by class, where classes are drawn equally often; None: rows are."""


@dataclass(frozen=True, kw_only=True)
class Exposure:
    """How often the rows of a source are seen in a number of steps."""

    task: Task
    """Task of the source."""
    source: str
    """Name of the source."""
    num_rows: int
    """Records it has."""
    steps: int
    """Steps it gets."""
    rows_seen: int
    """Rows drawn, repeats counted."""
    epochs: float
    """`rows_seen / num_rows`."""
    never: int
    """Rows not seen."""
    once: int
    """Rows seen once."""
    twice: int
    """Rows seen twice."""
    more: int
    """Rows seen three times or more."""


@dataclass(frozen=True, kw_only=True)
class DataPlan:
    """The whole sequence of batches of a run."""

    seed: int
    """Root of all permutations."""
    sources: Mapping[str, PlannedSource]
    """By name."""
    tasks: Schedule
    """Whose turn it is among the tasks."""
    turns: Mapping[str, Schedule]
    """Whose turn it is among the sources of each task."""

    def at(self, step: int) -> StepPlan:
        """What a step trains on, `step` counted from 0."""
        return self.source_step(*self.turn(step), step)

    def source_step(self, name: str, turn: int, step: int) -> StepPlan:
        """A source's step number `turn`, which is the run's step number `step`."""
        source = self.sources[name]
        first = turn * source.batch_size
        return StepPlan(
            step=step,
            task=source.task,
            source=name,
            epoch=first // source.num_rows,
            rows=_rows(source, first, self.seed),
        )

    def turn(self, step: int) -> tuple[str, int]:
        """The source of a step, and how many steps it had before."""
        task, task_turn = turn_at(self.tasks, step)
        return turn_at(self.turns[task], task_turn)

    def source_steps(self, num_steps: int) -> dict[str, int]:
        """How many of the first steps each source gets."""
        counts: dict[str, int] = {}
        for task, steps in turns_before(self.tasks, num_steps).items():
            counts |= turns_before(self.turns[task], steps)
        return counts

    def num_steps(self, epochs: float) -> int:
        """The fewest steps after which every source was seen at least `epochs` times.

        Raises:
            RecipeError: if those are more than any run has.
        """
        if not self._seen(MAX_STEPS, epochs):
            raise self._endless(epochs)
        return _fewest(lambda steps: self._seen(steps, epochs))

    def first_step(self, name: str) -> int:
        """The first step that a source gets, counted from 0."""
        return _fewest(lambda steps: self.source_steps(steps)[name] > 0) - 1

    def exposure(self, num_steps: int) -> tuple[Exposure, ...]:
        """How often each source's rows are seen in the first steps, in the recipe's order."""
        steps = self.source_steps(num_steps)
        return tuple(
            _exposure(source, steps[name], self.seed) for name, source in self.sources.items()
        )

    def _seen(self, num_steps: int, epochs: float) -> bool:
        steps = self.source_steps(num_steps)
        written = Fraction(repr(epochs))  # 0.1 is a tenth, not the float a little above it
        return all(
            steps[name] * source.batch_size >= written * source.num_rows
            for name, source in self.sources.items()
        )

    def _endless(self, epochs: float) -> RecipeError:
        rarest = min(self.exposure(MAX_STEPS), key=lambda seen: seen.epochs)
        return RecipeError(
            f"recipe: train.epochs = {epochs:g}; expected a number that {MAX_STEPS:.0e} steps "
            f"reach, in which source {rarest.source} is seen {rarest.epochs:.3g} times. Lower it, "
            "raise data.temperature or the source's weight, or set train.max_steps."
        )


def _fewest(is_enough: Callable[[int], bool]) -> int:
    """The fewest steps, at least 1, that are enough; more than enough are enough too."""
    high = 1
    while not is_enough(high):
        high *= 2
    low = high // 2
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if is_enough(middle) else (middle, high)
    return high


def make_plan(
    recipe: Recipe, sizes: Mapping[str, int], classes: Mapping[str, Classes] | None = None
) -> DataPlan:
    """The plan of a recipe.

    Shares of the steps, for a source of n rows and weight w whose steps have b rows:
    `alternate` gives each task its count of `data.pattern` and each of its sources w;
    `proportional` gives each source w n / b; `temperature` gives it w (n / b)^(1 / T).

    Args:
        recipe: the run.
        sizes: number of records of each source, by name.
        classes: rows by class of the sources whose classes are drawn equally often, by name.

    Raises:
        RecipeError: if a batch has more rows than its source, a task with sources has no settings
            or no turn in the pattern, or the pattern names an unknown task.
    """
    found = classes or {}
    sources = [
        replace(_planned(one, recipe, sizes[one.name]), classes=found.get(one.name))
        for one in recipe.data.sources
    ]
    shares = _source_shares(recipe.data, sources)
    by_task: dict[str, dict[str, Fraction]] = {}
    for source in sources:
        by_task.setdefault(source.task, {})[source.name] = shares[source.name]
    return DataPlan(
        seed=recipe.seed,
        sources={source.name: source for source in sources},
        tasks=make_schedule(_task_shares(recipe.data, by_task)),
        turns={task: make_schedule(shares) for task, shares in by_task.items()},
    )


def _planned(source: SourceRecipe, recipe: Recipe, num_rows: int) -> PlannedSource:
    if source.task not in recipe.tasks:
        raise RecipeError(
            f"recipe: tasks.{source.task} = null; expected settings, as source {source.name} has "
            f"this task. Set tasks.{source.task}.global_batch_size."
        )
    batch_size = settings_of(recipe, source.name).global_batch_size
    if batch_size > num_rows:
        key = key_of(source, "global_batch_size")
        own = f"data.sources.{source.name}.global_batch_size"
        advice = "Lower it" if key == own else f"Lower it, set {own}"
        raise RecipeError(
            f"recipe: {key} = {batch_size}; expected at most {num_rows}, the rows of source "
            f"{source.name}. {advice}, or add rows."
        )
    return PlannedSource(
        name=source.name, task=source.task, num_rows=num_rows, batch_size=batch_size
    )


def _source_shares(data: DataRecipe, sources: list[PlannedSource]) -> dict[str, Fraction]:
    """Share of each source, of its task's turns under `alternate` and of all turns otherwise."""
    sizes = [Fraction(source.num_rows, source.batch_size) for source in sources]
    if data.schedule == "alternate":
        sizes = [Fraction(1)] * len(sources)
    elif data.schedule == "temperature":
        sizes = flattened(sizes, data.temperature)
    return {
        source.name: Fraction(recipe.weight) * size
        for recipe, source, size in zip(data.sources, sources, sizes, strict=True)
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


def _task_shares(
    data: DataRecipe, by_task: Mapping[str, Mapping[str, Fraction]]
) -> dict[str, Fraction]:
    """Share of each task that has sources; tasks without sources take no turns."""
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


def _rows(source: PlannedSource, first: int, seed: int) -> np.ndarray:
    """A block of the source's endless stream [batch_size], int64."""
    if source.classes is not None:
        size = source.batch_size
        return balanced_rows(source.classes, first, size, seed=seed, source=source.name)
    epoch, start = divmod(first, source.num_rows)
    parts = []
    remaining = source.batch_size
    while remaining:
        taken = min(remaining, source.num_rows - start)
        indices = np.arange(start, start + taken, dtype=np.int64)
        parts.append(permute(indices, source.num_rows, keys_of(seed, source.name, epoch)))
        epoch, start, remaining = epoch + 1, 0, remaining - taken
    return np.concatenate(parts)


def _rows_by_count(source: PlannedSource, seen: int, seed: int) -> list[int]:
    """How many rows of a source are seen never, once and twice in its first draws."""
    if source.classes is not None:
        counts = balanced_counts(
            source.classes, seen, source.num_rows, seed=seed, source=source.name
        )
        return [int((counts == times).sum()) for times in range(3)]
    epochs, extra = divmod(seen, source.num_rows)
    rows_by_count = {epochs: source.num_rows - extra, epochs + 1: extra}
    return [rows_by_count.get(times, 0) for times in range(3)]


def _exposure(source: PlannedSource, steps: int, seed: int) -> Exposure:
    seen = steps * source.batch_size
    fewer = _rows_by_count(source, seen, seed)
    return Exposure(
        task=source.task,
        source=source.name,
        num_rows=source.num_rows,
        steps=steps,
        rows_seen=seen,
        epochs=seen / source.num_rows,
        never=fewer[0],
        once=fewer[1],
        twice=fewer[2],
        more=source.num_rows - sum(fewer),
    )
