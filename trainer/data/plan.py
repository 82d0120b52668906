"""Which task, source and rows a step trains on: a pure function of recipe, sizes and step.

Nothing is walked through and nothing is stored, so resuming is a jump, any rank can compute any
step, and the number of ranks does not enter. Each source is an endless stream of its rows, one
permutation after another, and its k-th step takes the k-th block of the stream: rows left over at
the end of an epoch open the next one. A source whose classes are drawn equally often has the stream
of `trainer.data.classes`; one whose steps hold texts of like length has epochs in the order of
`trainer.data.buckets`.

A run that goes on with another recipe has a plan for each stretch. Streams go on where they were.
So do turns where the shares are the same; where they changed, turns begin anew.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from fractions import Fraction

from trainer.data.batch import StepPlan
from trainer.data.classes import ClassStream
from trainer.data.mixed_stream import MixedStream
from trainer.data.row_stream import RowStream
from trainer.data.schedule import Schedule, make_schedule, turn_at, turns_before
from trainer.data.shares import task_shares
from trainer.data.streams import Groups, Stream, continue_stream
from trainer.data.takers import PlannedSource, takers_of
from trainer.errors import RecipeError
from trainer.recipe.schema import Recipe, Task

MAX_STEPS = 1 << 53
"""No run is longer; above it not every number of steps has its float."""


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
    """Steps that have rows of it: all of its mix, where it is in one."""
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
    mix: str = ""
    """Name of the mix that it is in; empty: its steps have no other rows."""


@dataclass(frozen=True, kw_only=True)
class Shifts:
    """What a later stretch adds to counts that begin with 0 at the first step of a run."""

    tasks: int = 0
    """To a step, for its place in the turns of the tasks."""
    turns: Mapping[str, int] = field(default_factory=dict)
    """To the turns of a task, for their place in the turns of its sources."""
    rows: Mapping[str, int] = field(default_factory=dict)
    """To the rows of a source's turns, for their place in its stream."""
    steps: Mapping[str, int] = field(default_factory=dict)
    """To the turns of a source, for the steps that it had in the whole run."""


@dataclass(frozen=True, kw_only=True)
class DataPlan:
    """The whole sequence of batches of a run, or of a stretch of it."""

    sources: Mapping[str, PlannedSource]
    """What takes turns: sources by themselves and mixes, by name."""
    streams: Mapping[str, Stream]
    """Rows of each of them."""
    tasks: Schedule
    """Whose turn it is among the tasks."""
    turns: Mapping[str, Schedule]
    """Whose turn it is among the sources of each task."""
    first_step: int = 0
    """Where the stretch begins, in steps of the run."""
    shifts: Shifts = Shifts()
    """Where it begins in its turns and streams."""

    def at(self, step: int) -> StepPlan:
        """What a step trains on, `step` counted from 0."""
        return self.source_step(*self.turn(step), step)

    def source_step(self, name: str, turn: int, step: int) -> StepPlan:
        """A source's step number `turn`, which is the run's step number `step`."""
        source, stream = self.sources[name], self.streams[name]
        first = self._position(name, turn)
        return StepPlan(
            step=step,
            task=source.task,
            source=name,
            epoch=stream.epoch(first),
            rows=source.records(stream.rows(first, source.batch_size)),
            members=tuple(member.name for member in source.members),
        )

    def turn(self, step: int) -> tuple[str, int]:
        """The source of a step, and the number of its turn."""
        task, task_turn = turn_at(self.tasks, step + self.shifts.tasks)
        return turn_at(self.turns[task], task_turn + self.shifts.turns.get(task, 0))

    def first_turn(self, name: str) -> int:
        """The number of the first turn of a source."""
        return self._turns_before(self.first_step)[name]

    def source_steps(self, num_steps: int) -> dict[str, int]:
        """How many of the first steps of the run each source gets."""
        turns = self._turns_before(num_steps)
        return {name: number + self.shifts.steps.get(name, 0) for name, number in turns.items()}

    def _turns_before(self, step: int) -> dict[str, int]:
        """Number of the next turn of each source at a step."""
        counts: dict[str, int] = {}
        for task, turns in turns_before(self.tasks, step + self.shifts.tasks).items():
            counts |= turns_before(self.turns[task], turns + self.shifts.turns.get(task, 0))
        return counts

    def _position(self, name: str, turn: int) -> int:
        """Where a turn of a source begins in its stream."""
        return turn * self.sources[name].batch_size + self.shifts.rows.get(name, 0)

    def num_steps(self, epochs: float) -> int:
        """The fewest steps of the run after which every source was seen at least `epochs` times.

        They are as many as the stretch has before it at least. Rows that were added count as all
        others: a source is seen once when as many rows were taken as it has now.

        Raises:
            RecipeError: if those are more than any run has.
        """
        if not self._seen(MAX_STEPS, epochs):
            raise self._endless(epochs)
        found = _fewest(lambda steps: self._seen(self.first_step + steps, epochs))
        return self.first_step if self._seen(self.first_step, epochs) else self.first_step + found

    def first_step_of(self, name: str) -> int:
        """The first step of the plan that a source gets, in steps of the run."""
        before = self.first_turn(name)
        found = _fewest(lambda steps: self._turns_before(self.first_step + steps)[name] > before)
        return self.first_step + found - 1

    def exposure(self, num_steps: int) -> tuple[Exposure, ...]:
        """How often each source's rows are seen in the run's first steps.

        They are in the recipe's order, those of a mix beside each other.
        """
        steps, turns = self.source_steps(num_steps), self._turns_before(num_steps)
        return tuple(
            _exposure(
                source, stream, position, steps[name], mix="" if source.name == name else name
            )
            for name in self.sources
            for source, stream, position in self._parts(name, turns[name])
        )

    def _parts(
        self, name: str, turn: int
    ) -> list[tuple[PlannedSource, RowStream | ClassStream, int]]:
        """Each source of what takes turns, with its stream and where a turn finds it there."""
        source, stream = self.sources[name], self.streams[name]
        position = self._position(name, turn)
        if not isinstance(stream, MixedStream):
            return [(source, stream, position)]
        places = stream.places(position)
        return [
            (member, part.stream, places[member.name])
            for member, part in zip(source.members, stream.parts, strict=True)
        ]

    def _seen(self, num_steps: int, epochs: float) -> bool:
        turns = self._turns_before(num_steps)
        written = Fraction(repr(epochs))  # 0.1 is a tenth, not the float a little above it
        return all(
            stream.total(position) >= written * source.num_rows
            for name in self.sources
            for source, stream, position in self._parts(name, turns[name])
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
    recipe: Recipe, sizes: Mapping[str, int], groups: Mapping[str, Groups] | None = None
) -> DataPlan:
    """The plan of a recipe.

    Shares of the steps, for a source of n rows and weight w whose steps have b rows:
    `alternate` gives each task its count of `data.pattern` and each of its sources w;
    `proportional` gives each source w n / b; `temperature` gives it w (n / b)^(1 / T). Sources that
    are mixed have the sum of their shares, and share the rows of their steps by these.

    Args:
        recipe: the run.
        sizes: number of records of each source, by name.
        groups: rows by class of the sources whose classes are drawn equally often, and lengths of
            the rows of those whose steps hold texts of like length, by name.

    Raises:
        RecipeError: if a batch has more rows than its source, or than a bucket of it, or more of a
            source of a mix than that has, a task with sources has no settings or no turn in the
            pattern, or the pattern names an unknown task.
    """
    takers = takers_of(recipe, sizes, groups or {})
    by_task: dict[str, dict[str, Fraction]] = {}
    for taker in takers:
        by_task.setdefault(taker.source.task, {})[taker.source.name] = taker.share
    return DataPlan(
        sources={one.source.name: one.source for one in takers},
        streams={one.source.name: one.stream for one in takers},
        tasks=make_schedule(task_shares(recipe.data, by_task)),
        turns={task: make_schedule(shares) for task, shares in by_task.items()},
    )


