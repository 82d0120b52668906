"""Show which rows a run will train on, or trained on: exposure of every source, and single steps.

It must not decide anything: the run computes the same plan from the same code.
"""

import argparse
import json
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from trainer.cli import ending_with_code
from trainer.data.batch import StepPlan
from trainer.data.collate import make_batch
from trainer.data.evalsets import open_eval_sets
from trainer.data.overlap import screen_of
from trainer.data.plan import DataPlan, Exposure
from trainer.data.planned import plan_of
from trainer.data.row_settings import with_row_settings
from trainer.data.sources import Source, open_sources
from trainer.data.stretch import (
    PlannedStretch,
    Stretch,
    length_of,
    plan_stretches,
    stretch_at,
)
from trainer.data.tokens import load_tokenizer, make_encoder
from trainer.errors import DataError, TrainerError
from trainer.recipe.adapter_folder import with_adapter
from trainer.recipe.load import load_recipe
from trainer.recipe.per_source import turn_of
from trainer.recipe.schema import Recipe
from trainer.report.stretches import stretch_rows
from trainer.run_folder.facts import read_run_stretches
from trainer.run_folder.layout import RunFolder

DESCRIPTION = """\
Show, before a run, how often the rows of each source are seen, and which rows single steps train
on. The plan is a pure function of the recipe and the sizes of the sources: any step can be asked
for, and no number of ranks or workers changes it. With --run: the same of a run that has begun,
over all its stretches, from its output folder alone.
"""
EPILOG = """\
examples:
  python tools/show_plan.py --recipe recipes/minilm.yaml
  python tools/show_plan.py --recipe recipes/minilm.yaml data.schedule=proportional --steps 8
  python tools/show_plan.py --recipe recipes/minilm.yaml --start 1000 --steps 3 --json
  python tools/show_plan.py --run runs/minilm --start 1000 --steps 3
"""
SAMPLED_ROWS = 256
"""Rows of each source's first step that are tokenised to estimate its tokens."""
SHOWN_ROWS = 6
"""Row ids of a step that the table shows."""
COLUMNS = ("task", "source", "rows", "steps", "epochs", "never", "once", "twice", "more", "tokens")


@dataclass(frozen=True, kw_only=True)
class Arguments:
    """What the user asked for."""

    recipe: str | None
    """Path of the recipe; None: a run is shown."""
    run: Path | None
    """Output folder of a run; None: a recipe is shown."""
    overrides: tuple[str, ...]
    """`key.path=value`, in order."""
    start: int
    """First step shown."""
    steps: int | None
    """Number of steps shown; None: none in the table, all with --json."""
    as_json: bool
    """One JSON object per step in place of the table."""


