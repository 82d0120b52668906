"""What `eval.jsonl` says of a run that goes on; it must not import torch or change the file."""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from trainer.evaluation.best import BestSoFar
from trainer.recipe.schema import EvalRecipe


@dataclass(frozen=True)
class Record:
    """What the file holds when a run goes on."""

    best: BestSoFar | None
    """The best evaluation; None without a metric to judge by."""
    steps: frozenset[int]
    """Steps done at each evaluation."""
    has_start: bool
    """Whether the sets of now were evaluated where the run goes on."""

    def has_ended(self, patience: int | None) -> bool:
        """Whether patience had ended with the evaluation where the run goes on."""
        return self.has_start and self.best is not None and self.best.is_exhausted(patience)


def read_evaluations(file: Path, recipe: EvalRecipe, start: int) -> Record:
    """Take in the evaluations of an interrupted run.

    Args:
        file: `eval.jsonl` of the run; it may be missing. A line that a kill cut off is passed over.
        recipe: the sets and the metric of now.
        start: steps done where the run goes on; later lines are not its own.
    """
    sets, metric, best = {one.name for one in recipe.sets}, recipe.best_metric, None
    lines = [line for line in _lines(file) if line["step"] <= start]
    if metric is not None:
        best = BestSoFar(metric=metric).after_lines(lines, start, sets)
    return Record(
        best=best,
        steps=frozenset(line["step"] for line in lines),
        has_start=any(line["step"] == start and line["sets"].keys() == sets for line in lines),
    )


def _lines(file: Path) -> Iterator[dict[str, Any]]:
    """The evaluations that stand in the file whole."""
    if not file.is_file():
        return
    for text in file.read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            line = json.loads(text)
        except ValueError:
            continue
        if isinstance(line, dict) and "sets" in line and isinstance(line.get("step"), int):
            yield line
