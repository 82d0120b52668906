"""Open any checkpoint as tensors by name, slice by slice; it must not import DeepSpeed or models.

Understood are Hugging Face folders (safetensors or `.bin`, sharded or not), DeepSpeed ZeRO
checkpoints (a tag folder, a `checkpoints` folder by its `latest`, a whole run folder) and PEFT
adapters.
"""

import hashlib
import os
import zipfile
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch

from trainer.checkpoint.dense_files import DENSE_TENSORS, dense_weights
from trainer.checkpoint.json_files import module_path, read_modules, read_object
from trainer.checkpoint.lora_deltas import LoraSettings, settings_from_peft, settings_from_recipe
from trainer.checkpoint.names import (
    backbone_prefix,
    common_wrapper,
    is_optional,
    of_model,
    projection_name,
    sort_names,
)
from trainer.checkpoint.pickled_weights import map_pickled
from trainer.checkpoint.safetensors_file import header_hash, map_tensors, read_header
from trainer.checkpoint.tensors import SlicedTensor, StoredTensor, numel
from trainer.checkpoint.zero_files import is_zero_folder
from trainer.checkpoint.zero_format import latest_tag, read_manifest, read_zero
from trainer.errors import CheckpointError
from trainer.run_folder.layout import CHECKPOINTS, LATEST, RunFolder

Kind = Literal["safetensors", "zero", "peft"]
INDEX = "model.safetensors.index.json"
SINGLE = "model.safetensors"
PICKLED_INDEX = "pytorch_model.bin.index.json"
PICKLED = "pytorch_model.bin"
ADAPTER_CONFIG = "adapter_config.json"
ADAPTER_WEIGHTS = "adapter_model.safetensors"
PICKLED_ADAPTER = "adapter_model.bin"
ADAPTER_BASE = "base.json"
"""What the trainer's export of an adapter says of its base, as `base` of a manifest."""
HASH_CHUNK_BYTES = 8 << 20
SAMPLE_ELEMENTS = 256


@dataclass(frozen=True, kw_only=True)
class OpenedCheckpoint:
    """An opened checkpoint; nothing but headers has been read."""

    path: Path
    """Folder that holds the weights."""
    kind: Kind
    """What it is."""
    plain: dict[str, SlicedTensor]
    """Whole tensors by name, wrappers taken off."""
    adapters: dict[str, dict[str, SlicedTensor]]
    """Parts of adapters by module; empty for full checkpoints."""
    lora: LoraSettings | None
    """How the adapters apply; given where there are any."""
    tied: frozenset[str]
    """Names in `plain` that only repeat another's storage; a model is saved without them."""
    files: tuple[Path, ...]
    """Files whose tensors these are."""
    assets: tuple[Path, ...]
    """Folders that may hold its config, tokenizer and sentence-transformers files, best first."""
    manifest: dict[str, Any] | None
    """The trainer's manifest, where there is one."""


def open_checkpoint(path: Path) -> OpenedCheckpoint:
    """Open a checkpoint of any understood kind.

    Args:
        path: a folder.

    Returns:
        Its tensors, mapped.

    Raises:
        CheckpointError: if it is no such folder, or a file in it is missing, damaged or unsafe.
    """
    folder = path.expanduser()
    if not folder.is_dir():
        raise CheckpointError(f"{path}: folder = absent; expected a checkpoint. Check the path.")
    checkpoints = RunFolder(folder).checkpoints
    if (checkpoints / LATEST).is_file():
        return _open_zero(latest_tag(checkpoints))
    if (folder / LATEST).is_file():
        return _open_zero(latest_tag(folder))
    if is_zero_folder(folder):
        return _open_zero(folder)
    if (folder / ADAPTER_CONFIG).is_file():
        return _open_peft(folder)
    return _open_safetensors(folder)


def _open_zero(folder: Path) -> OpenedCheckpoint:
    manifest = read_manifest(folder)
    if manifest is not None:
        _refuse_unlisted(folder, manifest)
    zero = read_zero(folder)
    run = folder.parent.parent if folder.parent.name == CHECKPOINTS else folder
    assets = (folder / "embedder", RunFolder(run).model)
    replicas = {alias: zero.tensors[name] for alias, name in zero.aliases.items()}
    everything = of_model({**zero.tensors, **replicas})
    named = sort_names(folder, everything)
    wrapper = common_wrapper(everything)
    return OpenedCheckpoint(
        path=folder,
        kind="zero",
        plain={**named.plain},
        adapters={name: dict(parts) for name, parts in named.adapters.items()},
        lora=_zero_lora(folder, assets, manifest) if named.adapters else None,
        tied=frozenset(projection_name(alias) or alias.removeprefix(wrapper) for alias in replicas),
        files=zero.files,
        assets=tuple(filter(Path.is_dir, assets)),
        manifest=manifest,
    )