def parse_arguments(argv: Sequence[str]) -> Arguments:
    """Read the command line; a mistake in it ends the process with code 2 and the usage."""
    parser = argparse.ArgumentParser(
        prog="show_plan.py",
        description=DESCRIPTION,
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    add = parser.add_argument
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--recipe", metavar="FILE", help="what to train, a YAML file")
    what.add_argument("--run", type=Path, metavar="FOLDER", help="output folder of a run")
    add("overrides", nargs="*", metavar="key.path=value", help="changes to the recipe")
    add("--start", type=_count, default=0, metavar="S", help="first step to show, from 0")
    add("--steps", type=_count, metavar="N", help="number of steps to show")
    add("--json", action="store_true", help="one JSON object per step, nothing else")
    found = parser.parse_intermixed_args(argv)
    if found.run is not None and found.overrides:
        parser.error("a run that has begun is shown as it is; key.path=value is for --recipe")
    return Arguments(
        recipe=found.recipe,
        run=found.run,
        overrides=tuple(found.overrides),
        start=found.start,
        steps=found.steps,
        as_json=found.json,
    )


def main() -> int:
    """Print the table or the steps and return the exit code."""
    arguments = parse_arguments(sys.argv[1:])
    if arguments.run is not None:
        stretches = _stretches_of(arguments.run.expanduser())
        planned = plan_stretches(stretches)
        num_steps = planned[-1].num_steps
        if not arguments.as_json and len(stretches) > 1:
            print_table(("steps", "what changed"), stretch_rows(stretches, num_steps))
            print()
        show(arguments, lambda step: stretch_at(planned, step).plan.at(step), planned[-1], None)
        return 0
    recipe = with_row_settings(
        with_adapter(load_recipe(arguments.recipe or "", arguments.overrides))
    )
    held_out = {} if recipe.data.overlap is None else open_eval_sets(recipe)
    sources = open_sources(recipe.data, screen_of(recipe.data, held_out))
    plan = plan_of(recipe, sources)
    tokens = None if arguments.as_json else estimate_tokens(recipe, plan, sources)
    whole = PlannedStretch(recipe=recipe, plan=plan, num_steps=length_of(recipe, plan))
    show(arguments, plan.at, whole, tokens)
    return 0


def show(
    arguments: Arguments,
    at: Callable[[int], StepPlan],
    last: PlannedStretch,
    tokens: Mapping[str, float] | None,
) -> None:
    """Print what was asked for.

    Args:
        arguments: see there.
        at: what a step trains on.
        last: the last stretch of the run, which counts for all of it.
        tokens: mean of a step of each source, where known.
    """
    if arguments.as_json:
        shown = last.num_steps - arguments.start if arguments.steps is None else arguments.steps
        for step in range(arguments.start, arguments.start + shown):
            print(json.dumps(step_line(at(step))))
        return
    print_exposure(last.plan, last.num_steps, tokens)
    if arguments.steps is not None:
        print_steps(map(at, range(arguments.start, arguments.start + arguments.steps)))


def _stretches_of(folder: Path) -> tuple[Stretch, ...]:
    """The stretches that a run says it has.

    Raises:
        DataError: if it says none.
    """
    stretches = read_run_stretches(folder)
    if not stretches:
        raise DataError(
            f"{RunFolder(folder).facts}: stretches = missing; expected the output folder of a run "
            "that has begun. Give its output_dir, or a recipe with --recipe."
        )
    return stretches


def step_line(step: StepPlan) -> dict[str, object]:
    """What a step trains on; rows are those of the global batch in order, of a mix by source."""
    return {
        "step": step.step,
        "task": step.task,
        "source": step.source,
        "epoch": step.epoch,
        "rows": step.rows.tolist()
        if not step.members
        else {name: rows.tolist() for name, rows in step.rows_by_source.items()},
    }


def estimate_tokens(
    recipe: Recipe, plan: DataPlan, sources: Sequence[Source]
) -> Mapping[str, float] | None:
    """Mean tokens of a step of each source, from its first steps; None without a tokenizer."""
    # heavy, and of no use to a plan without tokens
    from trainer.merge.model_place import place_of_model

    model = recipe.model
    try:
        tokenizer = load_tokenizer(
            place_of_model(model),
            pooling=model.pooling,
            end_token=model.end_token,
            revision=model.revision,
            trust_remote_code=model.trust_remote_code,
        )
    except TrainerError as error:
        print(f"tokens are not estimated: {error}", file=sys.stderr)
        return None
    encoder = make_encoder(tokenizer, recipe.data, pooling=model.pooling)
    means = {}
    for source in sources:
        step = plan.source_step(turn_of(recipe.data, source.name), 0, 0)
        rows = step.rows_by_source[source.name]
        if not len(rows):  # of a mix in which it has less than a row a step
            means[source.name] = 0.0
            continue
        sample = replace(step, source=source.name, rows=rows[:SAMPLED_ROWS], members=())
        batch = make_batch(sample, source, encoder, recipe)
        tokens = sum(map(len, batch.texts.token_ids))
        means[source.name] = tokens * len(rows) / len(sample.rows)
    return means


def print_exposure(plan: DataPlan, num_steps: int, tokens: Mapping[str, float] | None) -> None:
    """One line per source, then one per task."""
    exposure = plan.exposure(num_steps)
    totals = {seen.source: tokens[seen.source] * seen.steps for seen in exposure} if tokens else {}
    lines = [exposure_line(seen, totals) for seen in exposure]
    for task in dict.fromkeys(seen.task for seen in exposure):
        parts = [seen for seen in exposure if seen.task == task]
        whole = sum(totals.get(part.source, 0.0) for part in parts)
        lines.append(exposure_line(whole_task(parts), {"all": whole} if tokens else {}))
    print(f"{num_steps:,} steps; rows seen never, once, twice, more often; tokens estimated")
    print_table(COLUMNS, lines)


def exposure_line(seen: Exposure, tokens: Mapping[str, float]) -> list[str]:
    """The cells of one line; tokens are unknown where there is no tokenizer."""
    counts = [seen.never, seen.once, seen.twice, seen.more]
    return [
        seen.task,
        seen.source,
        f"{seen.num_rows:,}",
        f"{seen.steps:,}",
        f"{seen.epochs:.2f}",
        *(f"{count:,}" for count in counts),
        f"{tokens[seen.source]:.3g}" if tokens else "-",
    ]


def whole_task(parts: Sequence[Exposure]) -> Exposure:
    """The sources of a task as one source named `all`."""
    num_rows = sum(part.num_rows for part in parts)
    rows_seen = sum(part.rows_seen for part in parts)
    return Exposure(
        task=parts[0].task,
        source="all",
        num_rows=num_rows,
        steps=sum({part.mix or part.source: part.steps for part in parts}.values()),
        rows_seen=rows_seen,
        epochs=rows_seen / num_rows,
        never=sum(part.never for part in parts),
        once=sum(part.once for part in parts),
        twice=sum(part.twice for part in parts),
        more=sum(part.more for part in parts),
    )


def print_steps(steps: Iterable[StepPlan]) -> None:
    """One line per step with its first rows."""
    lines = []
    for step in steps:
        separator = ", " if step.members else " "
        rows = separator.join(map(str, step.shown_rows[:SHOWN_ROWS]))
        more = f" ... ({len(step.rows)})" if len(step.rows) > SHOWN_ROWS else ""
        lines.append([f"{step.step:,}", step.task, step.source, str(step.epoch), rows + more])
    print()
    print_table(("step", "task", "source", "epoch", "rows"), lines)


def print_table(columns: Sequence[str], lines: Sequence[Sequence[str]]) -> None:
    """Columns as wide as their widest cell."""
    widths = [max(map(len, cells)) for cells in zip(columns, *lines, strict=True)]
    for line in (columns, *lines):
        print("  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)))


def _count(text: str) -> int:
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"{text}; expected an integer of at least 0")
    return int(text)


if __name__ == "__main__":
    sys.exit(ending_with_code(main))
