"""The page's sections on training: sums, exposure, and curves over the steps; it must not read."""

from collections.abc import Iterable, Sequence
from html import escape
from typing import Any

from trainer.recipe.tasks import TASKS
from trainer.report.charts import Axis, Series
from trainer.report.html import charts, figure, table
from trainer.report.read import Line, Run, teacher_counts


def summary(run: Run) -> str:
    """One line: how many steps of each task, tokens and time."""
    if not run.steps:
        return '<p class="note">No step was taken yet.</p>'
    counts = ", ".join(
        f"{sum(step['task'] == task for step in run.steps):,} {TASKS[task].label}"
        for task in run.tasks
    )
    tokens, seconds = total(run.steps, "tokens"), total(run.steps, "seconds")
    return (
        f"<p>{len(run.steps):,} steps ({counts}), {tokens / 1e6:,.1f} million tokens in "
        f"{duration(seconds)} of training: {tokens / seconds:,.0f} tokens/s.</p>"
    )


def total(steps: Iterable[Line], key: str) -> Any:
    """Sum of a number over the steps."""
    return sum(step[key] for step in steps)


def duration(seconds: float) -> str:
    """Hours, minutes and seconds, as far as they matter."""
    whole = round(seconds)
    if whole >= 3600:
        return f"{whole // 3600} h {whole % 3600 // 60} min"
    return f"{whole // 60} min {whole % 60} s" if whole >= 60 else f"{seconds:.1f} s"


def exposure_section(run: Run) -> str:
    """How often each source is seen, in the whole run and up to now."""
    exposure = run.facts.get("exposure")
    if not exposure:
        return ""
    rows = [
        (
            one["source"],
            TASKS[one["task"]].label,
            f"{one['num_rows']:,}",
            f"{one['steps']:,}",
            f"{sum(step['source'] == (one.get('mix') or one['source']) for step in run.steps):,}",
            f"{one['rows_seen']:,}",
            f"{one['epochs']:.2f}",
            f"{one['never']:,}",
        )
        for one in exposure
    ]
    head = ("source", "task", "rows", "steps", "taken", "rows seen", "epochs", "never seen")
    note = f"Of {run.facts['num_steps']:,} steps in all; rows seen count repeats."
    scored = ", ".join(f"{escape(name)} ({rows})" for name, rows in teacher_counts(run))
    if scored:
        note += f" A teacher scored passages of {scored}."
    return f'<h2>Data</h2>{table(head, rows, num_names=2)}<p class="note">{note}</p>'


def training_section(runs: Sequence[Run]) -> str:
    """Loss of each task and term, gradient norm, speed, padding and learning rate."""
    runs = [run for run in runs if run.steps]
    if not runs:
        return ""
    tasks = [task for task in TASKS if any(task in run.tasks for run in runs)]
    figures = [one for task in tasks for one in loss_figures(runs, task)]
    for title, key, axis in (
        ("Gradient norm before clipping", "grad_norm", Axis(logarithmic=True)),
        ("Speed", "tokens_per_sec", Axis(unit="tokens/s")),
        ("Padding, share of tokens", "padding_fraction", Axis()),
    ):
        figures += task_figures(runs, title, key, axis)
    rates = [_series(run.name, run.steps, "learning_rate") for run in runs]
    figures.append(figure("Learning rate", Axis(smooth=False), [one for one in rates if one]))
    note = "Pale: each step. Strong: mean over neighbouring steps. Terms are before their weights."
    return f'<h2>Training</h2><p class="note">{note}</p>{charts(figures)}'


def loss_figures(runs: Sequence[Run], task: str) -> list[str]:
    """The loss of a task and, where it has several, its terms."""
    kind = TASKS[task]
    name = kind.label
    figures = [figure(f"Loss, {name}", Axis(unit=kind.loss_unit), run_series(runs, task, "loss"))]
    terms = [term for term in kind.terms.values() if run_series(runs, task, term.name)]
    if len(terms) > 1:
        figures += [
            figure(f"{term.label}, {name}", Axis(), run_series(runs, task, term.name))
            for term in terms
        ]
    return figures


def task_figures(runs: Sequence[Run], title: str, key: str, axis: Axis) -> list[str]:
    """A number of each task: in one figure for one run, in a figure each for several."""
    if len(runs) == 1:
        steps = runs[0].steps
        found = [
            _series(TASKS[task].label, [s for s in steps if s["task"] == task], key)
            for task in runs[0].tasks
        ]
        return [figure(title, _fitting(axis, found), [one for one in found if one])]
    figures = []
    for task, kind in TASKS.items():
        series = run_series(runs, task, key)
        figures.append(figure(f"{title}, {kind.label}", _fitting(axis, series), series))
    return figures


def run_series(runs: Sequence[Run], task: str, key: str) -> list[Series]:
    """A number over the steps of a task, a line for each run that has it."""
    found = [
        _series(run.name, [step for step in run.steps if step["task"] == task], key) for run in runs
    ]
    return [one for one in found if one]


def _series(name: str, steps: Iterable[Line], key: str) -> Series | None:
    """A number over steps, without those that have none."""
    own = [step for step in steps if step.get(key) is not None]
    if not own:
        return None
    return Series(name=name, x=[step["step"] for step in own], y=[step[key] for step in own])


def _fitting(axis: Axis, series: Iterable[Series | None]) -> Axis:
    """The axis, linear where a value is not above 0."""
    positive = all(value > 0 for one in series if one for value in one.y)
    return axis if positive or not axis.logarithmic else Axis(unit=axis.unit)
