"""Score an embedder on held-out sets: `python tools/evaluate.py --model DIR --sets PATH ...`.

DIR is a sentence-transformers folder, a hub id, or the output folder of a run, which is scored
with the text lengths of its recipe. A set is written PATH or PATH:KIND, with an evaluation kind of
the recipe's `eval.sets`; without one it is a BEIR folder or a file of scored pairs. A set of the
Hugging Face hub is hub:ORG/SET:KIND or hub:ORG/SET:CONFIGURATION:KIND.
`--mteb TASK ...` scores tasks of the MTEB leaderboards through their own package, which downloads
their data and writes its own files of results, with what the run says of the model. `--list` shows
which prompt of the model each task takes instead. With `--json` the last line is
`{set: {metric: value}}`, null where a value is not defined.

A Matryoshka model is scored by its prefixes too, those that `--dims` names or else those that its
recipe or config.json names; in JSON they are the key `dims` of a set, `{size: {metric: value}}`.
"""

import argparse
import json
import logging
import math
import os
import re
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from trainer.cli import ending_with_code
from trainer.data.evalsets import open_eval_set
from trainer.data.sources import kind_of_path
from trainer.errors import DataError, RecipeError
from trainer.evaluation.best import means_of
from trainer.evaluation.exported import (
    ExportedEmbedder,
    check_dims,
    find_model,
    load_model,
    trained_dims,
)
from trainer.evaluation.mteb_tasks import (
    MetaFacts,
    check_mteb,
    find_tasks,
    prompt_uses,
    results_folder,
    score_tasks,
)
from trainer.export.clients.mteb import type_uses
from trainer.recipe.eval_kinds import EVAL_KINDS
from trainer.recipe.schema import DataRecipe, EvalSetRecipe
from trainer.report.exported import read_exported
from trainer.report.mteb_facts import facts_of_folder, facts_of_run
from trainer.run_folder.layout import RunFolder

if TYPE_CHECKING:
    from trainer.evaluation.examine import SetReport

HUB = "hub:"
"""What a set of the Hugging Face hub begins with."""
UNKNOWN_REVISION = "no_revision_available"
"""What mteb calls the revision of a model that says none."""

Results = Mapping[str, Mapping[str, float]]
"""Metrics by set or task."""
Dims = Mapping[str, Mapping[int, Mapping[str, float]]]
"""Metrics by set and size of the prefix, the whole vector first."""


def read_set(text: str, split: str | None) -> EvalSetRecipe:
    """A set from `PATH`, `PATH:KIND` or `hub:ORG/SET:KIND`.

    Raises:
        DataError: if there is nothing at the path, or a set of the hub lacks its kind.
    """
    path, colon, kind = text.rpartition(":")
    if not colon or kind not in EVAL_KINDS:
        path, kind = text, ""
    if path.startswith(HUB):
        return _set_of_hub(path.removeprefix(HUB), kind, split)
    if not path or not _exists(Path(path).expanduser()):
        layouts = ", ".join(f"{name}: {one.layout}" for name, one in EVAL_KINDS.items())
        raise DataError(
            f"--sets: {path} = missing; expected a BEIR folder or a file of scored pairs, or "
            f"PATH:KIND ({layouts}). Check the path."
        )
    name = Path(path).name.removesuffix(".jsonl")
    kind = kind or kind_of_path(Path(path).expanduser())
    return EvalSetRecipe(name=name, task=kind, path=path, split=split)


def _set_of_hub(name: str, kind: str, split: str | None) -> EvalSetRecipe:
    """A set of the hub, whose kind has to be said."""
    identifier = name.rpartition("/")[2]
    if not identifier or not kind:
        raise DataError(
            f"--sets: {HUB}{name} = {'no name' if kind else 'no kind'}; expected hub:ORG/SET:KIND "
            f"or hub:ORG/SET:CONFIGURATION:KIND, with one of {', '.join(EVAL_KINDS)}. Correct it."
        )
    return EvalSetRecipe(name=identifier.replace(":", "-"), task=kind, hub=name, split=split)


def _exists(path: Path) -> bool:
    """Whether there is something; not at a path that no disk can have."""
    try:
        return path.exists()
    except OSError:
        return False


def read_sets(texts: Sequence[str], split: str | None) -> list[EvalSetRecipe]:
    """All sets, each under a name of its own.

    Raises:
        DataError: if a path is missing, or two sets share a name.
    """
    sets = [read_set(text, split) for text in texts]
    names = [held_out.name for held_out in sets]
    for name in names:
        if names.count(name) > 1:
            raise DataError(
                f"--sets: {name} = {names.count(name)} sets; expected one of each name. "
                "Score them in separate calls, or rename one."
            )
    return sets


def checked_sets(texts: Sequence[str], split: str | None) -> list[EvalSetRecipe]:
    """The sets of `read_sets`, every row of each checked.

    Raises:
        DataError: if a path is missing, two sets share a name, or a row is malformed.
    """
    sets = read_sets(texts, split)
    for one in sets:
        open_eval_set(one, DataRecipe(sources=()))
    return sets


