"""Everything that can be checked before torch is imported; it must not create a file.

A mistake in a recipe, its data or its folder is told here within a second.
"""

import dataclasses
import importlib.util
import json
import logging
import os
from collections.abc import Sequence
from pathlib import Path

from trainer.data.overlap import warn_of_overlaps
from trainer.data.plan import make_plan
from trainer.data.sources import Source, open_eval_set, open_sources
from trainer.errors import RecipeError
from trainer.recipe.model_path import resolve_model_path
from trainer.recipe.resolve import resolve
from trainer.recipe.schema import Recipe

logger = logging.getLogger(__name__)

TRACES = ("recipe.yaml", "metrics.jsonl", "eval.jsonl", "checkpoints", "model", "report.html")
"""What a run leaves in its output folder."""


def check_run(recipe: Recipe, *, world_size: int, resume: bool) -> tuple[Source, ...]:
    """Check all that a run needs but the model's weights.

    Args:
        recipe: as loaded.
        world_size: ranks over all hosts.
        resume: whether the output folder may hold an earlier run.

    Returns:
        The training sources, every row checked.

    Raises:
        RecipeError: if batches, ds_config, model path, packages or output folder are wrong, or a
            batch has more rows than a source.
        DataError: if a data file or a row is wrong.
    """
    resolve(recipe, world_size=world_size)
    check_model(recipe)
    check_packages(recipe)
    check_output_dir(recipe.output_dir, resume=resume)
    sources = open_data(recipe)
    make_plan(recipe, {source.name: len(source) for source in sources})
    return sources


def open_data(recipe: Recipe) -> tuple[Source, ...]:
    """Open all sources and look into the evaluation sets, every row checked.

    Raises:
        DataError: if a file is missing or empty, or a row is spoiled.
    """
    sources = open_sources(recipe.data)
    warn_of_overlaps(
        sources,
        {held_out.name: open_eval_set(held_out, recipe.data) for held_out in recipe.eval.sets},
    )
    return sources


def without_hub(recipe: Recipe) -> Recipe:
    """The recipe with the sources that lie on this machine; those of the hub stay unread."""
    local = tuple(source for source in recipe.data.sources if source.hub is None)
    return dataclasses.replace(recipe, data=dataclasses.replace(recipe.data, sources=local))


def check_model(recipe: Recipe) -> None:
    """Look for the model's folder and read its config as plain JSON.

    Raises:
        RecipeError: if the folder is missing, has no config.json, or that is not JSON.
    """
    path = Path(resolve_model_path(recipe.model.path)) / "config.json"
    if path.is_file():
        try:
            json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise RecipeError(
                f"{path}: content = not JSON ({error}); expected a model's config. Download the "
                "model again."
            ) from error


def check_packages(recipe: Recipe) -> None:
    """Look for the optional packages that the recipe asks for.

    Raises:
        RecipeError: if one is not installed.
    """
    for key, value, package, extra in (
        ("log.wandb_project", recipe.log.wandb_project, "wandb", "wandb"),
        (
            "engine.attention_kernel",
            recipe.engine.attention_kernel == "flash_attention_2" and "flash_attention_2",
            "flash_attn",
            "flash",
        ),
    ):
        if value and importlib.util.find_spec(package) is None:
            raise RecipeError(
                f"recipe: {key} = {value}; expected the package {package} beside it. "
                f"Run: pip install -e '.[{extra}]'"
            )


def check_output_dir(folder: str, *, resume: bool) -> None:
    """Refuse a folder that holds another run, cannot be written to, or is a file.

    Raises:
        RecipeError: naming what was found.
    """
    path = Path(folder).expanduser()
    if path.exists() and not path.is_dir():
        raise _error(folder, "is a file", "a folder", "Give another path.")
    existing = next(parent for parent in (path, *path.absolute().parents) if parent.exists())
    if not os.access(existing, os.W_OK):
        raise _error(folder, f"{existing} is read-only", "a folder to write to", "Give another.")
    found = [name for name in TRACES if (path / name).exists()]
    if found and not resume:
        expected = "a new or empty folder"
        advice = "Continue it with --resume, give another output_dir, or remove the old run."
        raise _error(folder, f"holds a run: {_listed(found)}", expected, advice)
    if resume and not (path / "checkpoints").exists():
        logger.info("%s: no checkpoint to resume; the run starts at its first step", folder)


def _listed(names: Sequence[str]) -> str:
    return ", ".join(names)


def _error(folder: str, got: str, expected: str, advice: str) -> RecipeError:
    return RecipeError(f"recipe: output_dir = {folder} ({got}); expected {expected}. {advice}")
