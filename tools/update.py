"""Bring new data into a trained model: train on it and a part of the old, merge, and compare.

It must not train or merge itself: it starts `trainer/run.py` and `tools/delta_merge.py`, and shows
what was gained on the new held-out sets and lost on the old ones.
"""

import argparse
import json
import shlex
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

# started by path, as the docs show
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from series.commands import MERGED, check_launcher, check_merge, chosen_by, merge, train
from series.gains import (
    SOURCE_HEAD,
    gains,
    gains_page,
    gains_text,
    set_scores,
    source_rows,
)
from series.joined import Settings, joined_recipe
from series.old_run import read_old_run
from series.plan import writing_into
from series.scores import SCORES, as_plain, score_models
from series.update import (
    RUN,
    Update,
    as_trained,
    begin,
    check_folder,
    chosen_merge,
    facts_of,
    identity,
    rows_of,
)
from tools.evaluate import columns
from trainer.checkpoint.json_files import write_json, write_whole
from trainer.cli import ending_with_code, let_idle_threads_sleep
from trainer.data.row_settings import with_row_settings
from trainer.recipe.adapter_folder import with_adapter
from trainer.recipe.load import load_recipe

DESCRIPTION = """\
Train a finished run's model on new sources and a part of its old ones, merge the result into the
old model, and show what was gained on the new held-out sets and lost on the old ones. Whatever is
finished is kept, and what was interrupted goes on, so the same command can be given again.
"""
EPILOG = """\
examples:
  python tools/update.py --run runs/helpdesk --recipe new.yaml --output runs/update --dry-run
  python tools/update.py --run runs/helpdesk --recipe new.yaml --output runs/update
  python tools/update.py --run OLD --recipe NEW --output O --old-share 0.5 --steps 400 --weight 0.3
  python tools/update.py --run OLD --recipe NEW --output O --start base --search dev pairs.jsonl
  python tools/update.py --run OLD --recipe NEW --output O -- train.learning_rate=1e-5

exit codes: 0 done, 2 a mistake in arguments or inputs, 130 interrupted, else that of the command
that failed
"""
SHARE_OF_STEPS = 0.25
"""Steps of an update for each step of the old run, where --steps says nothing."""
RECORD, PAGE = "update.json", "update.html"
"""What came of it, in the output folder; the record is written last."""
SET_HEAD = ("set", "of", "kind", "place")
WEIGHTED = ("task_arithmetic", "slerp", "multi_slerp")
"""Methods that take a weight."""