def examine(
    path: str,
    sets: Sequence[EvalSetRecipe],
    *,
    dims: Sequence[int] | None = None,
    skip_bad_rows: bool = False,
) -> dict[str, "SetReport"]:
    """Metrics of each set, by the whole vector and by its prefixes.

    Args:
        path: of the model.
        sets: what to score it on.
        dims: sizes of the prefixes; None: those that the model was trained on.
        skip_bad_rows: leave malformed rows out instead of refusing their set.

    Raises:
        RecipeError: if there is no model, or a prefix is longer than its vectors.
        DataError: if a set is wrong.
    """
    model_path, limits = find_model(path)
    data = DataRecipe(sources=(), on_bad_row="skip" if skip_bad_rows else "error")
    opened = [open_eval_set(held_out, data) for held_out in sets]
    model = load_model(model_path)
    if dims is None:
        dims = trained_dims(path, model)
    else:
        check_dims(dims, model, path)
    from trainer.evaluation.evaluate import examine_set

    return {
        held_out.name: examine_set(texts, ExportedEmbedder(model, held_out.task, limits), dims)
        for held_out, texts in zip(sets, opened, strict=True)
    }


def evaluate(
    path: str, sets: Sequence[EvalSetRecipe], *, skip_bad_rows: bool = False
) -> dict[str, dict[str, float]]:
    """Metrics of each set by the whole vector; arguments and errors are those of `examine`."""
    reports = examine(path, sets, dims=(), skip_bad_rows=skip_bad_rows)
    return {name: report.metrics for name, report in reports.items()}


def evaluate_mteb(
    path: str, names: Sequence[str], *, name: str | None = None, output: Path | None = None
) -> dict[str, dict[str, float]]:
    """Main score of each task, as the leaderboards have it; mteb writes its files of results.

    Args:
        path: folder, run folder or hub id.
        names: of tasks, such as `SciFact` or `STSBenchmark`.
        name: of the model in its results, `organisation/name`; None: its own.
        output: folder of the results; None: `mteb` in the run folder, or here.

    Raises:
        RecipeError: if package, model or a task is missing, or a task's data is out of reach.
    """
    tasks = find_tasks(names)
    model_path, limits = find_model(path)
    facts, own = facts_of(path, model_path, name), RunFolder(Path(path).expanduser())
    folder = output or (own if own.recipe.is_file() else RunFolder(Path())).benchmarks
    model = load_model(model_path)
    scores = score_tasks(model, tasks, facts, limits=limits, output=folder)
    print(f"mteb's own files: {results_folder(folder, facts)}")
    return scores


def facts_of(path: str, model_path: str, name: str | None) -> MetaFacts:
    """What results say of the model.

    Raises:
        RecipeError: if the name is none of the hub's form.
    """
    if name is not None and not re.fullmatch(r"[\w.-]+/[\w.-]+", name, re.ASCII):
        raise RecipeError(
            f"--name: {name} = no name of a model; expected organisation/name. Correct it."
        )
    root = Path(path).expanduser()
    if RunFolder(root).recipe.is_file():
        return facts_of_run(root, name=name)
    if Path(model_path).is_dir():
        return facts_of_folder(Path(model_path), name=name)
    return MetaFacts(name=name or path, revision=UNKNOWN_REVISION)


def show_prompts(path: str, names: Sequence[str]) -> str:
    """Which prompt of a model mteb takes for each task; for each type where none is named.

    Raises:
        RecipeError: if package, model or a task is missing.
    """
    tasks = find_tasks(names) if names else []
    model_path, _ = find_model(path)
    folder, prompts = Path(model_path), dict[str, str]()
    if folder.is_dir():
        prompts |= read_exported(folder, path).prompts
    else:
        prompts |= {name: text or "" for name, text in load_model(path).prompts.items()}
    uses = prompt_uses(prompts, tasks) if names else type_uses(prompts)
    rows = [
        (use.task or "any", use.kind, use.side or "", use.found or "none", repr(use.prompt))
        for use in uses
    ]
    return columns([("task", "type", "side", "name", "prompt"), *rows])


