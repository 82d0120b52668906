"""Which evaluation of a run was the best one, by a named metric; it must not evaluate or save."""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from statistics import fmean
from typing import Any, Self

MEAN = "mean"
"""Stands for the mean over all sets of each set's first metric."""

Results = Mapping[str, Mapping[str, float]]
"""Metrics by set."""


def watched_value(results: Results, metric: str) -> float:
    """The number by which evaluations are compared.

    Args:
        results: of one evaluation; each set's first metric is its main one.
        metric: `SET.METRIC` or `mean`, checked with the recipe.

    Returns:
        Higher is better; NaN where the metric is not defined.
    """
    if metric == MEAN:
        return fmean(next(iter(metrics.values())) for metrics in results.values())
    name, _, kind = metric.rpartition(".")
    return results[name][kind]


@dataclass(frozen=True, kw_only=True)
class BestSoFar:
    """The best evaluation of a run up to now."""

    metric: str
    """`SET.METRIC` or `mean`."""
    step: int | None = None
    """Steps done at the best evaluation; None before the first."""
    value: float = -math.inf
    """The metric there."""
    num_worse: int = 0
    """Evaluations since then, all without a better value."""

    def after(self, step: int, results: Results) -> Self:
        """The best after one more evaluation; of equal values the earlier stays.

        Args:
            step: steps done; one that was judged before is not judged again.
            results: metrics by set.
        """
        value = watched_value(results, self.metric)
        if value > self.value:
            return replace(self, step=step, value=value, num_worse=0)
        return replace(self, num_worse=self.num_worse + (step != self.step))

    def after_lines(self, lines: Iterable[Mapping[str, Any]], before: int) -> Self:
        """The best after the evaluations of an interrupted run.

        Args:
            lines: of `eval.jsonl`, in order.
            before: the step that the run continues with; later lines are not its own.
        """
        best = self
        for line in lines:
            if line["step"] < before:
                best = best.after(line["step"], line["sets"])
        return best

    def is_exhausted(self, patience: int | None) -> bool:
        """Whether so many evaluations in a row were no better that the run should end."""
        return patience is not None and self.num_worse >= patience
