"""Config, tokenizer and sentence-transformers files of a merged model; it must not read weights.

Each group of files comes whole from the first folder that has it: the checkpoints in their order,
then the base.
"""

import logging
import os
import re
import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from trainer.checkpoint.dense_files import dense_config, dense_folder
from trainer.checkpoint.json_files import module_path, read_modules, read_object, write_json
from trainer.checkpoint.safetensors_file import PLAIN
from trainer.errors import CheckpointError
from trainer.export.complete import complete_folder, weights_format
from trainer.export.dims import with_common_dims
from trainer.export.rope import canonical, read_rope

logger = logging.getLogger(__name__)

TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json",
                   "added_tokens.json", "vocab.txt", "vocab.json", "merges.txt",
                   "tokenizer.model", "spiece.model", "sentencepiece.bpe.model",
                   "chat_template.jinja")  # fmt: skip
SENTENCE_FILES = ("modules.json", "config_sentence_transformers.json",
                  "sentence_bert_config.json")  # fmt: skip
ARCHITECTURE_KEYS = ("model_type", "hidden_size", "num_hidden_layers", "num_attention_heads",
                     "num_key_value_heads", "head_dim", "intermediate_size", "vocab_size",
                     "hidden_act", "rms_norm_eps", "layer_norm_eps",
                     "tie_word_embeddings")  # fmt: skip
"""Keys of config.json that two models must share to be averaged; same shapes are not enough."""
WEIGHT_SUFFIXES = (".safetensors", ".bin", ".pt", ".pth")


@dataclass(frozen=True)
class Assets:
    """Folders that give each group of files; None where none has it."""

    config: Path | None
    """Folder of config.json."""
    tokenizer: Path | None
    """Folder of the tokenizer."""
    sentence: Path | None
    """Folder of modules.json and what it names."""
    base: Path | None = None
    """Folder of the base, for its own settings and its licence."""
    configs: tuple[Mapping[str, Any], ...] = ()
    """What config.json of each checkpoint holds, of those that have one."""
    dense: str = ""
    """Folder of the dense layer behind the pooling, inside the result; empty without one."""


def find_assets(checkpoints: Sequence[Sequence[Path]], base: Sequence[Path]) -> Assets:
    """Choose the folders.

    Args:
        checkpoints: folders of each checkpoint, best first.
        base: folders of the base.

    Raises:
        CheckpointError: if models pool differently or have parts with weights beside the
            backbone.
    """
    folders = [folder for group in (*checkpoints, base) for folder in group]
    assets = Assets(
        config=_first_with(folders, ("config.json",)),
        tokenizer=_first_with(folders, ("tokenizer.json", "tokenizer_config.json")),
        sentence=_first_with(folders, ("modules.json",)),
        base=next(iter(base), None),
        configs=tuple(config for group in checkpoints if (config := _config(group))),
    )
    groups = [group for group in checkpoints if group]
    _check_pooling(groups)
    _check_dense(groups)
    if assets.sentence is None:
        return assets
    dense = dense_folder(assets.sentence)
    for _, folder in _module_folders(assets.sentence):
        if folder != dense:
            _refuse_weights(folder)
    place = "" if dense is None else dense.relative_to(assets.sentence).as_posix()
    return replace(assets, dense=place)


def _first_with(folders: Iterable[Path], names: Sequence[str]) -> Path | None:
    for folder in folders:
        if any((folder / name).is_file() for name in names):
            return folder
    return None


def _module_folders(folder: Path) -> list[tuple[str, Path]]:
    """Modules after the transformer: path in modules.json and folder, where they have files."""
    paths = map(module_path, read_modules(folder / "modules.json")[1:])
    # not Path.is_dir, which raises at a name that no file system takes
    return [(path, folder / path) for path in paths if path and os.path.isdir(folder / path)]


def _refuse_weights(folder: Path) -> None:
    for path in folder.iterdir():
        if path.suffix in WEIGHT_SUFFIXES:
            raise CheckpointError(
                f"{path}: weights = of a module behind the backbone; expected pooling, one dense "
                "layer and normalisation only. Such modules cannot be merged yet."
            )


def _check_pooling(groups: Sequence[Sequence[Path]]) -> None:
    seen: dict[Path, set[str]] = {}
    for group in groups:
        folder = _first_with(group, ("modules.json",))
        pooling = folder / "1_Pooling" / "config.json" if folder else None
        if pooling is not None and pooling.is_file():
            seen[pooling] = _pooling_modes(read_object(pooling))
    for path, modes in seen.items():
        first = next(iter(seen))
        if modes != seen[first]:
            raise CheckpointError(
                f"{path}: pooling = {', '.join(sorted(modes))}; expected "
                f"{', '.join(sorted(seen[first]))} as in {first}. Models that pool differently "
                "cannot be merged."
            )


