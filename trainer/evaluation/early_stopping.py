"""Follow the best evaluation of a run under way; it must not evaluate, save or stop anything."""

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from trainer.distributed.agree import on_first_rank
from trainer.distributed.group import Ranks
from trainer.evaluation.best import BestSoFar, Results
from trainer.recipe.schema import EvalRecipe
from trainer.run_folder.layout import RunFolder


@dataclass(frozen=True)
class Decision:
    """What follows from an evaluation."""

    is_best: bool
    """Whether it is the best of the run so far."""
    is_last: bool
    """Whether patience has ended."""


NOTHING = Decision(is_best=False, is_last=False)


class EarlyStopping:
    """Judges evaluations by `eval.best_metric`; the first rank's numbers count everywhere."""

    def __init__(self, recipe: EvalRecipe, folder: Path, ranks: Ranks) -> None:
        """Nothing was judged yet."""
        self._recipe = recipe
        self._file = RunFolder(folder).evaluations
        self._ranks = ranks
        self._best: BestSoFar | None = None

    @property
    def best_step(self) -> int | None:
        """Steps done at the best evaluation; None without one, or without a metric to judge by."""
        return None if self._best is None else self._best.step

    def recall(self, start: int) -> None:
        """Take in the evaluations of an interrupted run before step `start`. Collective: yes.

        Lines that are spoiled or of later steps must have been dropped.
        """
        metric = self._recipe.best_metric
        if metric is not None:
            best, sets = BestSoFar(metric=metric), [one.name for one in self._recipe.sets]
            self._best = on_first_rank(
                lambda: best.after_lines(self._lines(), start, sets), self._ranks
            )

    def update(self, done: int, results: Results) -> Decision:
        """What an evaluation after `done` steps means for the run. Collective: yes."""
        if self._best is None:
            return NOTHING
        before = self._best
        self._best = on_first_rank(_updated(before, done, results), self._ranks)
        return Decision(
            is_best=self._best.step == done and self._best != before,
            is_last=self._best.is_exhausted(self._recipe.patience),
        )

    def _lines(self) -> list[dict[str, object]]:
        """The run's evaluations so far."""
        if not self._file.is_file():
            return []
        return [json.loads(line) for line in self._file.read_text(encoding="utf-8").splitlines()]


def _updated(best: BestSoFar, done: int, results: Results) -> Callable[[], BestSoFar]:
    return lambda: best.after(done, results)
