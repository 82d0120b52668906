"""Follow the best evaluation of a run under way; it must not evaluate, save or stop anything."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from trainer.distributed.agree import on_first_rank
from trainer.distributed.group import Ranks
from trainer.evaluation.best import BestSoFar, Results
from trainer.evaluation.recorded import Record, read_evaluations
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
        self.record = Record(best=None, steps=frozenset(), has_start=False)
        """As it was recalled."""

    @property
    def best_step(self) -> int | None:
        """Steps done at the best evaluation; None without one, or without a metric to judge by."""
        return None if self._best is None else self._best.step

    def recall(self, start: int) -> bool:
        """Take in the evaluations of an interrupted run up to `start` steps. Collective: yes.

        Lines that are damaged or of later steps must have been dropped.

        Returns:
            Whether patience had ended with the evaluation of `start`.
        """
        self.record = on_first_rank(
            lambda: read_evaluations(self._file, self._recipe, start), self._ranks
        )
        self._best = self.record.best
        return self.record.has_ended(self._recipe.patience)

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


def _updated(best: BestSoFar, done: int, results: Results) -> Callable[[], BestSoFar]:
    return lambda: best.after(done, results)
