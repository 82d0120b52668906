"""Where a sentence-transformers folder keeps the dense layer behind its pooling.

It must not read tensors.
"""

from pathlib import Path
from typing import Any

from trainer.checkpoint.json_files import module_path, read_modules, read_object
from trainer.errors import CheckpointError

MODULES = "modules.json"
CONFIG = "config.json"
WEIGHTS = "model.safetensors"
DENSE = "Dense"
"""End of the module's type, under the names of all releases."""
DENSE_TENSORS = "projection."
"""What the trainer puts before the names of the layer's tensors."""


def dense_folder(folder: Path) -> Path | None:
    """Folder of the one dense layer; None where there is none or several.

    Args:
        folder: of an export, a merge, or the small files of a checkpoint.

    Raises:
        CheckpointError: if modules.json is not of its form.
    """
    listed = folder / MODULES
    modules = read_modules(listed) if listed.is_file() else []
    found = [one for one in modules if str(one.get("type")).rpartition(".")[2] == DENSE]
    return folder / module_path(found[0]) if len(found) == 1 else None


def dense_config(folder: Path) -> dict[str, Any] | None:
    """Content of the layer's config.json; None where there is no such layer.

    Args:
        folder: as `dense_folder` takes it.

    Raises:
        CheckpointError: if it is missing or no object.
    """
    place = dense_folder(folder)
    if place is None:
        return None
    if not (place / CONFIG).is_file():
        raise CheckpointError(
            f"{place}: {CONFIG} = missing; expected the settings of the dense layer that "
            f"{folder / MODULES} names. Copy the folder again."
        )
    return read_object(place / CONFIG)


def dense_weights(folder: Path) -> tuple[Path, ...]:
    """File of the layer's weights; empty where there is none.

    Args:
        folder: as `dense_folder` takes it.
    """
    place = dense_folder(folder)
    file = None if place is None else place / WEIGHTS
    return (file,) if file is not None and file.is_file() else ()