def _check_dense(groups: Sequence[Sequence[Path]]) -> None:
    """Raises where checkpoints have dense layers of other settings behind the pooling."""
    seen: dict[Path, dict[str, Any] | None] = {}
    for group in groups:
        folder = _first_with(group, ("modules.json",))
        if folder is not None:
            seen[folder] = dense_config(folder)
    for folder, config in seen.items():
        first = next(iter(seen))
        if config != seen[first]:
            raise CheckpointError(
                f"{folder}: dense layer = {config or 'none'}; expected {seen[first] or 'none'} as "
                f"in {first}. Models whose vectors are made otherwise cannot be merged."
            )


def _pooling_modes(config: Mapping[str, Any]) -> set[str]:
    """Ways of pooling, by the names that sentence-transformers gives them since release 6."""
    modes = config.get("pooling_mode")
    if modes is not None:
        return set(map(str, modes)) if isinstance(modes, list) else {str(modes)}
    marker = "pooling_mode_"
    switches = [key.removeprefix(marker) for key, on in config.items()
                if key.startswith(marker) and on is True]  # fmt: skip
    return {re.sub(r"_tokens?$", "", switch) for switch in switches}


def check_architecture(base: Sequence[Path], others: Mapping[Path, Sequence[Path]]) -> None:
    """Refuse checkpoints whose config describes another model than the base's.

    Args:
        base: folders that may hold the base's config.json.
        others: folders of each checkpoint, by the checkpoint.

    Raises:
        CheckpointError: naming the first key that differs.
    """
    own = _config(base)
    for path, folders in others.items():
        config = _config(folders)
        if not own or not config:
            continue
        for key in ARCHITECTURE_KEYS:
            if key in own and key in config and own[key] != config[key]:
                raise _other_model(path, key, config[key], own[key])
        its, expected = _rope(config), _rope(own)
        for key in sorted({*its, *expected}):
            if its.get(key) != expected.get(key):
                raise _other_model(path, key, its.get(key), expected.get(key))


def _other_model(path: Path, key: str, found: object, expected: object) -> CheckpointError:
    return CheckpointError(
        f"{path}: config {key} = {found}; expected {expected} as in the base. "
        "Name the base that this checkpoint was trained from."
    )


def _rope(config: dict[str, Any]) -> dict[str, Any]:
    """The rotary parameters of a config by dotted key, whichever form they are written in."""
    section = config.get("text_config")
    config = section if isinstance(section, dict) else config
    found = read_rope(config) if "model_type" in config else None
    if found is None:
        # a type that transformers does not know, or one without rotary positions
        found = {key: config[key] for key in ("rope_theta", "rope_scaling") if config.get(key)}
    return dict(_leaves("", canonical(found)))


def _leaves(prefix: str, content: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """Values of nested mappings by dotted key."""
    for key, value in content.items():
        if isinstance(value, Mapping):
            yield from _leaves(f"{prefix}{key}.", value)
        else:
            yield prefix + key, value


def _config(folders: Sequence[Path]) -> dict[str, Any]:
    folder = _first_with(folders, ("config.json",))
    return read_object(folder / "config.json") if folder else {}


def weights_form(assets: Assets) -> str:
    """What the merged weight files say of their format."""
    return PLAIN if assets.config is None else weights_format(assets.config)


def copy_assets(assets: Assets, target: Path, dtype: torch.dtype) -> None:
    """Copy the files into the merged model's folder, in the form that all clients read.

    Args:
        assets: what `find_assets` chose.
        target: existing folder, its weights written.
        dtype: what the config shall name as the weights' dtype.
    """
    if assets.config is not None:
        config = read_object(assets.config / "config.json")
        config = with_common_dims(config, assets.configs)
        config["dtype"] = config["torch_dtype"] = str(dtype).removeprefix("torch.")
        write_json(target / "config.json", config)
        for code in assets.config.glob("*.py"):
            shutil.copy(code, target)
    if assets.tokenizer is not None:
        _copy_present(assets.tokenizer, TOKENIZER_FILES, target)
    if assets.sentence is not None:
        _copy_sentence_files(assets.sentence, target)
    for change in complete_folder(target, base=assets.base):
        logger.info("%s: %s", target.name, change)


def _copy_sentence_files(folder: Path, target: Path) -> None:
    modules = read_modules(folder / "modules.json")
    transformer = folder / module_path(modules[0])
    _copy_present(folder, SENTENCE_FILES[1:], target)
    _copy_present(transformer, SENTENCE_FILES[2:], target)
    # the transformer's files lie in the merged folder itself
    modules[0]["path"] = ""
    write_json(target / "modules.json", modules)
    for path, source in _module_folders(folder):
        # merged weights of a dense layer are there already
        weights = shutil.ignore_patterns(*(f"*{suffix}" for suffix in WEIGHT_SUFFIXES))
        shutil.copytree(source, target / path, ignore=weights, dirs_exist_ok=True)


def _copy_present(folder: Path, names: Sequence[str], target: Path) -> None:
    for name in names:
        if os.path.isfile(folder / name):
            shutil.copy(folder / name, target)
