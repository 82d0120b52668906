"""A written folder in the form that every reader takes alike; it never touches weights.

The function behind exports, checkpoints, merges, and the upgrade of folders that an earlier
release wrote. What it does to a folder is decided by the folder's files and its base's.
"""

import shutil
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from trainer.checkpoint.dense_files import dense_weights
from trainer.checkpoint.json_files import read_object, write_json
from trainer.checkpoint.safetensors_file import NEEDS_RELEASE_5, PLAIN
from trainer.export.changes import differences
from trainer.export.config_file import PART, complete_config, named_class, needs_release_5
from trainer.export.rope import read_config
from trainer.export.sentence_files import complete_sentence_files
from trainer.export.tokenizer_file import complete_tokenizer

CONFIG = "config.json"
NOTICES = ("LICENSE*", "LICENCE*", "NOTICE*", "license*", "Notice*")
"""Files of a base that say under which terms it may be used."""
WEIGHTS = "*.safetensors"
READABLE = 0o666


def complete_folder(folder: Path, *, base: Path | None = None) -> list[str]:
    """Bring config, tokenizer and sentence-transformers files into the form of all readers.

    A second call changes nothing.

    Args:
        folder: of an export, a merge, or the small files of a checkpoint.
        base: folder of the model that was trained; its settings, its tokenizer's class and its
            licence are taken over. None where it is unknown.

    Returns:
        One sentence for each change.

    Raises:
        CheckpointError: if a file is not of its form.
    """
    base = base if base is not None and base.is_dir() and base != folder else None
    changes, template = complete_tokenizer(folder, base)
    changes += _config(folder, base, None if template is None else template.end_id)
    changes += complete_sentence_files(folder)
    changes += _notices(folder, base)
    return changes + open_to_readers(folder)


def _config(folder: Path, base: Path | None, end_id: int | None) -> list[str]:
    """Complete config.json, where there is one."""
    path = folder / CONFIG
    if not path.is_file():
        return []
    old = read_object(path)
    known = read_object(base / CONFIG) if base is not None and (base / CONFIG).is_file() else None
    new = complete_config(old, base=known, end_id=end_id, architecture=_bare_class(folder, old))
    changes = differences(CONFIG, old, new)
    if changes:
        write_json(path, new)
    return changes


def weights_format(folder: Path) -> str:
    """What the weight files of a folder say of their format, by its config.json."""
    path = folder / CONFIG
    bidirectional = path.is_file() and needs_release_5(read_object(path))
    return NEEDS_RELEASE_5 if bidirectional else PLAIN


def _bare_class(folder: Path, config: dict[str, Any]) -> str | None:
    """Name of the class without a head, if the weights are named as it names them."""
    from transformers.models.auto.modeling_auto import MODEL_MAPPING_NAMES

    found = MODEL_MAPPING_NAMES.get(str(config.get("model_type")))
    if PART in config or not isinstance(found, str):
        return None
    if config.get("architectures") in ([found], [named_class(config, found)]):
        return found
    names = _tensor_names(folder)
    own = _own_names(config) if names else None
    return found if own and own <= names else None


def _tensor_names(folder: Path) -> set[str]:
    """Names of all tensors of a folder; none where its weights cannot be read."""
    names: set[str] = set()
    for path in folder.glob(WEIGHTS):
        try:
            with safe_open(path, framework="pt") as file:
                names.update(file.keys())
        except (OSError, SafetensorError):
            return set()
    return names


def _own_names(config: dict[str, Any]) -> set[str] | None:
    """Names of the parameters of a config's bare class; None for an unknown one."""
    import torch
    from transformers import AutoModel

    read = read_config(config)
    if read is None or type(read) not in AutoModel._model_mapping:
        return None
    with torch.device("meta"):
        model = AutoModel.from_config(read, attn_implementation="eager")
    return {name for name, _ in model.named_parameters()}


def _notices(folder: Path, base: Path | None) -> list[str]:
    """Copy the base's licence and notices, where the folder has none of that name."""
    changes = []
    found = {path for pattern in NOTICES for path in (base.glob(pattern) if base else ())}
    for path in sorted(found):
        if path.is_file() and not (folder / path.name).exists():
            shutil.copyfile(path, folder / path.name)
            changes.append(f"{path.name}: copied from the base")
    return changes


def open_to_readers(folder: Path) -> list[str]:
    """Give weight files the mode of the files beside them: a library writes them for one user.

    Args:
        folder: with a JSON file whose mode follows the umask.
    """
    beside = next(iter(sorted(folder.glob("*.json"))), None)
    if beside is None:
        return []
    mode, changes = beside.stat().st_mode & READABLE, []
    for path in [*sorted(folder.glob(WEIGHTS)), *dense_weights(folder)]:
        if path.stat().st_mode & READABLE != mode:
            path.chmod(mode)
            name = path.relative_to(folder).as_posix()
            changes.append(f"{name}: mode {mode:04o}, so that servers can read it")
    return changes