def _refuse_unlisted(folder: Path, manifest: Mapping[str, Any]) -> None:
    stale = sorted(p.name for p in folder.glob("*.pt") if p.name not in manifest["files"])
    if stale:
        raise CheckpointError(
            f"{folder}: {', '.join(stale)} = not in manifest.json; expected only files of this "
            "saving. Move the stale files away."
        )


def _zero_lora(
    folder: Path, assets: Iterable[Path], manifest: Mapping[str, Any] | None
) -> LoraSettings:
    for place in (folder, *assets):
        if (place / ADAPTER_CONFIG).is_file():
            return settings_from_peft(place / ADAPTER_CONFIG)
    recipe = (manifest or {}).get("recipe") or {}
    model = recipe.get("model")
    lora = model.get("lora") if isinstance(model, dict) else None
    if not isinstance(lora, dict):
        raise CheckpointError(
            f"{folder}: adapters without settings; expected manifest.json or embedder/"
            f"{ADAPTER_CONFIG}, which give rank and alpha. Copy peft's {ADAPTER_CONFIG} there."
        )
    return settings_from_recipe(folder / "manifest.json", lora)


def _open_peft(folder: Path) -> OpenedCheckpoint:
    found = [folder / name for name in (ADAPTER_WEIGHTS, PICKLED_ADAPTER)]
    weights = next(filter(Path.is_file, found), found[0])
    if not weights.is_file():
        raise CheckpointError(
            f"{folder}: {ADAPTER_WEIGHTS} = absent; expected it beside {ADAPTER_CONFIG}. Save the "
            "adapter with safetensors."
        )
    named = sort_names(folder, _tensors_of(weights) | _dense(folder))
    return OpenedCheckpoint(
        path=folder,
        kind="peft",
        plain={**named.plain},
        adapters={name: dict(parts) for name, parts in named.adapters.items()},
        lora=settings_from_peft(folder / ADAPTER_CONFIG),
        tied=frozenset(),
        files=(weights, *dense_weights(folder)),
        assets=(folder,),
        manifest=None,
    )


def _open_safetensors(folder: Path) -> OpenedCheckpoint:
    place = _weights_place(folder)
    files = _weight_files(place)
    tensors: dict[str, SlicedTensor] = {}
    for file in files:
        for name, tensor in _tensors_of(file).items():
            if name in tensors:
                raise CheckpointError(
                    f"{file}: {name} = a second time; expected each tensor in one shard. Save the "
                    "model again."
                )
            tensors[name] = tensor
    index = place / (INDEX if files[0].suffix == ".safetensors" else PICKLED_INDEX)
    if index.is_file():
        _check_index(index, tensors)
    named = sort_names(folder, tensors | _dense(folder))
    if named.adapters:
        raise CheckpointError(
            f"{folder}: {next(iter(named.adapters))} = a weight with an adapter beside it; "
            "expected whole weights, or an adapter with its config. Save it as one of the two."
        )
    return OpenedCheckpoint(
        path=folder,
        kind="safetensors",
        plain=named.plain,
        adapters={},
        lora=None,
        tied=frozenset(),
        files=(*files, *dense_weights(folder)),
        assets=(folder, place) if place != folder else (folder,),
        manifest=None,
    )


def _tensors_of(file: Path) -> dict[str, StoredTensor]:
    """The tensors of a file of weights, mapped."""
    if file.suffix == ".safetensors":
        return map_tensors(file, read_header(file))
    return map_pickled(file)


def _dense(folder: Path) -> dict[str, SlicedTensor]:
    """Tensors of the one dense layer behind the pooling, under the trainer's names."""
    return {
        DENSE_TENSORS + name: tensor
        for file in dense_weights(folder)
        for name, tensor in map_tensors(file, read_header(file)).items()
    }


def _weights_place(folder: Path) -> Path:
    """The folder itself, or the transformer's subfolder of older sentence-transformers models."""
    modules = folder / "modules.json"
    names = (SINGLE, INDEX, PICKLED, PICKLED_INDEX)
    if not modules.is_file() or any((folder / name).is_file() for name in names):
        return folder
    path = module_path(read_modules(modules)[0])
    # not Path.is_dir, which raises at a name that no file system takes
    return folder / path if os.path.isdir(folder / path) else folder


