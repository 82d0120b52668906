"""The page on a run, `report.html`, from the files of its output folder, or on several runs.

The page loads nothing: it can be mailed, printed and read on a phone. It must not import torch.
"""

import os
from collections.abc import Iterator, Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

import yaml

from trainer.report_evaluation import (
    comparison_table,
    evaluation_figures,
    evaluation_section,
    geometry_section,
)
from trainer.report_page import charts, page, table
from trainer.report_run import Run, read_run
from trainer.report_training import exposure_section, summary, training_section


def write_report(folder: Path) -> Path:
    """Write `report.html` into a run's output folder, replacing an older one.

    Args:
        folder: of a run that may go on.

    Returns:
        The page.

    Raises:
        DataError: if the folder holds no run.
    """
    return _write(render_run(read_run(folder)), folder / "report.html")


def write_comparison(folders: Sequence[Path], output: Path) -> Path:
    """Write a page on several runs.

    Args:
        folders: output folders of the runs; the first is drawn first everywhere.
        output: the page's file.

    Returns:
        The page.

    Raises:
        DataError: if a folder holds no run.
    """
    return _write(render_comparison([read_run(folder) for folder in folders]), output)


def _write(text: str, file: Path) -> Path:
    """Write a page whole or not at all."""
    partial = file.with_name(f".{file.name}")
    partial.write_text(text, encoding="utf-8")
    os.replace(partial, file)
    return file


def render_run(run: Run) -> str:
    """The page on one run."""
    parts = [
        f"<h1>{escape(run.name)}</h1>",
        summary(run),
        evaluation_section(run),
        geometry_section(run),
        training_section([run]),
        exposure_section(run),
        merge_section(run),
        environment_section(run),
        f"<h2>Recipe</h2><details><summary>as resolved</summary><pre>{escape(run.recipe)}</pre>"
        "</details>",
    ]
    return page(run.name, parts)


def render_comparison(runs: Sequence[Run]) -> str:
    """The page on several runs."""
    title = "Runs side by side"
    sums = [f"<h2>{escape(run.name)}</h2>{summary(run)}" for run in runs]
    parts = [
        f"<h1>{title}</h1>",
        *sums,
        comparison_table(runs),
        charts(evaluation_figures(runs)),
        training_section(runs),
        difference_section(runs),
    ]
    return page(title, parts)


def merge_section(run: Run) -> str:
    """Weights of the merged checkpoints by layer and module, if there was a merge."""
    if run.merge is None:
        return ""
    # A merge imports torch, which a page without one does not need.
    from trainer.merge.report import heatmaps

    return (
        f"<h2>Merge</h2><p>Method {escape(run.merge['method'])}: "
        f"{escape(run.merge['formula'])}</p>"
        f'<div class="maps">{heatmaps(run.merge)}</div>'
    )


def environment_section(run: Run) -> str:
    """Machine and releases."""
    facts = run.facts.get("environment")
    if not facts:
        return ""
    rows = [(name, str(value)) for name, value in facts.items()]
    return f"<h2>Environment</h2>{table(('part', 'release'), rows, num_names=2)}"


def difference_section(runs: Sequence[Run]) -> str:
    """Recipe keys whose values are not the same in all runs."""
    recipes = [dict(_flat(yaml.safe_load(run.recipe))) for run in runs]
    keys = list(dict.fromkeys(key for recipe in recipes for key in recipe))
    rows = [
        (key, *(str(recipe.get(key, "-")) for recipe in recipes))
        for key in keys
        if len({str(recipe.get(key, "-")) for recipe in recipes}) > 1
    ]
    head = ("recipe key", *(run.name for run in runs))
    return f"<h2>What differs</h2>{table(head, rows, num_names=len(head))}"


def _flat(value: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """Dotted paths and plain values of a nested document."""
    if isinstance(value, Mapping):
        inner = [(str(key), one) for key, one in value.items()]
    elif isinstance(value, list) and any(isinstance(one, Mapping) for one in value):
        inner = [(str(one.get("name", index)), one) for index, one in enumerate(value)]
    else:
        yield path, value
        return
    for key, one in inner:
        yield from _flat(one, f"{path}.{key}" if path else key)
