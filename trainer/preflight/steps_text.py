"""The steps of a run in words, before it is started or resumed; it must not read files."""

import math
from collections.abc import Mapping, Sequence

from trainer.checkpoint.continued import Continued
from trainer.data.plan import DataPlan, make_plan
from trainer.data.planned import groups_of
from trainer.data.sources import Source
from trainer.data.stretch import PlannedStretch, stretch_at
from trainer.data.teacher import scored_rows, taught_sources
from trainer.engine.lr import learning_rate
from trainer.memory.text import table
from trainer.recipe.per_source import settings_of
from trainer.recipe.resolve import warmup_steps
from trainer.recipe.schema import Recipe, SourceRecipe
from trainer.report.stretches import stretch_rows

COLUMNS = ("source", "task", "rows", "steps", "rows seen", "epochs", "never seen")


def steps_section(recipe: Recipe, sources: Sequence[Source], continued: Continued | None) -> str:
    """How long a run is, how often each source is seen, and where a teacher scored passages.

    Args:
        recipe: of the run.
        sources: those on this machine, opened.
        continued: the run as it goes on; None where it begins.
    """
    sizes = {source.name: len(source) for source in sources}
    if continued is None:
        text = _begun(recipe, sources, sizes)
    else:
        text = _resumed(recipe, continued, sizes)
    scored = [
        f"\n  a teacher's scores in {count:,} of {sizes[name]:,} rows of {name}"
        for name, count in scored_rows(sources).items()
    ]
    taught = [f"\n  {line}" for line in taught_sources(sources, recipe)]
    return "".join([text, *scored, *taught])


def _begun(recipe: Recipe, sources: Sequence[Source], sizes: dict[str, int]) -> str:
    """A run from its first step."""
    # under `alternate` the turns do not depend on the sizes, so any size stands for an unknown one
    guessed = {source.name: _enough_rows(recipe, source) for source in recipe.data.sources}
    plan = make_plan(recipe, guessed | sizes, groups_of(sources, recipe))
    unknown = [name for name in guessed if name not in sizes]
    if unknown and (recipe.data.schedule != "alternate" or recipe.train.max_steps is None):
        return _uncounted(unknown)
    num_steps = recipe.train.max_steps or plan.num_steps(recipe.train.epochs or 0)
    warmup = warmup_steps(recipe, num_steps)
    title = f"Steps: {num_steps:,}, of which {warmup:,} warm up; schedule {recipe.data.schedule}"
    return f"{title}\n{table([COLUMNS, *_exposure(recipe, plan, num_steps, sizes)])}"


def _enough_rows(recipe: Recipe, source: SourceRecipe) -> int:
    """Rows with which a source, or the part of it that is trained on, fills a batch."""
    part = recipe.data.subset if source.subset is None else source.subset
    fraction = 1.0 if part is None else part.fraction
    return math.ceil(settings_of(recipe, source.name).global_batch_size / fraction) + 1


def _resumed(recipe: Recipe, continued: Continued, sizes: Mapping[str, int]) -> str:
    """A run from a checkpoint on."""
    since = [f"\n  since then: {line}" for line in continued.lines]
    if not continued.planned:
        names = [one.name for one in recipe.data.sources if one.name not in sizes]
        return "".join([_uncounted(names), f"\n  resumed from {continued.tag}", *since])
    last, done = continued.planned[-1], continued.step
    num_steps, warmup = last.num_steps, warmup_steps(recipe, last.num_steps)
    title = (
        f"Steps: {num_steps:,}, of which {warmup:,} warm up; schedule {recipe.data.schedule}\n"
        f"  resumed from {continued.tag}: {done:,} steps done, {num_steps - done:,} to come"
    )
    at = stretch_at(continued.planned, done)
    if done < num_steps:
        title += f"; step {done:,} has a learning rate of {_rate(at, done):.3g}"
    before = at.plan.source_steps(done)
    rows: list[tuple[str, ...]] = [(*COLUMNS[:4], "to come", *COLUMNS[4:])]
    shown_rows = _exposure(last.recipe, last.plan, num_steps, sizes)
    for row, seen in zip(shown_rows, last.plan.exposure(num_steps), strict=True):
        rows.append(
            (*row[:4], f"{seen.steps - before.get(seen.mix or seen.source, 0):,}", *row[4:])
        )
    spans = stretch_rows(continued.stretches, num_steps)
    shown = f"\n{_aligned([('steps', 'what changed'), *spans])}" if len(spans) > 1 else ""
    return f"{''.join([title, *since])}\n{table(rows)}{shown}"


def _aligned(rows: Sequence[tuple[str, str]]) -> str:
    """Pairs of texts, both to the left."""
    width = max(len(first) for first, _ in rows)
    return "\n".join(f"  {first.ljust(width)}  {second}" for first, second in rows)


def _uncounted(names: Sequence[str]) -> str:
    listed = ", ".join(names)
    return f"Steps\n  known when the rows of {listed} are counted, at the start of the training"


def _exposure(
    recipe: Recipe, plan: DataPlan, num_steps: int, sizes: Mapping[str, int]
) -> list[tuple[str, ...]]:
    """How often each source is seen; of one that is not read its rows are not told."""
    away = {one.name: "on a store" if one.hub is None else "on the hub"
            for one in recipe.data.sources}  # fmt: skip
    return [
        (
            seen.source,
            seen.task,
            f"{seen.num_rows:,}" if seen.source in sizes else away[seen.source],
            f"{seen.steps:,}",
            f"{seen.rows_seen:,}",
            f"{seen.epochs:.2f}" if seen.source in sizes else "?",
            f"{seen.never:,}" if seen.source in sizes else "?",
        )
        for seen in plan.exposure(num_steps)
    ]


def _rate(stretch: PlannedStretch, step: int) -> float:
    """Learning rate of a step, no unit."""
    train = stretch.recipe.train
    return learning_rate(
        step,
        peak=train.learning_rate,
        num_steps=stretch.num_steps,
        warmup_steps=warmup_steps(stretch.recipe, stretch.num_steps),
        shape=train.schedule,
        min_ratio=train.min_learning_rate_ratio,
    )
