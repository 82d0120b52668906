"""Everything that can be checked before torch is imported; it must not create a file.

A mistake in a recipe, its data or its folder is reported here within a second.
"""

import dataclasses
import importlib.util
import json
import logging
import os
import re
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from trainer.checkpoint.safetensors_dtypes import check_base_dtypes, weights_in
from trainer.data.evalsets import EvalSet, open_eval_sets
from trainer.data.fetching import is_at_hand
from trainer.data.held_out_source import owner_of
from trainer.data.hub_cache import cached_snapshot
from trainer.data.labels import check_labels
from trainer.data.mined import check_mined
from trainer.data.overlap import screen_of, warn_of_overlaps
from trainer.data.planned import plan_of
from trainer.data.sources import Source, open_sources
from trainer.data.teacher import (
    check_negatives,
    check_teacher_vectors,
    check_teachers,
    teacher_size,
)
from trainer.errors import RecipeError
from trainer.export.prompts import replaced_prompts
from trainer.recipe.adapter_folder import AdapterFolder, find_adapter_folder
from trainer.recipe.model_path import is_gguf, resolve_model_path
from trainer.recipe.resolve import resolve
from trainer.recipe.schema import Recipe
from trainer.run_folder.layout import TRACES, RunFolder

logger = logging.getLogger(__name__)

COMMIT = re.compile("[0-9a-f]{40}")
LEAST_FREE_BYTES = 1 << 20
"""With less room than this a run is not begun; its checkpoints are counted by the dry run."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class RunData:
    """The data of a run, each file opened and checked once."""

    sources: tuple[Source, ...]
    """What is trained on, in the recipe's order."""
    eval_sets: tuple[EvalSet, ...]
    """What is evaluated on, in the recipe's order."""


def check_run(recipe: Recipe, *, world_size: int, resume: bool) -> RunData:
    """Check all that a run needs but the model's weights.

    Args:
        recipe: as loaded.
        world_size: ranks over all hosts.
        resume: whether the output folder may hold an earlier run.

    Returns:
        The data, every row checked.

    Raises:
        RecipeError: if batches, ds_config, model path, packages or output folder are wrong, or a
            batch has more rows than a source.
        DataError: if a data file or a row is wrong.
    """
    resolve(recipe, world_size=world_size)
    check_model(recipe)
    check_packages(recipe)
    check_output_dir(recipe.output_dir, resume=resume)
    data = open_data(recipe)
    plan_of(recipe, data.sources)
    for line in replaced_prompts(recipe):
        logger.warning("%s", line)
    return data


def open_data(recipe: Recipe) -> RunData:
    """Open all sources and evaluation sets, every row checked.

    Raises:
        DataError: if a file is missing or empty, a row is malformed, a teacher's scores are asked
            for that no row has, a text has none of its teacher's vectors, or one layer has teachers
            of different sizes.
        RecipeError: if a step draws more labels than a source has, or mined negatives could not be
            read as the recipe says.
    """
    held_out: Mapping[str, EvalSet] = {}
    if recipe.data.overlap is not None:
        held_out = open_eval_sets(recipe)
    sources = open_sources(recipe.data, screen_of(recipe.data, held_out))
    check_teacher_vectors(sources)
    teacher_size(sources, recipe)  # refuses two sizes
    check_teachers(sources, recipe)
    check_negatives(sources, recipe)
    check_labels(sources, recipe)
    check_mined(sources, recipe)
    held_out = held_out or open_eval_sets(recipe)
    if recipe.data.overlap is None:
        warn_of_overlaps(sources, held_out)
    return RunData(sources=sources, eval_sets=tuple(held_out.values()))


def near_data(recipe: Recipe) -> Recipe:
    """The recipe with what lies on this machine; the rest of the hub and of stores stays unread.

    What was fetched from a store is kept where it is still the same there, and held-out sets of the
    hub where its cache has them.

    Raises:
        DataError: if something is not there on a store, or the store cannot be reached.
    """
    root = recipe.data.root
    local = tuple(
        one
        for one in recipe.data.sources
        if one.hub is None and is_at_hand(one, root, owner=f"data.sources.{one.name}")
    )
    sets = tuple(
        one
        for one in recipe.eval.sets
        if (is_at_hand(one, root, owner=owner_of(one)) if one.hub is None else _is_cached(one.hub))
    )
    return dataclasses.replace(
        recipe,
        data=dataclasses.replace(recipe.data, sources=local),
        eval=dataclasses.replace(recipe.eval, sets=sets),
    )


