"""The page's sections on held-out sets: scores, the trade-off, and geometry; it must not read."""

import math
from collections.abc import Iterable, Sequence
from html import escape
from statistics import fmean

from trainer.recipe.eval_kind import EvalKind
from trainer.recipe.eval_kinds import EVAL_KINDS, kind_of_metric, metric_label
from trainer.report.charts import Axis, Series
from trainer.report.html import charts, figure, framed, table
from trainer.report.read import Line, Run, main_metrics, means
from trainer.report.vector_charts import (
    cosine_legend,
    histogram_chart,
    lowest_cosine,
    trade_off_chart,
)

GEOMETRY_NAMES = {
    "alignment": "alignment",
    "uniformity": "uniformity",
    "mean_cosine": "mean cosine",
    "effective_rank": "effective rank",
}


def evaluation_section(run: Run) -> str:
    """First and last value of each metric, and curves where there are more than two."""
    if not run.evaluations:
        return '<h2>Held-out sets</h2><p class="note">No evaluation was made.</p>'
    first, last = run.evaluations[0], run.evaluations[-1]
    rows = [
        _change_row((name, metric_label(metric)), before.get(metric), value, 4)
        for name, metrics in last["sets"].items()
        for before in (first["sets"].get(name, {}),)
        for metric, value in metrics.items()
    ]
    before = dict(means(first))
    rows += [_change_row(("all", label), before.get(label), value, 4)
             for label, value in means(last)]  # fmt: skip
    head = ("set", "metric", f"step {first['step']:,}", f"step {last['step']:,}", "change")
    curves = charts(evaluation_figures([run])) if len(run.evaluations) > 2 else ""
    return f"<h2>Held-out sets</h2>{table(head, rows, num_names=2)}{curves}"


def _change_row(
    names: tuple[str, str], before: float | None, after: float | None, digits: int
) -> tuple[str, ...]:
    """Names, two values and their difference; a dash for what is not there."""
    old, new = (None if x is None or not math.isfinite(x) else x for x in (before, after))
    shown = ["-" if value is None else f"{value:.{digits}f}" for value in (old, new)]
    change = "-" if old is None or new is None else f"{new - old:+.{digits}f}"
    return (*names, *shown, change)


def evaluation_figures(runs: Sequence[Run]) -> list[str]:
    """The first metric of each set over the steps, and the trade-off."""
    names = list(dict.fromkeys(key for run in runs for key in _main_keys(run)))
    figures = []
    for name, metric in names:
        series = [one for run in runs if (one := _scores(run, name, metric))]
        title = f"{name}, {metric_label(metric)}"
        figures.append(figure(title, Axis(smooth=False), series))
    return [*figures, trade_off_figure(runs)]


def _main_keys(run: Run) -> Iterable[tuple[str, str]]:
    """Set and first metric of each set that the run ended with."""
    if run.evaluations:
        yield from ((name, metric) for name, metric, _ in main_metrics(run.evaluations[-1]))


def _scores(run: Run, name: str, metric: str) -> Series | None:
    """A metric over the steps of a run."""
    points = [
        (line["step"], value)
        for line in run.evaluations
        for value in (line["sets"].get(name, {}).get(metric),)
        if value is not None and math.isfinite(value)
    ]
    if not points:
        return None
    x, y = zip(*points, strict=True)
    return Series(name=run.name, x=x, y=y)


def trade_off_figure(runs: Sequence[Run]) -> str:
    """Means of two kinds against each other, a path of each run; nothing where one is missing."""
    kinds = _evaluated_kinds(runs)
    paths = [path for run in runs if (path := _path(run, kinds))]
    if not paths:
        return ""
    one, other = (kind.label for kind in kinds)
    title = f"{other.capitalize()} against {one}: from the ring, before training, to the large dot"
    axes = (f"mean {one} score", f"mean {other} score")
    return framed(title, trade_off_chart(title, axes, paths))


