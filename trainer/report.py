"""One page on a run, `report.html`, from the files of its output folder.

The page loads nothing: it can be mailed, printed and read on a phone. It must not import torch.
"""

import json
import math
import os
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

from trainer.charts import Axis, Series, line_chart
from trainer.errors import DataError

TASK_NAMES = {"ir": "retrieval", "sts": "similarity"}
METRIC_NAMES = {
    "ndcg_at_10": "nDCG@10",
    "mrr_at_10": "MRR@10",
    "recall_at_100": "Recall@100",
    "spearman": "Spearman",
    "pearson": "Pearson",
}

STYLE = """
:root { color-scheme: light; }
body { font: 16px/1.5 system-ui, sans-serif; color: #1a1a1a; background: #fff;
  max-width: 62rem; margin: 0 auto; padding: 1rem; }
h1 { font-size: 1.6rem; margin: 0 0 .25rem; }
h2 { font-size: 1.15rem; margin: 2rem 0 .5rem; }
p { margin: .25rem 0; }
.note { color: #555; font-size: .9rem; }
.wide { overflow-x: auto; max-width: 44rem; }
.charts { display: grid; gap: 0 2rem;
  grid-template-columns: repeat(auto-fit, minmax(min(100%, 21rem), 1fr)); }
figure { margin: 1rem 0 0; break-inside: avoid; max-width: 34rem; }
figcaption { font-weight: 600; }
table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums; }
th, td { padding: .35rem .6rem; text-align: right; border-bottom: 1px solid #ddd; }
th:first-child, td:first-child, th.left, td.left { text-align: left; }
th { font-weight: 600; border-bottom: 2px solid #888; }
svg { width: 100%; height: auto; display: block; }
svg text { font: 14px system-ui, sans-serif; fill: #444; }
svg .grid { stroke: #e2e2e2; }
svg .raw { fill: none; stroke-width: 1; opacity: .3; }
svg .line { fill: none; stroke-width: 2.2; stroke-linejoin: round; }
.legend span { margin-right: 1.25rem; white-space: nowrap; }
.legend .sample { display: inline-block; width: 34px; vertical-align: middle; margin-right: .4rem; }
pre { background: #f5f5f5; padding: .75rem; overflow-x: auto; font-size: .85rem; }
@media (max-width: 30rem) { table { font-size: .8rem; } th, td { padding: .3rem .25rem; } }
@media print { body { max-width: none; font-size: 11pt; } h2 { break-after: avoid; } }
"""


def write_report(folder: Path) -> Path:
    """Write `report.html` into a run's output folder, replacing an older one.

    Args:
        folder: holds `metrics.jsonl`, `eval.jsonl` and `recipe.yaml`; of a run that may go on.

    Returns:
        The page.

    Raises:
        DataError: if the folder holds no run.
    """
    steps = read_lines(folder / "metrics.jsonl")
    evaluations = read_lines(folder / "eval.jsonl")
    recipe = folder / "recipe.yaml"
    if not recipe.is_file() or not (steps or evaluations):
        raise DataError(
            f"{folder}: recipe.yaml and metrics.jsonl = missing or empty; expected the output "
            "folder of a run that took a step. Give the recipe's output_dir."
        )
    page = folder / "report.html"
    partial = folder / ".report.html"
    text = render(folder.name, recipe.read_text(encoding="utf-8"), steps, evaluations)
    partial.write_text(text, encoding="utf-8")
    os.replace(partial, page)
    return page


def read_lines(path: Path) -> list[dict[str, Any]]:
    """The objects of a JSONL file, without a last line that is still being written."""
    if not path.is_file():
        return []
    lines = path.read_text(encoding="utf-8").split("\n")
    return [json.loads(line) for line in lines[:-1] if line]


def render(
    name: str,
    recipe: str,
    steps: Sequence[Mapping[str, Any]],
    evaluations: Sequence[Mapping[str, Any]],
) -> str:
    """The whole page.

    Args:
        name: of the run.
        recipe: YAML text.
        steps: lines of `metrics.jsonl`, in order.
        evaluations: lines of `eval.jsonl`, in order.
    """
    parts = [
        f"<h1>{escape(name)}</h1>",
        summary(steps),
        evaluation_section(evaluations),
        training_section(steps) if steps else "",
        f"<h2>Recipe</h2><details><summary>as resolved</summary><pre>{escape(recipe)}</pre>"
        "</details>",
    ]
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(name)}</title><style>{STYLE}</style></head>\n<body>\n"
        + "\n".join(parts)
        + "\n</body></html>\n"
    )


def summary(steps: Sequence[Mapping[str, Any]]) -> str:
    """One line: how many steps of each task, tokens and time."""
    if not steps:
        return '<p class="note">No step was taken yet.</p>'
    counts = ", ".join(
        f"{sum(step['task'] == task for step in steps):,} {TASK_NAMES[task]}"
        for task in tasks_of(steps)
    )
    tokens = sum(step["tokens"] for step in steps)
    seconds = sum(step["seconds"] for step in steps)
    return (
        f"<p>{len(steps):,} steps ({counts}), {tokens / 1e6:,.1f} million tokens in "
        f"{duration(seconds)} of training: {tokens / seconds:,.0f} tokens/s.</p>"
    )