def _weight_files(folder: Path) -> tuple[Path, ...]:
    single, index = folder / SINGLE, folder / INDEX
    if single.is_file() and index.is_file():
        raise CheckpointError(
            f"{folder}: weights = {SINGLE} and {INDEX}; expected one of them. Move the stale one "
            "away."
        )
    if not single.is_file() and not index.is_file():
        single, index = folder / PICKLED, folder / PICKLED_INDEX
    if single.is_file():
        return (single,)
    if not index.is_file():
        raise CheckpointError(
            f"{folder}: weights = none; expected {SINGLE} or {PICKLED}, an index of several, "
            f"{ADAPTER_CONFIG} or DeepSpeed files. Convert other formats with save_pretrained."
        )
    names = sorted(set(_weight_map(index).values()))
    for name in names:
        if Path(name).name != name or not os.path.isfile(folder / name):
            raise CheckpointError(
                f"{index}: weight_map names {name} = absent; expected a file beside it. Copy the "
                "missing shard."
            )
    return tuple(folder / name for name in names)


def _weight_map(index: Path) -> dict[str, str]:
    weight_map = read_object(index).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise CheckpointError(
            f"{index}: weight_map = {weight_map!r:.60}; expected tensor names and files. Save the "
            "model again."
        )
    return {str(name): str(file) for name, file in weight_map.items()}


def _check_index(index: Path, tensors: Mapping[str, SlicedTensor]) -> None:
    odd = sorted(set(_weight_map(index)) ^ set(tensors))
    if odd:
        raise CheckpointError(
            f"{index}: weight_map and shards differ in {', '.join(odd[:5])}; expected the same "
            "names. The shards are damaged or of different savings; copy them again."
        )


def identity(source: OpenedCheckpoint, *, hash_files: bool) -> dict[str, Any]:
    """What identifies this checkpoint: sizes, a hash of its headers, its manifest's hash.

    Args:
        source: an opened checkpoint.
        hash_files: also read every file whole for its sha256.

    Returns:
        A dict for JSON.

    Raises:
        CheckpointError: if a file's hash is not that of the manifest.
    """
    files: dict[str, dict[str, Any]] = {}
    for file in source.files:
        # several modules may each have a file of the same name
        name = file.relative_to(source.path).as_posix()
        files[name] = {"size": file.stat().st_size, "header_sha256": _header_hash(file)}
        if hash_files:
            files[name]["sha256"] = _checked_hash(source, file)
    manifest = source.path / "manifest.json"
    return {
        "path": str(source.path.resolve()),
        "kind": source.kind,
        "files": files,
        "manifest_sha256": file_hash(manifest) if source.manifest is not None else None,
    }


def _checked_hash(source: OpenedCheckpoint, file: Path) -> str:
    found = file_hash(file)
    recorded = (source.manifest or {"files": {}})["files"].get(file.name, {}).get("sha256", found)
    if recorded != found:
        raise CheckpointError(
            f"{file}: sha256 = {found}; expected {recorded} as in manifest.json. Copy the "
            "checkpoint again."
        )
    return found


def _header_hash(file: Path) -> str:
    """Hash of a safetensors header, or of a zip's directory (names, sizes and CRC of records)."""
    if file.suffix == ".safetensors":
        return header_hash(file)
    with zipfile.ZipFile(file) as archive:
        records = [(info.filename, info.file_size, info.CRC) for info in archive.infolist()]
    return hashlib.sha256(repr(records).encode()).hexdigest()


def file_hash(path: Path) -> str:
    """sha256 of a file's bytes, hexadecimal."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(HASH_CHUNK_BYTES):
            digest.update(chunk)
    return digest.hexdigest()


def fingerprint(tensors: Mapping[str, SlicedTensor]) -> str:
    """A cheap hash of a model's weights: name, shape and first elements of every tensor.

    Two models of one architecture differ in it unless they share the beginnings of all tensors;
    reading it touches a kilobyte per tensor.

    Args:
        tensors: by name; order does not matter.

    Returns:
        sha256, hexadecimal; the same for equal values in float32 and wider.
    """
    digest = hashlib.sha256()
    for name in sorted(tensors):
        tensor = tensors[name]
        sample = torch.empty(min(SAMPLE_ELEMENTS, numel(tensor.shape)), dtype=torch.float64)
        tensor.open()(0, sample)
        digest.update(f"{name} {tuple(tensor.shape)} ".encode())
        digest.update(sample.numpy().tobytes())
    return digest.hexdigest()


def base_fingerprint(source: OpenedCheckpoint) -> str:
    """Fingerprint of a pre-trained model's backbone, whatever head or buffers it is saved with.

    A checkpoint that records it under `base.fingerprint` of its manifest is merged with that base
    only.

    Args:
        source: the opened model.
    """
    prefix = backbone_prefix(source.plain)
    bare = {
        name.removeprefix(prefix): tensor
        for name, tensor in source.plain.items()
        if projection_name(name) is None
    }
    return fingerprint({name: one for name, one in bare.items() if not is_optional(name, one)})
