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
from torch import Tensor

from trainer.checkpoint.deepspeed_files import CheckpointFiles
from trainer.checkpoint.manifest import (
    BaseIdentity,
    FileEntry,
    Manifest,
    digests,
    files_of,
    write_manifest,
)
from trainer.checkpoint.mined import copy_mined
from trainer.checkpoint.replace import replace_folder, restore_replaced
from trainer.checkpoint.storage import Storage
from trainer.checkpoint.tags import step_of, tag_of, tags_in
from trainer.checkpoint.zero_format import read_zero
from trainer.data.stretch import Stretch
from trainer.distributed.agree import on_all_ranks
from trainer.distributed.group import Ranks
from trainer.errors import CheckpointError
from trainer.run_folder.layout import BEST, LATEST, MINED

PARTIAL = ".partial-"
ROOM_FACTOR = 1.02
"""Free disk asked for, over the bytes of the tensors to write."""
ROOM_BYTES = 1 << 20
"""And more for headers, manifest and scripts."""


class SaveError(CheckpointError):
    """A checkpoint could not be written; the older ones are whole."""

    exit_code = 1


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
    """Writes config, tokenizer and pooling files into a folder; called on its keeper."""
    base: BaseIdentity | None = None
    """The frozen base of an adapter run, which is not saved."""
    stretches: tuple[Stretch, ...] = ()
    """Those that the steps done lie in."""
    mined: Path | None = None
    """Folder of the negatives that the next step draws from, of which the checkpoint gets a copy if
    it is there."""


def save_checkpoint(
    engine: deepspeed.DeepSpeedEngine,
    folder: Path,
    request: SaveRequest,
    storage: Storage,
    *,
    keep: int,
) -> Path:
    """Save parameters, optimizer and identity; delete all but the newest `keep`.

    Args:
        engine: at a step's end.
        folder: `checkpoints/` of the run.
        request: see its fields.
        storage: of that folder.
        keep: checkpoints that remain.

    Returns:
        The checkpoint's folder.

    Raises:
        SaveError: on all ranks, when one could not write its part or a trained parameter was not
            saved whole; the older checkpoints are as before and nothing of the new one is left.
    Collective: yes.
    """
    ranks, partial = storage.ranks, folder / (PARTIAL + tag_of(request.step))
    try:
        on_all_ranks(lambda: _clear(folder) if storage.is_keeper else None, ranks)
        _check_room(engine, folder, storage)
        on_all_ranks(lambda: _begin(partial, request) if storage.is_keeper else None, ranks)
        _write(engine, partial, request, ranks)
        entries = _hash_in_shares(partial, storage)
        trained = _trained_shapes(engine)
        on_all_ranks(lambda: _complete(partial, request, entries, trained, storage), ranks)
    except CheckpointError as error:
        if storage.is_keeper:
            shutil.rmtree(partial, ignore_errors=True)
        raise SaveError(f"checkpoint of step {request.step} was not saved: {error}") from error
    # only now is the new one complete on the storage of every host
    on_all_ranks(
        lambda: _prune_to(folder, request.step, keep) if storage.is_keeper else None, ranks
    )
    return folder / tag_of(request.step)


def _clear(folder: Path) -> None:
    """Remove what was cut short before: it takes the room that is checked next."""
    restore_replaced(folder)
    for leftover in folder.glob(f"{PARTIAL}*"):
        shutil.rmtree(leftover)
    folder.mkdir(parents=True, exist_ok=True)


def _begin(partial: Path, request: SaveRequest) -> None:
    """Write what does not come from DeepSpeed."""
    (partial / "embedder").mkdir(parents=True)
    request.write_embedder(partial / "embedder")
    if request.mined is not None:
        copy_mined(request.mined, partial / MINED)


def _check_room(engine: deepspeed.DeepSpeedEngine, folder: Path, storage: Storage) -> None:
    """Refuse to begin what would not fit on a disk. Collective: yes."""
    sizes: list[Any] = [None] * storage.ranks.world_size
    dist.all_gather_object(sizes, _bytes_to_write(engine))
    needed = int(ROOM_FACTOR * sum(sizes[rank] for rank in storage.members)) + ROOM_BYTES

    def check() -> None:
        free = shutil.disk_usage(folder).free
        if storage.is_keeper and free < needed:
            raise CheckpointError(
                f"{folder}: free disk = {free / 1e9:.3f} GB; expected {needed / 1e9:.3f} GB for a "
                f"checkpoint. Make room, or lower checkpoint.keep."
            )

    on_all_ranks(check, storage.ranks)


def _bytes_to_write(engine: deepspeed.DeepSpeedEngine) -> int:
    """Of this rank's part of a checkpoint."""
    module = 0
    if engine.save_non_zero_checkpoint and engine.zero_optimization_stage() < 3:
        module = sum(p.numel() * p.element_size() for p in engine.module.parameters()
                     if p.requires_grad or not _has_adapters(engine))  # fmt: skip
    return module + _tensor_bytes(engine.optimizer.state_dict())


