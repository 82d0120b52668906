"""Train models on parts of the data and merge them, as BOOM does: more robust than one run on all.

It must not train or merge itself: it starts `trainer/run.py` and `tools/delta_merge.py`, and shows
what came of them.
"""

import argparse
import json
import shlex
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

# started by path, as the docs show
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from series.commands import (
    MERGED,
    base_of,
    check_launcher,
    check_merge,
    chosen_by,
    merge,
    merge_command,
    train,
    train_command,
)
from series.plan import check_plan, plan_of_work, write_plan, writing_into
from series.scores import SCORES, as_plain, score_models, sets_of
from tools.evaluate import Results
from trainer.checkpoint.json_files import write_json
from trainer.cli import ending_with_code
from trainer.errors import RecipeError
from trainer.recipe.eval_kinds import EVAL_KINDS, metric_label
from trainer.recipe.load import load_recipe
from trainer.recipe.schema import Recipe
from trainer.run_folder.layout import RunFolder

DESCRIPTION = """\
Train a recipe several times, each time on another seeded part of every source (data.subset), and
merge the results. Runs that are there already are kept, and interrupted ones go on, so the same
command can be given again. With --only a host trains some of the runs; the command without it then
merges them.
"""
EPILOG = """\
examples:
  python tools/bag.py --recipe recipes/minilm.yaml --bags 4 --fraction 0.5 --output runs/bag
  python tools/bag.py --recipe R --bags 4 --fraction 0.5 --output runs/bag --with-whole
  python tools/bag.py --recipe R --bags 4 --fraction 0.5 --output runs/bag --only 2 3
  python tools/bag.py --recipe R --bags 4 --fraction 0.5 --output runs/bag --search dev dev.jsonl

exit codes: 0 done, 2 a mistake in arguments or inputs, else that of the command that failed
"""
RECORD = "bag.json"
"""Scores of all models, in the output folder."""
WHOLE = "whole"
"""Folder of the run on all data."""


@dataclass(frozen=True, kw_only=True)
class Run:
    """One training run."""

    name: str
    """Of its folder."""
    overrides: tuple[str, ...]
    """Of the recipe, `key.path=value`."""


