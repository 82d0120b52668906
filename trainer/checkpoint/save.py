"""Write a checkpoint so that it is either complete or not there.

DeepSpeed writes its own files under a temporary name; the manifest is added, the folder renamed and
`latest` moved, in this order.
"""

import os
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import deepspeed
import torch.distributed as dist

from trainer.checkpoint.agree import on_first_rank
from trainer.checkpoint.manifest import (
    BaseIdentity,
    FileEntry,
    Manifest,
    digests,
    files_of,
    write_manifest,
)
from trainer.checkpoint.zero_format import read_zero
from trainer.engine.ranks import Ranks
from trainer.errors import CheckpointError

LATEST = "latest"
PREFIX = "step-"
PARTIAL = ".partial-"


@dataclass(frozen=True, kw_only=True)
class SaveRequest:
    """What goes into a checkpoint besides DeepSpeed's own state."""

    step: int
    """Steps done."""
    recipe: dict[str, Any]
    """The resolved recipe, plain values."""
    sources: dict[str, str]
    """Fingerprint of each source."""
    versions: dict[str, str]
    """Of this project and its libraries."""
    write_embedder: Callable[[Path], None]
    """Writes config, tokenizer and pooling files into a folder; called on the first rank."""
    base: BaseIdentity | None = None
    """The frozen base of an adapter run, which is not saved."""


def tag_of(step: int) -> str:
    """Folder name of a checkpoint."""
    return f"{PREFIX}{step}"


def step_of(tag: str) -> int:
    """Steps done by a checkpoint's folder name."""
    return int(tag.removeprefix(PREFIX))


def save_checkpoint(
    engine: deepspeed.DeepSpeedEngine,
    folder: Path,
    request: SaveRequest,
    ranks: Ranks,
    *,
    keep: int,
) -> Path:
    """Save parameters, optimizer and identity; delete all but the newest `keep`.

    Args:
        engine: at a step's end.
        folder: `checkpoints/` of the run.
        request: see its fields.
        ranks: this process.
        keep: checkpoints that remain.

    Returns:
        The checkpoint's folder.

    Raises:
        CheckpointError: what was written lacks a trained parameter.
    Collective: yes.
    """
    tag, partial = tag_of(request.step), PARTIAL + tag_of(request.step)
    if ranks.is_first:
        folder.mkdir(parents=True, exist_ok=True)
        shutil.rmtree(folder / partial, ignore_errors=True)
        request.write_embedder(_made(folder / partial / "embedder"))
    dist.barrier()
    engine.save_checkpoint(
        str(folder),
        tag=partial,
        client_state={"steps_done": request.step},
        save_latest=False,
        exclude_frozen_parameters=_has_adapters(engine),
    )
    dist.barrier()
    entries = _hash_in_shares(folder / partial, ranks)
    trained = _trained_shapes(engine)
    on_first_rank(lambda: check_saved(folder / partial, trained), ranks)
    if ranks.is_first:
        manifest = Manifest(
            step=request.step,
            world_size=ranks.world_size,
            recipe=request.recipe,
            sources=request.sources,
            versions=request.versions,
            files=entries,
            base=request.base,
        )
        write_manifest(folder / partial, manifest)
        _publish(folder, partial, tag)
        prune(folder, keep=keep)
    dist.barrier()
    return folder / tag


def _made(folder: Path) -> Path:
    """The folder, created."""
    folder.mkdir(parents=True)
    return folder


def _has_adapters(engine: deepspeed.DeepSpeedEngine) -> bool:
    """Whether some parameters are frozen because adapters are trained in their place."""
    return hasattr(engine.module.backbone, "peft_config")


def _hash_in_shares(folder: Path, ranks: Ranks) -> dict[str, FileEntry]:
    """Entries of all files; each rank hashes its share."""
    names = files_of(folder)[ranks.rank :: ranks.world_size]
    shares: list[Any] = [None] * ranks.world_size
    dist.all_gather_object(shares, digests(folder, names))
    return {name: entry for share in shares for name, entry in share.items()}


def _trained_shapes(engine: deepspeed.DeepSpeedEngine) -> dict[str, tuple[int, ...]]:
    """Full shapes of the trained parameters by name."""
    return {
        name: tuple(getattr(parameter, "ds_shape", parameter.shape))
        for name, parameter in engine.module.named_parameters()
        if parameter.requires_grad
    }


def check_saved(folder: Path, trained: Mapping[str, tuple[int, ...]]) -> None:
    """Reopen DeepSpeed's files and look for every trained parameter in its full shape.

    Args:
        folder: a tag folder.
        trained: full shapes by the module's names.

    Raises:
        CheckpointError: a parameter is missing, empty or of another shape.
    """
    found = {name: tensor.shape for name, tensor in read_zero(folder).tensors.items()}
    wrong = [name for name, shape in trained.items() if found.get(name) != shape]
    if wrong:
        raise CheckpointError(
            f"{folder}: {wrong[0]} = {found.get(wrong[0])}; expected {trained[wrong[0]]}. "
            f"{len(wrong)} of {len(trained)} trained parameters were not saved whole."
        )


def _publish(folder: Path, partial: str, tag: str) -> None:
    """Give a complete checkpoint its name, then point `latest` at it."""
    for path in (folder / partial).rglob("*"):
        _sync(path)
    shutil.rmtree(folder / tag, ignore_errors=True)
    (folder / partial).rename(folder / tag)
    pointer = folder / f".{LATEST}"
    pointer.write_text(tag, encoding="utf-8")
    _sync(pointer)
    pointer.replace(folder / LATEST)
    _sync(folder)


def _sync(path: Path) -> None:
    """Wait until a file or folder is on disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def tags_in(folder: Path) -> list[str]:
    """Names of the checkpoints in a folder, newest first."""
    found = [p.name for p in folder.glob(f"{PREFIX}*") if p.name.removeprefix(PREFIX).isdecimal()]
    return sorted(found, key=step_of, reverse=True)


def prune(folder: Path, *, keep: int) -> None:
    """Delete all checkpoints but the newest `keep`."""
    for tag in tags_in(folder)[keep:]:
        # renamed first: a deletion that is cut short leaves nothing that looks complete
        doomed = folder / f"{PARTIAL}{tag}"
        shutil.rmtree(doomed, ignore_errors=True)
        (folder / tag).rename(doomed)
        shutil.rmtree(doomed, ignore_errors=True)
