"""Where the base lies that a recipe names: a GGUF file is unpacked into the cache, once.

It must not import torch when it is imported: pages on a run look for their base here.
"""

import logging
from importlib.metadata import version
from pathlib import Path
from typing import get_args

from trainer.data.cache import cache_root, cached_folder, file_identity, place_in_cache
from trainer.errors import CheckpointError
from trainer.recipe.model_path import is_gguf, resolve_model_path
from trainer.recipe.schema import DType
from trainer.unpack.gguf_file import refuse_without_package

logger = logging.getLogger(__name__)

LAYOUT = 1
"""Raised when what is unpacked changes: older folders are made anew."""


def place_of_base(path: str, dtype: DType) -> str:
    """Turn `model.path` into a folder, or leave a hub id as it is.

    A GGUF file is unpacked into the cache where it is not there yet; other processes of this
    machine wait meanwhile.

    Args:
        path: as a recipe names it.
        dtype: of the unpacked weights; it changes nothing for other bases.

    Raises:
        RecipeError: if there is no such folder, file or package, see `resolve_model_path`.
        CheckpointError: if the file cannot be unpacked, or the cache cannot be written.
    """
    place = resolve_model_path(path)
    return str(_unpacked(Path(place), dtype)) if is_gguf(place) else place


def unpacked_before(path: str) -> Path | None:
    """The folder that a GGUF file was unpacked into, of any dtype; None where there is none yet.

    Raises:
        RecipeError: if there is no such file or package, see `resolve_model_path`.
    """
    file = Path(resolve_model_path(path))
    folders = (place_in_cache(_identity(file, dtype), file.stem) for dtype in get_args(DType))
    return next((folder for folder in folders if folder.is_dir()), None)


def _unpacked(file: Path, dtype: DType) -> Path:
    refuse_without_package(file)
    try:
        return cached_folder(
            _identity(file, dtype), file.stem, lambda folder: _unpack(file, folder, dtype)
        )
    except OSError as error:
        raise CheckpointError(
            f"{cache_root()}: writing = {error.strerror or error}; expected a cache to unpack "
            f"{file} into. Set TRAINER_CACHE_DIR to a folder that can be written to."
        ) from error


def _identity(file: Path, dtype: DType) -> str:
    """What the unpacked folder depends on."""
    return f"unpacked {LAYOUT}|{file_identity(file)}|{dtype}|{version('transformers')}"


def _unpack(file: Path, folder: Path, dtype: DType) -> None:
    # heavy
    import torch

    from trainer.unpack.folder import unpack

    logger.info("%s: is unpacked into %s, once", file, folder)
    unpack(file, folder, dtype=getattr(torch, dtype))