def parse_arguments(words: Sequence[str]) -> argparse.Namespace:
    """What the user asked for; a mistake ends the process with code 2 and the usage."""
    parser = argparse.ArgumentParser(
        prog="update.py",
        description=DESCRIPTION,
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    add = parser.add_argument
    add("--run", type=Path, required=True, metavar="OLD", help="output folder of a finished run")
    add("--recipe", required=True, metavar="NEW",
        help="recipe with the new sources and held-out sets, and how to train")  # fmt: skip
    add("--output", type=Path, required=True, help="folder of the training, the merge, the report")
    add("--old-share", type=float, default=0.25, metavar="F",
        help="part of the rows of each old source, and steps on old sources for each step on new "
        "ones (default: 0.25)")  # fmt: skip
    add("--seed", type=int, default=0, help="which of the old rows (default: 0)")
    add("--start", choices=("old", "base"), default="old",
        help="train the old model on, or what it was trained from (default: old)")  # fmt: skip
    add("--steps", type=int, metavar="N",
        help=f"optimizer steps (default: {SHARE_OF_STEPS:g} of the old run's)")  # fmt: skip
    _add_merge(parser)
    add("--launcher", default="deepspeed",
        help="command before trainer/run.py, such as 'deepspeed --num_gpus 8' or 'torchrun "
        "--nproc-per-node 8' (default: deepspeed)")  # fmt: skip
    _add_output(parser)
    return _checked(parser, parser.parse_intermixed_args(words))


def _add_output(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--dry-run", action="store_true",
        help="check all, say what would be trained, merged and scored, write nothing")  # fmt: skip
    add("--json", action="store_true", help="end with one JSON object")
    add("overrides", nargs="*", metavar="key.path=value", help="changes to NEW")


def _add_merge(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--method", help="of tools/delta_merge.py (default: uniform)")
    add("--weight", type=float, metavar="W",
        help=f"of the updated model, from 0 to 1, the rest is the old one's; for "
        f"{', '.join(WEIGHTED)}, of which the first is then the default")  # fmt: skip
    add("--search", nargs="+", metavar="PATH[:KIND]",
        help="choose the merge by these held-out sets, in place of --method")  # fmt: skip


def _checked(parser: argparse.ArgumentParser, found: argparse.Namespace) -> argparse.Namespace:
    """Refuse numbers out of range, and options that contradict each other."""
    if not 0 < found.old_share <= 1:
        parser.error(f"--old-share {found.old_share:g}: expected above 0 and at most 1")
    if found.steps is not None and found.steps < 1:
        parser.error(f"--steps {found.steps}: expected at least 1")
    if found.seed < 0:
        parser.error(f"--seed {found.seed}: expected at least 0")
    if found.search and (found.method, found.weight) != (None, None):
        parser.error("--method and --weight are what --search chooses; leave them out")
    if found.weight is not None and not 0 <= found.weight <= 1:
        parser.error(f"--weight {found.weight:g}: expected from 0 to 1")
    if found.weight is not None and found.method not in (None, *WEIGHTED):
        parser.error(f"--weight is for {', '.join(WEIGHTED)}, not for --method {found.method}")
    if found.weight is None and found.method == "task_arithmetic":
        parser.error("--method task_arithmetic: expected --weight beside it")
    for word in found.overrides:
        if word.startswith(("train.max_steps=", "train.epochs=")):
            parser.error(f"{word}: an update is as long as --steps says; give that")
    return found


def merge_options(arguments: argparse.Namespace) -> list[str]:
    """Options of the merge; the updated model is the first of the two."""
    weight, method = arguments.weight, arguments.method
    if weight is None:
        return chosen_by(arguments.search, ("--method", method or "uniform"))
    method = method or WEIGHTED[0]
    rest = f"{1 - weight:.12g}"
    own = ["--t", rest] if method == "slerp" else ["--weights", f"{weight:.12g}", rest]
    return ["--method", method, *own]


def plan_update(arguments: argparse.Namespace) -> Update:
    """Read and check all that does not need data.

    Raises:
        RecipeError: if the run is not finished, or a recipe is wrong, or the two do not agree.
        CheckpointError: if the base cannot be merged with.
        DataError: if a set of --search is wrong.
    """
    old, output = read_old_run(arguments.run), arguments.output.expanduser().absolute()
    loaded = load_recipe(arguments.recipe, arguments.overrides)
    new = with_row_settings(with_adapter(loaded))
    settings = Settings(
        start=arguments.start,
        share=arguments.old_share,
        seed=arguments.seed,
        steps=arguments.steps or max(1, round(SHARE_OF_STEPS * old.steps)),
        folder=output / RUN,
    )
    recipe = joined_recipe(old, new, arguments.recipe, settings)
    found = Update(
        old=old,
        new=new,
        # an adapter that is trained on brings its settings
        recipe=with_adapter(recipe),
        settings=settings,
        output=output,
        chosen=tuple(merge_options(arguments)),
        search=tuple(arguments.search or ()),
        launcher=arguments.launcher,
    )
    check_folder(found)
    check_merge(found.merge_command, found.search)
    check_launcher(found.launcher)
    return found


def describe(update: Update, sources: Sequence[Mapping[str, Any]]) -> str:
    """What is trained, in words and a table."""
    old, settings = update.old, update.settings
    start = old.model if settings.start == "old" else update.recipe.model.path
    share = f"{settings.steps / old.steps:.0%} of the {old.steps:,} of {old.folder}"
    return (
        f"train {start} for {settings.steps:,} steps, {share}; --steps says how many\n"
        f"{columns([SOURCE_HEAD, *source_rows(sources)])}"
    )


def show(update: Update, sources: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Print what an update would do; gives the same for JSON."""
    train, merging = update.train_command, update.merge_command
    print(f"{describe(update, sources)}\n$ {shlex.join(train)}\n")
    print(f"merge it into {update.old.model}\n$ {shlex.join(merging)}\n")
    rows = [
        (one.name, of, one.task, one.path or f"hub:{one.hub}")
        for of, sets in (("new", update.new_sets), ("old", update.old_sets))
        for one in sets
    ]
    print(f"score {', '.join(update.models)} on\n{columns([SET_HEAD, *rows])}")
    return {
        "train": {"command": train, "steps": update.settings.steps, "sources": list(sources)},
        "merge": {"command": merging},
        "score": [dict(zip(SET_HEAD, row, strict=True)) for row in rows],
    }


def carry_out(update: Update, sources: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Train, merge, score, show and write; gives the record."""
    begin(update)
    print(describe(update, sources), flush=True)
    train(update.train_command, update.settings.folder)
    sources = as_trained(update, sources)
    merge(update.merge_command, update.models[MERGED])
    sets = [*update.new_sets, *update.old_sets]
    scores = score_models(update.models, sets, update.output / SCORES)
    lines = set_scores(scores, update.new_sets, update.old_sets)
    print(f"\n{gains_text(lines)}")
    facts = {**facts_of(update), "merge": chosen_merge(update)}
    record = {
        **{key: value for key, value in identity(update).items() if key != "recipe"},
        "start": update.settings.start,
        "steps": update.settings.steps,
        "old_steps": update.old.steps,
        "old_share": update.settings.share,
        "seed": update.settings.seed,
        "sources": list(sources),
        "chosen": chosen_merge(update),
        **gains(lines),
        "scores": as_plain(scores),
    }
    with writing_into(update.output):
        write_whole(update.output / PAGE, gains_page(lines, facts, sources))
        write_json(update.output / RECORD, record)
    return record


def main() -> int:
    """Train, merge, score and show; returns the exit code.

    Raises:
        TrainerError: see `plan_update`, `rows_of` and `begin`.
    """
    arguments = parse_arguments(sys.argv[1:])
    let_idle_threads_sleep()
    update = plan_update(arguments)
    sources = rows_of(update)
    record = show(update, sources) if arguments.dry_run else carry_out(update, sources)
    if arguments.json:
        sys.stdout.write(f"{json.dumps(record)}\n")
    return 0


if __name__ == "__main__":
    sys.exit(ending_with_code(main))