def _tensor_bytes(content: object) -> int:
    """Of all tensors in nested containers."""
    if isinstance(content, Tensor):
        return content.numel() * content.element_size()
    if isinstance(content, Mapping):
        return sum(map(_tensor_bytes, content.values()))
    return sum(map(_tensor_bytes, content)) if isinstance(content, list | tuple) else 0


def _write(
    engine: deepspeed.DeepSpeedEngine, partial: Path, request: SaveRequest, ranks: Ranks
) -> None:
    """DeepSpeed's part, its files under a temporary tag.

    Raises:
        CheckpointError: on all ranks, when a disk refused on one.
    Collective: yes.
    """
    files = CheckpointFiles()
    engine.checkpoint_engine = files
    try:
        engine.save_checkpoint(
            str(partial.parent),
            tag=partial.name,
            client_state={"steps_done": request.step},
            save_latest=False,
            exclude_frozen_parameters=_has_adapters(engine),
        )
    except OSError as error:
        # the one write that does not pass through `files` is the copy of DeepSpeed's scripts, on
        # the first rank; the others are past it, in what follows there
        files.failure = files.failure or error
        if engine.zero_optimization_stage() == 3:
            engine.optimizer.checkpoint_event_epilogue()
        dist.barrier()

    def point() -> None:
        if files.failure is not None:
            raise files.failure

    on_all_ranks(point, ranks)


def _has_adapters(engine: deepspeed.DeepSpeedEngine) -> bool:
    """Whether some parameters are frozen because adapters are trained in their place."""
    return hasattr(engine.module.backbone, "peft_config")


def _hash_in_shares(folder: Path, storage: Storage) -> dict[str, FileEntry]:
    """Entries of all files on this rank's storage; each rank that sees them hashes its share."""
    shares = on_all_ranks(lambda: digests(folder, storage.share(files_of(folder))), storage.ranks)
    return {name: entry for rank in storage.members for name, entry in shares[rank].items()}


def _complete(
    partial: Path,
    request: SaveRequest,
    entries: Mapping[str, FileEntry],
    trained: Mapping[str, tuple[int, ...]],
    storage: Storage,
) -> None:
    """Check what was written, add the manifest and give the checkpoint its name."""
    if not storage.is_keeper:
        return
    if storage.is_shared:
        check_saved(partial, trained)
    manifest = Manifest(
        step=request.step,
        world_size=storage.ranks.world_size,
        recipe=request.recipe,
        sources=request.sources,
        versions=request.versions,
        files=entries,
        base=request.base,
        stretches=request.stretches,
    )
    write_manifest(partial, manifest)
    _publish(partial.parent, partial.name, tag_of(request.step))


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
    # a folder of that name may be the only valid checkpoint: it goes after this one has its name
    replace_folder(folder / partial, folder / tag)
    _point(folder, LATEST, tag)


def _point(folder: Path, name: str, tag: str) -> None:
    """Let a file of one line name a checkpoint; on disk when this returns."""
    pointer = folder / f".{name}"
    pointer.write_text(tag, encoding="utf-8")
    _sync(pointer)
    pointer.replace(folder / name)
    _sync(folder)


def _sync(path: Path) -> None:
    """Wait until a file or folder is on disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _prune_to(folder: Path, step: int, keep: int) -> None:
    """Delete what no run will continue: newer than the newest valid one, or too old."""
    for tag in tags_in(folder):
        if step_of(tag) > step:
            _delete(folder, tag)
    prune(folder, keep=keep)


def prune(folder: Path, *, keep: int) -> None:
    """Delete all checkpoints but the newest `keep` and the one marked as best."""
    best = best_tag(folder)
    for tag in tags_in(folder)[keep:]:
        if tag != best:
            _delete(folder, tag)


def mark_best(folder: Path, tag: str) -> None:
    """Point `best` at a checkpoint, which is then kept until another one is marked."""
    _point(folder, BEST, tag)


def unmark_best(folder: Path) -> None:
    """Remove the mark; the checkpoint is then kept as long as others of its age."""
    (folder / BEST).unlink(missing_ok=True)


def best_tag(folder: Path) -> str | None:
    """Name of the checkpoint marked as best, there or not."""
    pointer = folder / BEST
    return pointer.read_text(encoding="utf-8") if pointer.is_file() else None


def _delete(folder: Path, tag: str) -> None:
    """Remove a checkpoint."""
    # renamed first: a deletion that is cut short leaves nothing that looks complete
    doomed = folder / f"{PARTIAL}{tag}"
    shutil.rmtree(doomed, ignore_errors=True)
    (folder / tag).rename(doomed)
    shutil.rmtree(doomed, ignore_errors=True)
