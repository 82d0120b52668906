"""What an output folder says of its run, read for the page; it must not draw or import torch."""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from trainer.errors import DataError
from trainer.run_facts import read_run_facts

TASK_NAMES = {"ir": "retrieval", "sts": "similarity"}

Line = Mapping[str, Any]
"""An object of a JSONL file."""


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
    """Content of `merged/merge.json`, if its checkpoints were merged."""

    @property
    def tasks(self) -> list[str]:
        """The tasks that occur, in a fixed order."""
        found = {step["task"] for step in self.steps}
        return [task for task in TASK_NAMES if task in found]


def read_run(folder: Path) -> Run:
    """Read an output folder.

    Args:
        folder: holds `recipe.yaml`, `metrics.jsonl` and `eval.jsonl`; of a run that may go on.

    Raises:
        DataError: if the folder holds no run.
    """
    steps, evaluations = (read_lines(folder / name) for name in ("metrics.jsonl", "eval.jsonl"))
    recipe = folder / "recipe.yaml"
    if not recipe.is_file() or not (steps or evaluations):
        raise DataError(
            f"{folder}: recipe.yaml and metrics.jsonl = missing or empty; expected the output "
            "folder of a run that took a step. Give the recipe's output_dir."
        )
    merge = folder / "merged" / "merge.json"
    return Run(
        name=folder.resolve().name,
        recipe=recipe.read_text(encoding="utf-8"),
        steps=steps,
        evaluations=evaluations,
        facts=read_run_facts(folder),
        merge=json.loads(merge.read_text(encoding="utf-8")) if merge.is_file() else None,
    )


def read_lines(path: Path) -> list[dict[str, Any]]:
    """The objects of a JSONL file, without a last line that is still being written."""
    if not path.is_file():
        return []
    lines = path.read_text(encoding="utf-8").split("\n")
    return [json.loads(line) for line in lines[:-1] if line]


def task_of(metric: str) -> str:
    """The task that a set's first metric belongs to."""
    return "sts" if metric in ("spearman", "pearson") else "ir"


def main_metrics(evaluation: Line) -> Iterable[tuple[str, str, float]]:
    """Set, first metric and its value, of each set of an evaluation."""
    for name, metrics in evaluation["sets"].items():
        metric = next(iter(metrics))
        yield name, metric, metrics[metric]
