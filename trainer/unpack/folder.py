"""Write a transformers folder from a GGUF file, whole or not at all.

The folder is made beside its place, under a name that looks unfinished, and renamed at the end.
What a kill leaves there is removed by the next start.
"""

import fcntl
import hashlib
import logging
import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import yaml
from torch import Tensor
from tqdm import tqdm
from transformers import AutoTokenizer

from trainer.checkpoint.json_files import read_object, save_tokenizer, write_json
from trainer.checkpoint.open import INDEX, SINGLE
from trainer.checkpoint.safetensors_file import encode_header
from trainer.checkpoint.tensors import numel
from trainer.errors import CheckpointError
from trainer.unpack.gguf_file import (
    MALFORMED,
    GgufFile,
    load_config,
    open_gguf,
    unread_scaling,
    unreadable,
)
from trainer.unpack.gguf_tensors import Layout, Target, plan_layout, tensors_of

logger = logging.getLogger(__name__)

SHARD_BYTES = 4 * 2**30
"""A weight file takes no more, unless one tensor does."""
OTHER_BYTES = 2**26
"""Room for config and tokenizer."""
PROVENANCE = "gguf_source.json"
"""Says which file a folder was made from."""
CARD = "README.md"
TOKENIZER_CONFIG = "tokenizer_config.json"
LEFTOVERS = ("is_local", "local_files_only")
"""What transformers writes there of how a tokenizer was loaded."""
CARD_KEYS = {
    "license": "general.license",
    "license_name": "general.license.name",
    "license_link": "general.license.link",
    "language": "general.languages",
}
"""What the hub reads of a card, and what a GGUF file calls it."""
SHOWN_KEYS = ("general.name", "general.architecture", "general.license", "general.license.link",
              "general.author", "general.organization", "general.source.url",
              "general.base_model.0.name", "general.base_model.0.repo_url")  # fmt: skip
"""Metadata that the provenance repeats, where the file has it."""


def unpack(
    source: Path,
    output: Path,
    *,
    dtype: torch.dtype,
    shard_bytes: int = SHARD_BYTES,
    examine: Callable[[Path], None] = lambda folder: None,
) -> None:
    """Write config, tokenizer, weights, provenance and card of a GGUF file into a new folder.

    One tensor is in memory at a time, in float32.

    Args:
        source: the file.
        output: a folder that is not there, or empty; its parent is made.
        dtype: of the weights: float32, or bfloat16, to which they are rounded.
        shard_bytes: a weight file takes tensors up to this size.
        examine: looks at the folder before it gets its name; what it raises undoes all.

    Raises:
        CheckpointError: if the file cannot be read (see `open_gguf`), the output is there already
            or is being written by another process, or the disk is full or read-only.
    """
    _refuse_output(output)
    file = open_gguf(source)
    config = load_config(file)
    layout = plan_layout(file, config)
    _warn_of_scaling(file)
    config.architectures = [layout.architecture]
    config.dtype = dtype
    with _partial(output, _num_bytes(layout.targets, dtype)) as folder:
        config.save_pretrained(folder)
        _save_tokenizer(file, folder)
        _write_weights(layout, folder, dtype, shard_bytes)
        write_json(folder / PROVENANCE, _provenance(file, dtype))
        _write_card(file, folder)
        examine(folder)


def _refuse_output(output: Path) -> None:
    if output.is_symlink() or (output.exists() and not output.is_dir()) or _has_files(output):
        raise CheckpointError(
            f"{output}: folder = present; expected none, or an empty one. Give another folder, or "
            "move this one away."
        )


def _warn_of_scaling(file: GgufFile) -> None:
    scaling = unread_scaling(file)
    if scaling is not None:
        logger.warning(
            "%s: %s is not read by transformers; expected no scaling of rotary positions. Vectors "
            "will differ from the model's own. Write rope_parameters into the config.json of the "
            "unpacked folder, as the model's publisher has them.", file.path, scaling,
        )  # fmt: skip


def _has_files(folder: Path) -> bool:
    return folder.is_dir() and any(folder.iterdir())


def _num_bytes(targets: Sequence[Target], dtype: torch.dtype) -> int:
    return sum(numel(target.shape) for target in targets) * dtype.itemsize + OTHER_BYTES


@contextmanager
def _partial(output: Path, needed_bytes: int) -> Iterator[Path]:
    """A folder beside the output, which gets its name at the end, or vanishes."""
    partial = output.with_name(f".partial-{output.name}")
    descriptor: int | None = None
    try:
        partial.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(partial, os.O_RDONLY)
        _lock(descriptor, partial)
        try:
            _empty(partial)
            _refuse_full_disk(output, needed_bytes)
            yield partial
            _sync(partial)
            partial.rename(output)
        except BaseException:
            shutil.rmtree(partial, ignore_errors=True)
            raise
    except OSError as error:
        raise CheckpointError(
            f"{output}: writing = {error.strerror or error}; expected a folder with room for the "
            "model. Free space, or give a folder on another disk."
        ) from error
    finally:
        if descriptor is not None:
            os.close(descriptor)


