"""What an output folder says of its run, read for the page; it must not draw or import torch."""

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from trainer.errors import DataError
from trainer.evaluation.best import means_of
from trainer.recipe.eval_kinds import MEANS
from trainer.recipe.tasks import TASKS
from trainer.run_folder.layout import RunFolder

Line = Mapping[str, Any]
"""An object of a JSONL file."""
STEP_KEYS = ("step", "task", "source", "tokens", "seconds")
EVALUATION_KEYS = ("step", "sets")
MERGE_KEYS = ("method", "formula", "checkpoints", "tensors")
"""What no line of `metrics.jsonl` and of `eval.jsonl`, and no `merge.json` lacks."""
REPAIR = "Fix or remove it; continuing the run with --resume drops damaged lines."


@dataclass(frozen=True, kw_only=True)
class Run:
    """One run, finished or not."""

    name: str
    """Of its folder."""
    recipe: str
    """YAML text."""
    steps: Sequence[Line]
    """Lines of `metrics.jsonl`, in order."""
    evaluations: Sequence[Line]
    """Lines of `eval.jsonl`, in order."""
    facts: Mapping[str, Any]
    """Content of `run.json`; empty where there is none."""
    merge: Mapping[str, Any] | None
    """Content of `merged/merge.json`, if its checkpoints were merged and that was asked for."""

    @property
    def tasks(self) -> list[str]:
        """The tasks that occur, in the order of the table of tasks."""
        found = {step["task"] for step in self.steps}
        return [task for task in TASKS if task in found]


def read_run(folder: Path) -> Run:
    """Read an output folder, with the record of its merge.

    Args:
        folder: as `read_training` takes it.

    Raises:
        DataError: if the folder holds no run, or one of its files is damaged.
    """
    merge = _read_object(RunFolder(folder).merge_record, MERGE_KEYS)
    return replace(read_training(folder), merge=merge)


def read_training(folder: Path) -> Run:
    """Read an output folder as it is before its checkpoints are merged.

    Args:
        folder: holds `recipe.yaml`, `metrics.jsonl` and `eval.jsonl`; of a run that may go on.

    Raises:
        DataError: if the folder holds no run, or one of its files is damaged.
    """
    files = RunFolder(folder)
    steps = read_lines(files.metrics, STEP_KEYS)
    evaluations = read_lines(files.evaluations, EVALUATION_KEYS)
    recipe = files.recipe
    if not recipe.is_file() or not (steps or evaluations):
        raise DataError(
            f"{folder}: recipe.yaml and metrics.jsonl = missing or empty; expected the output "
            "folder of a run that took a step. Give the recipe's output_dir."
        )
    return Run(
        name=folder.resolve().name,
        recipe=_read_text(recipe),
        steps=steps,
        evaluations=evaluations,
        facts=_read_object(files.facts, ()) or {},
        merge=None,
    )


def read_lines(path: Path, keys: Sequence[str]) -> list[dict[str, Any]]:
    """The objects of a JSONL file, without a last line that is still being written.

    Args:
        path: need not be there.
        keys: what each object must have.

    Raises:
        DataError: naming the line that is none, or the key that it lacks.
    """
    if not path.is_file():
        return []
    numbered = enumerate(_read_text(path).split("\n")[:-1], start=1)
    return [_parsed(line, f"{path}:{number}", keys) for number, line in numbered if line]


def _read_object(path: Path, keys: Sequence[str]) -> dict[str, Any] | None:
    """The object of a JSON file; None without a file."""
    return _parsed(_read_text(path), str(path), keys) if path.is_file() else None


def _parsed(text: str, place: str, keys: Sequence[str]) -> dict[str, Any]:
    """An object with some keys; NaN and infinities, which are no JSON, become null."""
    try:
        found = json.loads(text, parse_constant=lambda _: None)
    except ValueError:
        found = None
    if not isinstance(found, dict):
        raise DataError(f"{place}: {text[:40]!r}; expected a JSON object. {REPAIR}")
    for key in keys:
        if found.get(key) is None:
            raise DataError(f"{place}: {key} = missing; expected a value. {REPAIR}")
    return found


def _read_text(path: Path) -> str:
    """Content of a file of text."""
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise DataError(
            f"{path}: byte {error.start} = {error.object[error.start]:#04x}; expected UTF-8 text. "
            f"{REPAIR}"
        ) from None


def teacher_counts(run: Run) -> list[tuple[str, str]]:
    """Each source whose passages a teacher scored, and in how many of its rows."""
    num_rows = {one["source"]: one["num_rows"] for one in run.facts.get("exposure") or ()}
    scored = run.facts.get("scored_rows") or {}
    return [(name, f"{count:,} of {num_rows[name]:,} rows") for name, count in scored.items()]


def main_metrics(evaluation: Line) -> Iterable[tuple[str, str, float | None]]:
    """Set, first metric and its value, None if not defined, of each set of an evaluation."""
    for name, metrics in evaluation["sets"].items():
        metric = next(iter(metrics))
        yield name, metric, metrics[metric]


def means(evaluation: Line | None) -> list[tuple[str, float | None]]:
    """Labels and values of both means of an evaluation; none of a single set or of no evaluation.

    They are computed, as an evaluation that was recorded by an older trainer has none.
    """
    sets = {} if evaluation is None else evaluation["sets"]
    if len(sets) < 2:
        return []
    return [(MEANS[name], None if math.isnan(value) else value)
            for name, value in means_of(sets).items()]  # fmt: skip


def main_by_size(evaluation: Line | None, name: str) -> tuple[str, dict[int, float]]:
    """First metric of a set, and its finite values by the size of the prefix, descending.

    The whole vector's is the first; without it there is none.

    Args:
        evaluation: one that may have scored no prefixes.
        name: of the set, which it may lack.
    """
    by_size = ((evaluation or {}).get("dims") or {}).get(name) or {}
    metric = next((str(metric) for metrics in by_size.values() for metric in metrics), "")
    values = {int(size): metrics.get(metric) for size, metrics in by_size.items()}
    finite = {size: v for size, v in values.items() if v is not None and math.isfinite(v)}
    if max(values, default=0) not in finite:
        return metric, {}
    return metric, dict(sorted(finite.items(), reverse=True))
