"""Where the model lies that a recipe names: an adapter's base, or their sum in the cache."""

import logging
from importlib.metadata import version
from pathlib import Path

from trainer.checkpoint.base_identity import base_files, check_recorded_base, identity_of_files
from trainer.checkpoint.manifest import digest
from trainer.data.cache import cache_root, cached_folder, file_identity
from trainer.errors import CheckpointError
from trainer.merge.driver import merge_checkpoints
from trainer.merge.settings import MergeSettings
from trainer.recipe.adapter_folder import AdapterFolder, find_adapter_folder
from trainer.recipe.schema import ModelRecipe
from trainer.unpack.cached import place_of_base

logger = logging.getLogger(__name__)

LAYOUT = 2
"""Raised when what is merged changes: older folders are made anew."""


def place_of_model(model: ModelRecipe) -> str:
    """Turn the model section into the folder, or the hub id, of whole weights.

    That is the model itself, the base of an adapter that is trained on, or the sum of an adapter
    and its base. The sum is computed in float64, rounded once to `model.dtype`, and kept in the
    cache; other processes of this machine wait meanwhile.

    Args:
        model: with `adapter` filled in, see `with_adapter`.

    Raises:
        RecipeError: if there is no such folder, file or package.
        CheckpointError: if a GGUF file cannot be unpacked, an adapter cannot be merged or is of
            another base, or the cache cannot be written.
    """
    found = find_adapter_folder(model.path)
    if found is None:
        return place_of_base(model.path, model.dtype)
    base = place_of_base(found.base, model.dtype)
    return str(_merged(found, base, model)) if model.adapter == "merge" else base


def _merged(found: AdapterFolder, base: str, model: ModelRecipe) -> Path:
    """The folder of an adapter and its base in one, made where it is not there yet."""
    files = base_files(base, model.revision)
    # the dense layer behind the pooling lies in a folder of its own
    parts = [file for file in sorted(found.folder.rglob("*")) if file.is_file()]
    identities = [file_identity(file) for file in (*files, *parts)]
    name = found.folder.resolve().name
    key = "|".join((f"merged {LAYOUT}", *identities, model.dtype, version("transformers")))

    def write(folder: Path) -> None:
        entries = {file.name: digest(file) for file in files}
        check_recorded_base(found.folder, identity_of_files(found.base, files, entries))
        logger.info("%s: is merged into its base %s in %s, once", found.folder, base, folder)
        settings = MergeSettings(
            method="task_arithmetic",
            dtype=model.dtype,
            memory_budget_bytes=None,
        )
        merge_checkpoints(files[0].parent, [found.folder], folder, settings)

    try:
        return cached_folder(key, name, write)
    except OSError as error:
        raise CheckpointError(
            f"{cache_root()}: writing = {error.strerror or error}; expected a cache to merge "
            f"{found.folder} into. Set TRAINER_CACHE_DIR to a folder that can be written to."
        ) from error