def _is_cached(hub: str) -> bool:
    """Whether a set of the hub lies on this machine."""
    return cached_snapshot(hub.partition(":")[0]) is not None


def check_model(recipe: Recipe) -> None:
    """Look for the model's folder, read its config as plain JSON, and refuse what is unsafe.

    Raises:
        RecipeError: if the folder is missing, has no config.json, or that is not JSON; if an index
            of weights names files elsewhere; if code of a hub model is to be run that no commit
            pins.
        CheckpointError: if its weights are quantised.
    """
    adapter = find_adapter_folder(recipe.model.path)
    place = resolve_model_path(recipe.model.path) if adapter is None else _base_of(adapter)
    folder = Path(place)
    if folder.is_dir():
        _read_json(folder / "config.json", "a model's config")
        _check_weights(folder)
        check_base_dtypes(weights_in(folder))
    elif is_gguf(place):
        return  # unpacked, it is checked like any other
    elif recipe.model.trust_remote_code and not COMMIT.fullmatch(recipe.model.revision or ""):
        raise RecipeError(
            f"recipe: model.revision = {recipe.model.revision}; expected the whole hash of a "
            "commit, 40 hexadecimal digits, where model.trust_remote_code is true: a branch or tag "
            "can change unseen. Take the commit whose code you have read."
        )


def _base_of(adapter: AdapterFolder) -> str:
    """Where the base of an adapter lies.

    Raises:
        RecipeError: nowhere; names the file that says where.
    """
    try:
        return resolve_model_path(adapter.base)
    except RecipeError as error:
        raise RecipeError(
            f"{adapter.file}: base_model_name_or_path = {adapter.base}; expected the model that "
            f"the adapter was trained on, where it lies now. Write its place there. ({error})"
        ) from error


def _check_weights(folder: Path) -> None:
    """Refuse an index that names files outside the model's folder.

    Raises:
        RecipeError: naming the file.
    """
    for index in sorted(folder.glob("*.index.json")):
        names = _read_json(index, "an index of weights").get("weight_map")
        for name in names.values() if isinstance(names, dict) else ():
            if not isinstance(name, str) or Path(name).name != name or name in ("", ".", ".."):
                raise RecipeError(
                    f"{index}: weight_map names {name!a}; expected files beside the index, "
                    "without a path. Do not use this model unless you know who made it."
                )


def _read_json(path: Path, what: str) -> dict[str, Any]:
    """The JSON object of a file."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise RecipeError(
            f"{path}: content = not JSON ({error}); expected {what}. Download the model again."
        ) from error
    if not isinstance(content, dict):
        raise RecipeError(f"{path}: content = no object; expected {what}. Download it again.")
    return content


def check_packages(recipe: Recipe) -> None:
    """Look for the optional packages that the recipe asks for.

    Raises:
        RecipeError: if one is not installed.
    """
    for key, value, package, extra in (
        ("model.path", is_gguf(recipe.model.path) and recipe.model.path, "gguf", "gguf"),
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
    if shutil.disk_usage(existing).free < LEAST_FREE_BYTES:
        expected = "a folder on a disk with room"
        raise _error(folder, "the disk is full", expected, "Make room, or give another.")
    found = [name for name in TRACES if (path / name).exists()]
    if found and not resume:
        expected = "a new or empty folder"
        advice = "Continue it with --resume, give another output_dir, or remove the old run."
        raise _error(folder, f"holds a run: {_listed(found)}", expected, advice)
    if resume and not RunFolder(path).checkpoints.exists():
        logger.info("%s: no checkpoint to resume; the run starts at its first step", folder)


@contextmanager
def writing_to(folder: Path) -> Iterator[None]:
    """Report that the run's first files could not be written, before anything was trained.

    Raises:
        RecipeError: naming file and reason.
    """
    try:
        yield
    except OSError as error:
        got = f"{error.filename or folder}: {error.strerror}"
        expected = "a folder to write to, on a disk with room"
        raise _error(str(folder), got, expected, "Fix it, or give another.") from error


def _listed(names: Sequence[str]) -> str:
    return ", ".join(names)


def _error(folder: str, got: str, expected: str, advice: str) -> RecipeError:
    return RecipeError(f"recipe: output_dir = {folder} ({got}); expected {expected}. {advice}")