def parse_arguments(words: Sequence[str]) -> argparse.Namespace:
    """What the user asked for; a mistake ends the process with code 2 and the usage."""
    parser = argparse.ArgumentParser(
        prog="bag.py",
        description=DESCRIPTION,
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    add = parser.add_argument
    add("--recipe", required=True, metavar="FILE", help="what is trained")
    add("--bags", type=int, required=True, metavar="M", help="how many models, at least 2")
    add("--fraction", type=float, required=True, metavar="F", help="share of the rows of each")
    add("--output", type=Path, required=True, help="folder of all runs, their merge and bag.json")
    add(
        "--seed", type=int, default=0, help="data.subset.seed of the first; others count on from it"
    )
    add("--method", default="uniform", help="of tools/delta_merge.py (default: uniform)")
    add("--search", nargs="+", metavar="PATH[:KIND]",
        help="choose the merge by these held-out sets, in place of --method")  # fmt: skip
    add("--with-whole", action="store_true",
        help="train one run on all data as well, of the steps of all others together")  # fmt: skip
    add("--only", type=int, nargs="+", metavar="I",
        help="train the runs of these numbers, from 1, and nothing else")  # fmt: skip
    add("--launcher", default="deepspeed",
        help="command before trainer/run.py, such as 'deepspeed --num_gpus 8' or 'torchrun "
        "--nproc-per-node 8' (default: deepspeed)")  # fmt: skip
    add("--dry-run", action="store_true", help="check and show the commands, and run none")
    add("--json", action="store_true", help="end with one JSON object")
    add("overrides", nargs="*", metavar="key.path=value", help="changes to the recipe of all runs")
    found = parser.parse_intermixed_args(words)
    if found.bags < 2:
        parser.error(f"--bags {found.bags}: expected at least 2 models to merge")
    if not 0 < found.fraction <= 1:
        parser.error(f"--fraction {found.fraction:g}: expected above 0 and at most 1")
    if found.only and not all(1 <= number <= found.bags for number in found.only):
        parser.error(f"--only {found.only}: expected numbers from 1 to {found.bags}")
    if found.search and found.method != parser.get_default("method"):
        parser.error("--method is what --search chooses; leave one of them out")
    return found


def runs_of(arguments: argparse.Namespace) -> list[Run]:
    """Every run, those of the parts first, each a recipe that loads.

    Raises:
        RecipeError: if the recipe is wrong, or cannot be bagged.
    """
    recipe = load_recipe(arguments.recipe, arguments.overrides)
    if recipe.data.subset is not None:
        raise RecipeError(
            f"{arguments.recipe}: data.subset = {recipe.data.subset}; expected none, as each run "
            "of a bag is given its own. Remove it."
        )
    parts = [
        Run(
            name=f"bag-{number}",
            overrides=(
                f"data.subset.fraction={arguments.fraction}",
                f"data.subset.seed={arguments.seed + number - 1}",
            ),
        )
        for number in range(1, arguments.bags + 1)
    ]
    whole = [Run(name=WHOLE, overrides=(_times_as_long(recipe, arguments),))]
    runs = parts + (whole if arguments.with_whole else [])
    for run in runs:
        load_recipe(arguments.recipe, words_of(run, arguments))
    return runs


def _times_as_long(recipe: Recipe, arguments: argparse.Namespace) -> str:
    """The length of a run on all data with the steps of all parts."""
    train = recipe.train
    if train.max_steps is not None:
        return f"train.max_steps={arguments.bags * train.max_steps}"
    assert train.epochs is not None
    # an epoch of a part has that share of the steps of one of all data
    return f"train.epochs={arguments.bags * arguments.fraction * train.epochs}"


def words_of(run: Run, arguments: argparse.Namespace) -> tuple[str, ...]:
    """The overrides of one run."""
    folder = arguments.output.absolute() / run.name
    return (*arguments.overrides, *run.overrides, f"output_dir={folder}")


def command_of(run: Run, arguments: argparse.Namespace) -> list[str]:
    """How one run is started; one that began goes on."""
    folder = arguments.output.absolute() / run.name
    recipe, launcher = Path(arguments.recipe), arguments.launcher
    return train_command(recipe, words_of(run, arguments), folder, launcher=launcher)


def merging(recipe: Recipe, arguments: argparse.Namespace) -> list[str]:
    """How the results are merged."""
    output = arguments.output.absolute()
    parts = [output / f"bag-{number}" / "model" for number in range(1, arguments.bags + 1)]
    chosen = chosen_by(arguments.search, ("--method", arguments.method))
    return merge_command(base_of(recipe.model), parts, output / MERGED, chosen)


def means(scores: Mapping[str, Results], bags: int) -> Results:
    """The mean of the parts, metric by metric."""
    parts = [scores[f"bag-{number}"] for number in range(1, bags + 1)]
    return {
        name: {key: sum(part[name][key] for part in parts) / bags for key in metrics}
        for name, metrics in parts[0].items()
    }


def show(recipe: Recipe, scores: Mapping[str, Results]) -> None:
    """Each set's main metric, a column for each model."""
    names = list(scores)
    widths = [max(9, len(name)) for name in names]
    print(f"\n{'set':<28}" + "".join(f"  {n:>{w}}" for n, w in zip(names, widths, strict=True)))
    for one in recipe.eval.sets:
        key = EVAL_KINDS[one.task].main_metric
        cells = (
            f"  {scores[name][one.name][key]:>{width}.4f}"
            for name, width in zip(names, widths, strict=True)
        )
        print(f"{f'{one.name}, {metric_label(key)}':<28}{''.join(cells)}")


def main() -> int:
    """Train, merge, score and show; returns the exit code.

    Raises:
        RecipeError: if the recipe is wrong, or a command is missing.
        DataError: if a held-out set is wrong.
        StepError: if a run did not end as its launcher said.
    """
    arguments = parse_arguments(sys.argv[1:])
    runs = runs_of(arguments)
    recipe = load_recipe(arguments.recipe, arguments.overrides)
    plan = plan_of_work(
        recipe,
        bags=arguments.bags,
        fraction=arguments.fraction,
        seed=arguments.seed,
        merge=chosen_by(arguments.search, ("--method", arguments.method)),
    )
    check_plan(arguments.output, plan)
    merged = merging(recipe, arguments)
    check_merge(merged, arguments.search or ())
    check_launcher(arguments.launcher)
    chosen = runs
    if arguments.only:
        chosen = [runs[number - 1] for number in sorted(set(arguments.only))]
    if arguments.dry_run:
        commands = [command_of(run, arguments) for run in chosen]
        commands += [] if arguments.only else [merged]
        print("\n".join(map(shlex.join, commands)))
        record: dict[str, Any] = {"commands": commands}
    else:
        write_plan(arguments.output, plan)
        for run in chosen:
            train(command_of(run, arguments), arguments.output / run.name)
        record = {"trained": [run.name for run in chosen]}
        if not arguments.only:
            merge(merged, arguments.output / MERGED)
            record = scored(recipe, runs, arguments)
    if arguments.json:
        sys.stdout.write(f"{json.dumps(record)}\n")
    return 0


def scored(recipe: Recipe, runs: Sequence[Run], arguments: argparse.Namespace) -> dict[str, Any]:
    """Score all models, show and write the scores."""
    output, scores = arguments.output, dict[str, Results]()
    sets = sets_of(recipe)
    if sets:
        models = {run.name: RunFolder(output / run.name).model for run in runs}
        scores = score_models(models | {MERGED: output / MERGED}, sets, output / SCORES)
        scores["mean"] = means(scores, arguments.bags)
        order = [*(run.name for run in runs[: arguments.bags]), "mean", MERGED, WHOLE]
        scores = {name: scores[name] for name in order if name in scores}
        show(recipe, scores)
    record = {
        "bags": arguments.bags,
        "fraction": arguments.fraction,
        "scores": as_plain(scores),
    }
    with writing_into(output):
        write_json(output / RECORD, record)
    return record


if __name__ == "__main__":
    sys.exit(ending_with_code(main))