def continue_plan(before: DataPlan, first_step: int, plan: DataPlan) -> DataPlan:
    """The plan of a stretch that follows another one.

    Args:
        before: of the stretch that ends.
        first_step: where the next one begins, in steps of the run.
        plan: of its recipe, as if it began the run; no source has fewer rows than before, nor
            other classes.
    """
    task_turn = first_step + before.shifts.tasks if plan.tasks == before.tasks else 0
    tasks_before = turns_before(before.tasks, first_step + before.shifts.tasks)
    ended = before._turns_before(first_step)
    streams, turns, rows, steps = {}, {}, {}, {}
    for task, number in turns_before(plan.tasks, task_turn).items():
        same = plan.turns[task] == before.turns.get(task)
        source_turn = tasks_before[task] + before.shifts.turns.get(task, 0) if same else 0
        turns[task] = source_turn - number
        for name, turn in turns_before(plan.turns[task], source_turn).items():
            stream, position = plan.streams[name], 0
            if name in before.streams:
                old, position = before.streams[name], before._position(name, ended[name])
                _check_same_subset(before.sources[name], plan.sources[name])
                stream, position = continue_stream(old, position, stream)
            streams[name] = stream
            rows[name] = position - turn * plan.sources[name].batch_size
            steps[name] = before.source_steps(first_step).get(name, 0) - turn
    shifts = Shifts(tasks=task_turn - first_step, turns=turns, rows=rows, steps=steps)
    return replace(plan, streams=streams, first_step=first_step, shifts=shifts)


def _check_same_subset(before: PlannedSource, now: PlannedSource) -> None:
    """Which rows are taken depends on how many there are, so none can be added to a part."""
    for one, other in zip(before.members, now.members, strict=True):
        _check_same_subset(one, other)
    if before.subset != now.subset:
        raise RecipeError(
            f"data.sources.{now.name}: rows were added, or data.subset is another one, or its own "
            "subset; expected the same rows, as the run trains on a part. Add a source instead."
        )


def _exposure(
    source: PlannedSource, stream: RowStream | ClassStream, position: int, steps: int, *, mix: str
) -> Exposure:
    """How often rows were seen before a position of the stream."""
    rows_by_count: dict[int, int] = {}
    for rows, times in stream.seen(position):
        rows_by_count[times] = rows_by_count.get(times, 0) + rows
    fewer = [rows_by_count.get(times, 0) for times in range(3)]
    total = stream.total(position)
    return Exposure(
        task=source.task,
        source=source.name,
        num_rows=source.num_rows,
        steps=steps,
        rows_seen=total,
        epochs=total / source.num_rows,
        never=fewer[0],
        once=fewer[1],
        twice=fewer[2],
        more=source.num_rows - sum(fewer),
        mix=mix,
    )
