"""The page's section on Matryoshka prefixes: scores over the size of a vector; it must not read."""

from collections.abc import Iterator, Mapping, Sequence

from trainer.recipe.eval_kinds import metric_label
from trainer.report.charts import Axis, Series
from trainer.report.html import charts, figure, table
from trainer.report.read import Line, Run, main_by_size

AXIS = Axis(smooth=False, x_name="dimensions", halves_x=True)
NOTE = (
    "A vector is cut to its first numbers, scaled to norm 1 again, and scored as the whole one is. "
    "Share: of the score of the whole vector."
)


def dims_section(run: Run) -> str:
    """Main metric of each set by size, and its curve at both ends; nothing without prefixes."""
    measured = _measured(run)
    if not measured:
        return ""
    first, last = measured[0], measured[-1]
    names = list(last["dims"])
    sizes = sorted({size for name in names for size in main_by_size(last, name)[1]}, reverse=True)
    rows = [row for name in names for row in _rows(last, name, sizes)]
    ends = {f"step {line['step']:,}": line for line in (first, last)}
    head = ("set", f"metric at step {last['step']:,}", *(f"{size:,}" for size in sizes))
    return (
        f"<h2>Shorter vectors</h2>{table(head, rows, num_names=2)}"
        f'<p class="note">{NOTE}</p>{charts(_figure(name, ends) for name in names)}'
    )


def dims_figures(runs: Sequence[Run]) -> list[str]:
    """The curves at the end of several runs, a figure for each set."""
    ends = {run.name: measured[-1] for run in runs if (measured := _measured(run))}
    names = dict.fromkeys(name for line in ends.values() for name in line["dims"])
    return [_figure(name, ends) for name in names]


def _measured(run: Run) -> list[Line]:
    """Evaluations that scored prefixes."""
    return [line for line in run.evaluations if line.get("dims")]


def _rows(line: Line, name: str, sizes: Sequence[int]) -> Iterator[tuple[str, ...]]:
    """Values of a set by size, and below them their shares of the first."""
    metric, values = main_by_size(line, name)
    whole = values.get(max(values, default=0))
    yield (name, metric_label(metric), *(_shown(values.get(size), ".4f") for size in sizes))
    shares = (values[size] / whole if size in values and whole else None for size in sizes)
    yield ("", "share", *(_shown(share, ".1%") for share in shares))


def _shown(value: float | None, form: str) -> str:
    return "-" if value is None else f"{value:{form}}"


def _figure(name: str, lines: Mapping[str, Line]) -> str:
    """Main metric of a set over the size, a curve for each evaluation by its name."""
    found = {title: main_by_size(line, name) for title, line in lines.items()}
    metric = next((metric for metric, _ in found.values() if metric), "")
    series = [
        Series(name=title, x=sorted(values), y=[values[size] for size in sorted(values)])
        for title, (_, values) in found.items()
        if len(values) > 1
    ]
    return figure(f"{name}, {metric_label(metric)} by dimensions", AXIS, series)
