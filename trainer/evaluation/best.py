"""Which evaluation of a run was the best one, by a named metric; it must not evaluate or save."""

import math
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, replace
from statistics import fmean
from typing import Any, Self

from trainer.recipe.eval_kinds import MEAN, MEAN_OF_KINDS, MEANS

Results = Mapping[str, Mapping[str, float | None]]
"""Metrics by set; NaN, or None as files have it, where one is not defined."""


def watched_value(results: Results, metric: str) -> float:
    """The number by which evaluations are compared.

    Args:
        results: of one evaluation; each set's first metric is its main one.
        metric: `SET.METRIC` or one of MEANS, checked with the recipe.

    Returns:
        Higher is better; NaN where the metric is not defined.
    """
    if metric in MEANS:
        return means_of(results)[metric]
    name, _, kind = metric.rpartition(".")
    return _number(results[name][kind])


def means_of(results: Results) -> dict[str, float]:
    """MTEB's two means of the sets' main metrics, by MEAN and MEAN_OF_KINDS.

    Args:
        results: of one evaluation. Sets with one main metric are of one kind.

    Returns:
        NaN where a main metric is not defined; nothing where there are no sets.
    """
    if not results:
        return {}
    by_kind: dict[str, list[float]] = {}
    for metrics in results.values():
        metric, value = next(iter(metrics.items()))
        by_kind.setdefault(metric, []).append(_number(value))
    return {
        MEAN: fmean(value for values in by_kind.values() for value in values),
        MEAN_OF_KINDS: fmean(map(fmean, by_kind.values())),
    }


def _number(value: float | None) -> float:
    return math.nan if value is None else value


def is_comparable(results: Results, metric: str, sets: Collection[str]) -> bool:
    """Whether an earlier evaluation can be compared with those of these sets.

    Args:
        results: of the earlier one, whose sets may have been others.
        metric: `SET.METRIC` or one of MEANS.
        sets: names of the sets that are evaluated now.
    """
    if metric in MEANS:
        return results.keys() == set(sets)
    name, _, kind = metric.rpartition(".")
    return kind in results.get(name, {})


@dataclass(frozen=True, kw_only=True)
class BestSoFar:
    """The best evaluation of a run up to now."""

    metric: str
    """`SET.METRIC` or one of MEANS."""
    step: int | None = None
    """Steps done at the best evaluation; None before the first."""
    value: float = -math.inf
    """The metric there."""
    num_worse: int = 0
    """Evaluations since then, all without a better value."""
    last_step: int | None = None
    """Steps done at the evaluation that was judged last."""

    def after(self, step: int, results: Results) -> Self:
        """The best after one more evaluation; of equal values the earlier stays.

        An undefined value is no better than any, but nothing is worse before there was one.

        Args:
            step: steps done; one that was judged before is not judged again.
            results: metrics by set.
        """
        if step == self.last_step:
            return self
        value = watched_value(results, self.metric)
        if value > self.value:
            return replace(self, step=step, value=value, num_worse=0, last_step=step)
        if self.step is None:
            return replace(self, last_step=step)
        return replace(self, num_worse=self.num_worse + 1, last_step=step)

    def after_lines(
        self, lines: Iterable[Mapping[str, Any]], start: int, sets: Collection[str]
    ) -> Self:
        """The best after the evaluations of an interrupted run.

        Args:
            lines: of `eval.jsonl`, in order.
            start: steps done where the run goes on; later lines are not its own.
            sets: names of the sets that are evaluated now; lines of others are passed over.
        """
        best = self
        for line in lines:
            if line["step"] <= start and is_comparable(line["sets"], self.metric, sets):
                best = best.after(line["step"], line["sets"])
        return best

    def is_exhausted(self, patience: int | None) -> bool:
        """Whether so many evaluations in a row were no better that the run should end."""
        return patience is not None and self.num_worse >= patience