def columns(rows: Sequence[Sequence[str]]) -> str:
    """Rows of texts, one below the other."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ("  ".join(map(str.ljust, row, widths)).rstrip() for row in rows)
    return "\n".join(lines)


def table(results: Results) -> str:
    """Sets, metrics and values in columns."""
    width = max(len(name) for name in results)
    lines = [f"{'set':{width}}  {'metric':14}   value"]
    for name, metrics in results.items():
        lines += [f"{name:{width}}  {metric:14}  {value:6.4f}" for metric, value in metrics.items()]
    return "\n".join(lines)


def overall(results: Results, *, num_sets: int) -> Results:
    """Both means of the sets, which stand first, as the table has them; none for a single set."""
    sets = dict(list(results.items())[:num_sets])
    return {"all sets": means_of(sets)} if len(sets) > 1 else {}


def dims_table(dims: Dims) -> str:
    """Sets and metrics, a column for each size of a prefix, the whole vector first."""
    sizes = sorted({size for by_size in dims.values() for size in by_size}, reverse=True)
    width = max(len(name) for name in dims)
    lines = [f"{'set':{width}}  {'dimensions':14}" + "".join(f"  {size:>6}" for size in sizes)]
    for name, by_size in dims.items():
        for metric in next(iter(by_size.values())):
            values = (f"  {by_size[size][metric]:6.4f}" for size in by_size)
            lines.append(f"{name:{width}}  {metric:14}" + "".join(values))
    return "\n".join(lines)


def without_nan(results: Results) -> dict[str, dict[str, float | None]]:
    """The same with None for what is not defined, which JSON has no number for."""
    return {
        name: {key: value if math.isfinite(value) else None for key, value in metrics.items()}
        for name, metrics in results.items()
    }


def as_json(results: Results, dims: Dims) -> str:
    """One object: the metrics of each set, with those of its prefixes where there are some."""
    content: dict[str, dict[str, object]] = {
        name: dict(metrics) for name, metrics in without_nan(results).items()
    }
    for name, by_size in dims.items():
        content[name]["dims"] = without_nan({str(size): by_size[size] for size in by_size})
    return json.dumps(content)


def evaluate_all(arguments: argparse.Namespace) -> tuple[Results, Dims]:
    """Sets first, then the tasks that need the network.

    Returns:
        Metrics of everything, and those of prefixes for the sets that have some.

    Raises:
        RecipeError: if a model, package or task is missing, or a prefix is too long.
        DataError: if a set is wrong.
    """
    sets = read_sets(arguments.sets, arguments.split)
    skip = arguments.skip_bad_rows
    dims = None if arguments.dims is None else read_dims(arguments.dims)
    reports = examine(arguments.model, sets, dims=dims, skip_bad_rows=skip) if sets else {}
    results = {name: report.metrics for name, report in reports.items()}
    if arguments.mteb:
        output = None if arguments.output is None else Path(arguments.output).expanduser()
        results |= evaluate_mteb(
            arguments.model, arguments.mteb, name=arguments.name, output=output
        )
    return results, {name: report.dims for name, report in reports.items() if report.dims}


def read_dims(text: str) -> list[int]:
    """Sizes of prefixes from the command line.

    Raises:
        RecipeError: if one is no size.
    """
    try:
        sizes = [int(one) for one in text.split(",")]
    except ValueError:
        sizes = []
    if not sizes or min(sizes) < 1:
        raise RecipeError(
            f"--dims: {text or 'nothing'} = no sizes; expected whole numbers from 1 on with commas "
            "between them, such as 256,128. Correct it."
        )
    return sizes


def read_arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--model", required=True, help="folder, run folder, hub id or package:NAME/FOLDER"
    )
    parser.add_argument("--sets", default=[], nargs="+", metavar="PATH[:KIND]")
    parser.add_argument("--mteb", default=[], nargs="+", metavar="TASK", help="such as SciFact")
    parser.add_argument(
        "--list", action="store_true", help="the prompt of each --mteb task, or of each type"
    )
    parser.add_argument("--output", metavar="DIR", help="of mteb's files; default: mteb in the run")
    parser.add_argument("--name", metavar="ORG/NAME", help="of the model in mteb's files")
    parser.add_argument(
        "--dims", metavar="N,N", help="prefixes to score; default: those that were trained"
    )
    parser.add_argument(
        "--split",
        help="of folders with several, such as BEIR's; default: test of classification, "
        "dev of other kinds",
    )
    parser.add_argument("--skip-bad-rows", action="store_true", help="as data.on_bad_row=skip")
    parser.add_argument("--json", action="store_true", help="one JSON object as the last line")
    arguments = parser.parse_args()
    if not arguments.sets and not arguments.mteb and not arguments.list:
        parser.error("give --sets, --mteb or both")
    if (arguments.output or arguments.name) and (arguments.list or not arguments.mteb):
        parser.error("--output and --name belong to --mteb without --list")
    of_sets = (arguments.dims, arguments.split, arguments.skip_bad_rows or None)
    if not arguments.sets and any(one is not None for one in of_sets):
        parser.error("--dims, --split and --skip-bad-rows belong to --sets")
    if arguments.list and (arguments.sets or arguments.json):
        parser.error("--list shows prompts and scores nothing: leave --sets and --json out")
    return arguments


def main() -> int:
    """Score a model and print the table."""
    arguments = read_arguments()
    if arguments.mteb:
        check_mteb()
    for library in ("transformers", "sentence_transformers", "mteb"):
        logging.getLogger(library).setLevel(logging.ERROR)
    # Read when torch is loaded: idle threads sleep, which saves most of the time on a busy machine.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    if arguments.list:
        print(show_prompts(arguments.model, arguments.mteb))
        return 0
    results, dims = evaluate_all(arguments)
    print(table({**results, **overall(results, num_sets=len(arguments.sets))}))
    if dims:
        print(f"\n{dims_table(dims)}")
    if arguments.json:
        print(as_json(results, dims))
    return 0


if __name__ == "__main__":
    sys.exit(ending_with_code(main))