def duration(seconds: float) -> str:
    """Hours, minutes and seconds, as far as they matter."""
    whole = round(seconds)
    if whole >= 3600:
        return f"{whole // 3600} h {whole % 3600 // 60} min"
    return f"{whole // 60} min {whole % 60} s" if whole >= 60 else f"{seconds:.1f} s"


def tasks_of(steps: Iterable[Mapping[str, Any]]) -> list[str]:
    """The tasks that occur, in a fixed order."""
    found = {step["task"] for step in steps}
    return [task for task in TASK_NAMES if task in found]


def evaluation_section(evaluations: Sequence[Mapping[str, Any]]) -> str:
    """First and last value of each metric, and curves where there are more than two."""
    if not evaluations:
        return '<h2>Held-out sets</h2><p class="note">The recipe names none.</p>'
    first, last = evaluations[0], evaluations[-1]
    head = (
        '<tr><th>set</th><th class="left">metric</th>'
        f"<th>step {first['step']:,}</th><th>step {last['step']:,}</th><th>change</th></tr>"
    )
    rows = [
        _evaluation_row(name, metric, first["sets"].get(name, {}).get(metric), value)
        for name, metrics in last["sets"].items()
        for metric, value in metrics.items()
    ]
    table = f'<div class="wide"><table>{head}{"".join(rows)}</table></div>'
    curves = evaluation_figure(evaluations) if len(evaluations) > 2 else ""
    return f"<h2>Held-out sets</h2>{table}{curves}"


def _evaluation_row(name: str, metric: str, before: float | None, after: float) -> str:
    """A row of the table."""
    old = "-" if before is None else f"{before:.4f}"
    change = "-" if before is None else f"{after - before:+.4f}"
    shown = escape(METRIC_NAMES.get(metric, metric))
    return (
        f'<tr><td>{escape(name)}</td><td class="left">{shown}</td>'
        f"<td>{old}</td><td>{after:.4f}</td><td>{change}</td></tr>"
    )


def evaluation_figure(evaluations: Sequence[Mapping[str, Any]]) -> str:
    """The first metric of each set over the steps, all sets in one chart."""
    series = []
    for name, metrics in evaluations[-1]["sets"].items():
        metric = next(iter(metrics))
        points = [
            (line["step"], line["sets"][name][metric])
            for line in evaluations
            if metric in line["sets"].get(name, {}) and math.isfinite(line["sets"][name][metric])
        ]
        if points:
            x, y = zip(*points, strict=True)
            shown = f"{name}, {METRIC_NAMES.get(metric, metric)}"
            series.append(Series(name=shown, x=x, y=y))
    return figure("Over the steps", Axis(smooth=False), series)


def training_section(steps: Sequence[Mapping[str, Any]]) -> str:
    """Loss of each task, gradient norm, speed, padding and learning rate."""
    tasks = tasks_of(steps)
    figures = [
        figure(
            f"Loss, {TASK_NAMES[task]}",
            Axis(unit="nats" if task == "ir" else ""),
            task_series(steps, "loss", (task,)),
        )
        for task in tasks
    ]
    norms = task_series(steps, "grad_norm", tasks)
    positive = all(value > 0 for one in norms for value in one.y)
    figures += [
        figure("Gradient norm before clipping", Axis(logarithmic=positive), norms),
        figure("Speed", Axis(unit="tokens/s"), task_series(steps, "tokens_per_sec", tasks)),
        figure("Padding, share of tokens", Axis(), task_series(steps, "padding_fraction", tasks)),
    ]
    rate = Series(name="all", x=[s["step"] for s in steps], y=[s["learning_rate"] for s in steps])
    figures.append(figure("Learning rate", Axis(smooth=False), [rate]))
    return (
        '<h2>Training</h2><p class="note">Pale: each step. Strong: mean over neighbouring steps.'
        f'</p><div class="charts">{"".join(figures)}</div>'
    )


def task_series(steps: Sequence[Mapping[str, Any]], key: str, tasks: Sequence[str]) -> list[Series]:
    """A number over the steps of each task, without the steps that have none."""
    series = []
    for task in tasks:
        own = [step for step in steps if step["task"] == task and step[key] is not None]
        if own:
            x, y = [step["step"] for step in own], [step[key] for step in own]
            series.append(Series(name=TASK_NAMES[task], x=x, y=y))
    return series


def figure(title: str, axis: Axis, series: Sequence[Series]) -> str:
    """A chart under its title; nothing where there is nothing to draw."""
    if not series:
        return ""
    chart = line_chart(title, axis, series)
    return f"<figure><figcaption>{escape(title)}</figcaption>{chart}</figure>"