def _lock(descriptor: int, partial: Path) -> None:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        raise CheckpointError(
            f"{partial}: writer = another process; expected none. Wait for it, or end it."
        ) from error


def _empty(folder: Path) -> None:
    """Remove what a kill left."""
    for path in folder.iterdir():
        path.unlink()


def _refuse_full_disk(output: Path, needed_bytes: int) -> None:
    free = shutil.disk_usage(output.parent).free
    if free < needed_bytes:
        raise CheckpointError(
            f"{output}: free disk = {free:,} bytes; expected at least {needed_bytes:,}. Free "
            "space, or give a folder on another disk."
        )


def _save_tokenizer(file: GgufFile, folder: Path) -> None:
    try:
        tokenizer = AutoTokenizer.from_pretrained(file.path.parent, gguf_file=file.path.name)
    except (*MALFORMED, NotImplementedError) as error:
        raise unreadable(file, error) from error
    save_tokenizer(tokenizer, folder)
    path = folder / TOKENIZER_CONFIG
    write_json(
        path, {key: value for key, value in read_object(path).items() if key not in LEFTOVERS}
    )


def _write_weights(layout: Layout, folder: Path, dtype: torch.dtype, shard_bytes: int) -> None:
    """Write shard after shard, tensor after tensor."""
    shards = cut_shards(layout.targets, dtype, shard_bytes)
    total = sum(numel(target.shape) for target in layout.targets) * dtype.itemsize
    progress = tqdm(total=total, unit="B", unit_scale=True, desc="weights", disable=None)
    tensors = tensors_of(layout)
    with progress:
        for name, targets in shards.items():
            entries = [(target.name, dtype, target.shape) for target in targets]
            with (folder / name).open("wb") as out:
                out.write(encode_header(entries))
                for _ in targets:
                    progress.update(out.write(_bytes_of(next(tensors)[1].to(dtype))))
    if len(shards) > 1:
        weight_map = {target.name: name for name, targets in shards.items() for target in targets}
        write_json(folder / INDEX, {"metadata": {"total_size": total}, "weight_map": weight_map})


def _bytes_of(tensor: Tensor) -> memoryview:
    return tensor.contiguous().flatten().view(torch.uint8).numpy().data


def cut_shards(
    targets: Sequence[Target], dtype: torch.dtype, shard_bytes: int
) -> dict[str, list[Target]]:
    """Tensors by the name of their file, in order; a file takes `shard_bytes` at most.

    A tensor that is larger has a file of its own.
    """
    shards: list[list[Target]] = [[]]
    used = 0
    for target in targets:
        size = numel(target.shape) * dtype.itemsize
        if shards[-1] and used + size > shard_bytes:
            shards.append([])
            used = 0
        shards[-1].append(target)
        used += size
    if len(shards) == 1:
        return {SINGLE: shards[0]}
    count = len(shards)
    return {
        f"model-{number:05d}-of-{count:05d}.safetensors": shard
        for number, shard in enumerate(shards, start=1)
    }


def _provenance(file: GgufFile, dtype: torch.dtype) -> dict[str, Any]:
    """Which file a folder was made from, and what the file says of itself."""
    from importlib.metadata import version

    with file.path.open("rb") as raw:
        digest = hashlib.file_digest(raw, "sha256").hexdigest()
    return {
        "file": file.path.name,
        "bytes": file.path.stat().st_size,
        "sha256": digest,
        "types": file.types,
        "dtype": str(dtype).removeprefix("torch."),
        "metadata": {key: file.metadata[key] for key in SHOWN_KEYS if key in file.metadata},
        "made_by": {name: version(name) for name in ("transformers", "gguf")},
    }


def _write_card(file: GgufFile, folder: Path) -> None:
    """Licence and languages as the hub writes them, for cards of what is trained from here."""
    found = {name: file.metadata.get(key) for name, key in CARD_KEYS.items()}
    front = {name: value for name, value in found.items() if value}
    name = file.metadata.get("general.name", file.path.stem)
    text = f"---\n{yaml.safe_dump(front)}---\n" if front else ""
    text += f"# {name}\n\nUnpacked from `{file.path.name}`, see `{PROVENANCE}`.\n"
    (folder / CARD).write_text(text, encoding="utf-8")


def _sync(folder: Path) -> None:
    """Bring all files to disk before the folder gets its name."""
    for path in (*folder.iterdir(), folder):
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
