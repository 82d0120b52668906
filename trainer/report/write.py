"""The page on a run, `report.html`, from the files of its output folder, or on several runs.

The page loads nothing: it can be mailed, printed and read on a phone. It must not import torch.
"""

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from html import escape
from pathlib import Path
from typing import Any

import yaml

from trainer.errors import DataError
from trainer.recipe.document import UNSPELT, plain_values
from trainer.report.dims import dims_figures, dims_section
from trainer.report.held_out import (
    comparison_table,
    evaluation_figures,
    evaluation_section,
    geometry_section,
)
from trainer.report.html import charts, page, table
from trainer.report.read import Run, read_run
from trainer.report.stretches import stretches_section
from trainer.report.training import exposure_section, summary, training_section
from trainer.run_folder.layout import RunFolder


def write_report(folder: Path, output: Path | None = None) -> Path:
    """Write the page on a run, replacing an older one.

    Args:
        folder: of a run that may go on.
        output: the page's file; None: `report.html` in the folder.

    Returns:
        The page.

    Raises:
        DataError: if the folder holds no run, or one of its files is damaged.
        OSError: if the page cannot be written; an older one stays.
    """
    return _write(render_run(read_run(folder)), output or RunFolder(folder).report)


def write_comparison(folders: Sequence[Path], output: Path) -> Path:
    """Write a page on several runs.

    Args:
        folders: output folders of the runs; the first is drawn first everywhere.
        output: the page's file.

    Returns:
        The page.

    Raises:
        DataError: if a folder holds no run, or one of its files is damaged.
        OSError: if the page cannot be written; an older one stays.
    """
    runs = [
        replace(read_run(folder), name=name)
        for folder, name in zip(folders, _names(folders), strict=True)
    ]
    return _write(render_comparison(runs), output)


def _names(folders: Sequence[Path]) -> list[str]:
    """The shortest ends of the paths that distinguish them."""
    parts = [folder.resolve().parts for folder in folders]
    names: list[str] = []
    for length in range(1, max(map(len, parts)) + 1):
        names = ["/".join(one[-length:]) for one in parts]
        if len(set(names)) == len(set(parts)):
            break
    return names


def _write(text: str, file: Path) -> Path:
    """Write a page whole or not at all."""
    partial = file.with_name(f".{file.name}")
    try:
        partial.write_text(text, encoding="utf-8")
        os.replace(partial, file)
    except OSError:
        with suppress(OSError):
            partial.unlink()
        raise
    return file


def render_run(run: Run) -> str:
    """The page on one run."""
    parts = [
        f"<h1>{escape(run.name)}</h1>",
        summary(run),
        stretches_section(run),
        evaluation_section(run),
        dims_section(run),
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
        charts([*evaluation_figures(runs), *dims_figures(runs)]),
        training_section(runs),
        difference_section(runs),
    ]
    return page(title, parts)


def merge_section(run: Run) -> str:
    """Weights of the merged checkpoints by layer and module, if there was a merge."""
    if run.merge is None:
        return ""
    # A merge imports torch, which a page without one does not need.
    from trainer.merge.record import heatmaps

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
    recipes = [dict(_flat(_parsed_recipe(run))) for run in runs]
    keys = list(dict.fromkeys(key for recipe in recipes for key in recipe))
    rows = [
        (key, *(str(recipe.get(key, "-")) for recipe in recipes))
        for key in keys
        if len({str(recipe.get(key, "-")) for recipe in recipes}) > 1
    ]
    head = ("recipe key", *(run.name for run in runs))
    return f"<h2>What differs</h2>{table(head, rows, num_names=len(head))}"


def _parsed_recipe(run: Run) -> Any:
    """Values of a run's recipe.

    Raises:
        DataError: if it is no YAML.
        RecipeError: if it holds what a recipe may not hold.
    """
    try:
        return plain_values(run.recipe, lambda line: f"{run.name}/recipe.yaml:{line}")
    except (yaml.YAMLError, *UNSPELT) as error:
        problem = " ".join(str(error).split())
        raise DataError(
            f"{run.name}/recipe.yaml: {problem}; expected YAML as the run wrote it. Fix it."
        ) from None


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
