"""Config, tokenizer and sentence-transformers files of a merged model; it must not read weights.

Each group of files comes whole from the first folder that has it: the checkpoints in their order,
then the base.
"""

import json
import os
import re
import shutil
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from trainer.checkpoint.json_files import module_path, read_modules, read_object
from trainer.errors import CheckpointError

TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json",
                   "added_tokens.json", "vocab.txt", "vocab.json", "merges.txt",
                   "tokenizer.model", "spiece.model", "sentencepiece.bpe.model",
                   "chat_template.jinja")  # fmt: skip
SENTENCE_FILES = ("modules.json", "config_sentence_transformers.json",
                  "sentence_bert_config.json")  # fmt: skip
ARCHITECTURE_KEYS = ("model_type", "hidden_size", "num_hidden_layers", "num_attention_heads",
                     "num_key_value_heads", "head_dim", "intermediate_size", "vocab_size",
                     "hidden_act", "rope_theta", "rms_norm_eps", "layer_norm_eps",
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
    )
    _check_pooling([group for group in checkpoints if group])
    if assets.sentence is not None:
        for _, folder in _module_folders(assets.sentence):
            _refuse_weights(folder)
    return assets


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
                f"{path}: weights = of a module behind the backbone; expected pooling and "
                "normalisation only. Such modules cannot be merged yet."
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
        for key in ARCHITECTURE_KEYS:
            if key in own and key in config and own[key] != config[key]:
                raise CheckpointError(
                    f"{path}: config {key} = {config[key]}; expected {own[key]} as in the base. "
                    "Name the base that this checkpoint was trained from."
                )


def _config(folders: Sequence[Path]) -> dict[str, Any]:
    folder = _first_with(folders, ("config.json",))
    return read_object(folder / "config.json") if folder else {}


def copy_assets(assets: Assets, target: Path, dtype: torch.dtype) -> None:
    """Copy the files into the merged model's folder.

    Args:
        assets: what `find_assets` chose.
        target: existing folder.
        dtype: what the config shall name as the weights' dtype.
    """
    if assets.config is not None:
        config = read_object(assets.config / "config.json")
        key = "torch_dtype" if "torch_dtype" in config else "dtype"
        config[key] = str(dtype).removeprefix("torch.")
        (target / "config.json").write_text(json.dumps(config, indent=2), encoding="utf-8")
        for code in assets.config.glob("*.py"):
            shutil.copy(code, target)
    if assets.tokenizer is not None:
        _copy_present(assets.tokenizer, TOKENIZER_FILES, target)
    if assets.sentence is not None:
        _copy_sentence_files(assets.sentence, target)


def _copy_sentence_files(folder: Path, target: Path) -> None:
    modules = read_modules(folder / "modules.json")
    transformer = folder / module_path(modules[0])
    _copy_present(folder, SENTENCE_FILES[1:], target)
    _copy_present(transformer, SENTENCE_FILES[2:], target)
    # the transformer's files lie in the merged folder itself
    modules[0]["path"] = ""
    (target / "modules.json").write_text(json.dumps(modules, indent=2), encoding="utf-8")
    for path, source in _module_folders(folder):
        shutil.copytree(source, target / path)


def _copy_present(folder: Path, names: Sequence[str], target: Path) -> None:
    for name in names:
        if os.path.isfile(folder / name):
            shutil.copy(folder / name, target)