def _evaluated_kinds(runs: Sequence[Run]) -> list[EvalKind]:
    """The first two evaluation kinds, in the order of their table, that any run evaluated."""
    found = {
        kind.name
        for run in runs
        for line in run.evaluations
        for _, metric, _ in main_metrics(line)
        if (kind := kind_of_metric(metric))
    }
    return [kind for name, kind in EVAL_KINDS.items() if name in found][:2]


def _path(run: Run, kinds: Sequence[EvalKind]) -> Series | None:
    """Means over the sets of both kinds at each evaluation."""
    points = [point for line in run.evaluations if (point := _both_means(line, kinds))]
    if len(points) < 2:
        return None
    x, y = zip(*points, strict=True)
    return Series(name=run.name, x=x, y=y)


def _both_means(evaluation: Line, kinds: Sequence[EvalKind]) -> tuple[float, float] | None:
    """Mean of the main metrics of the sets of each of two kinds."""
    values: dict[str, list[float]] = {kind.name: [] for kind in kinds}
    for _, metric, value in main_metrics(evaluation):
        kind = kind_of_metric(metric)
        if value is not None and math.isfinite(value) and kind and kind.name in values:
            values[kind.name].append(value)
    if len(kinds) < 2 or not all(values.values()):
        return None
    one, other = (fmean(values[kind.name]) for kind in kinds)
    return one, other


def geometry_section(run: Run) -> str:
    """Numbers of the vectors at both ends, and cosines before and after."""
    measured = [line for line in run.evaluations if line.get("geometry")]
    if not measured:
        return ""
    first, last = measured[0], measured[-1]
    rows = [
        _change_row((name, shown), first["geometry"].get(name, {}).get(key), numbers[key], 3)
        for name, numbers in last["geometry"].items()
        for key, shown in GEOMETRY_NAMES.items()
        if key in numbers
    ]
    head = ("set", "geometry", f"step {first['step']:,}", f"step {last['step']:,}", "change")
    notes = (
        "Alignment: mean squared distance of positive pairs, lower is closer. Uniformity: log of "
        "the mean Gaussian kernel of all pairs, lower is more even. Mean cosine of different "
        "texts: 0 is isotropic. Effective rank: how many dimensions are used. Negative pairs: STS "
        "pairs of a low score, and for each query the best ranked documents that are not judged "
        "relevant. Random pairs: made by chance."
    )
    pairs = "".join(_before_after(name, first, last) for name in last["geometry"])
    return (
        f"<h2>Geometry</h2>{table(head, rows, num_names=2)}"
        f'<p class="note">{notes}</p>{cosine_legend()}{pairs}'
    )


def _before_after(name: str, first: Line, last: Line) -> str:
    """Histograms of a set at two evaluations."""
    found = {
        line["step"]: line["geometry"][name]["histograms"]
        for line in (first, last)
        if name in line["geometry"]
    }
    low = lowest_cosine(found.values())
    figures = []
    for step, counts in found.items():
        title = f"{name}, cosines after {step:,} steps" if step else f"{name}, cosines at the start"
        figures.append(framed(title, histogram_chart(title, counts, low=low)))
    return f'<div class="pair">{charts(figures)}</div>'


def comparison_table(runs: Sequence[Run]) -> str:
    """Last value of each set's first metric, a row for each run."""
    keys = list(dict.fromkeys(key for run in runs for key in _main_keys(run)))
    rows = []
    for run in runs:
        sets = run.evaluations[-1]["sets"] if run.evaluations else {}
        values = [sets.get(name, {}).get(metric) for name, metric in keys]
        shown = ["-" if value is None else f"{value:.4f}" for value in values]
        rows.append((run.name, f"{len(run.steps):,}", *shown))
    head = ("run", "steps", *(f"{name}, {metric_label(m)}" for name, m in keys))
    return f"<h2>{escape('Held-out sets, last evaluation')}</h2>{table(head, rows)}"
