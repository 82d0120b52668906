"""Load a checkpoint of another number of ranks, or another ZeRO configuration, exactly.

Every rank reads the slices that are now its own straight from the old ranks' files, which are
mapped into memory: masters and moments by parameter name, put where the new partition has them,
then handed to DeepSpeed's own loading of an optimizer state. No disk and no conversion is needed.

Why not DeepSpeed's universal checkpoint, which exists for this. Measured with 0.19.8 on a model of
two parameter groups, three AdamW steps before and three after, number of ranks unchanged:

- stage 3 gives all groups the settings of the first one, so that norms and biases decay as
  matrices do, and all groups share one step tensor, which each then advances: it said 9 after 6
  steps, and weights were off by 4e-3 (stage3.py, load_hp_checkpoint_state_from_checkpoint_dir);
- SGD cannot be converted (`KeyError` in ds_to_universal.py, which asks for Adam's moments);
- conversion by one process holds whole shards in memory and fills the disk with a second copy,
  while the other ranks wait in a collective that may time out;
- buffers are not restored, and everything is unpickled without restriction.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import deepspeed
import torch
from torch import Tensor

from trainer.checkpoint.tensors import StoredTensor, numel
from trainer.checkpoint.zero_format import ZeroProgress, read_progress, read_zero
from trainer.distributed.agree import on_all_ranks
from trainer.distributed.group import Ranks
from trainer.errors import CheckpointError


@dataclass(frozen=True)
class _Place:
    """A piece of a parameter in this rank's partition."""

    name: str
    """Of the parameter."""
    group: int
    """Index of the flat tensor."""
    offset: int
    """First element in the flat tensor."""
    start: int
    """First element in the parameter."""
    count: int
    """Elements."""


def load_repartitioned(engine: deepspeed.DeepSpeedEngine, folder: Path, ranks: Ranks) -> int:
    """Restore parameters, optimizer, buffers and counters on every rank.

    Args:
        engine: fresh, of any number of ranks and ZeRO stage.
        folder: a tag folder, of any number of ranks and ZeRO stage, all files visible.
        ranks: this process.

    Returns:
        Steps done.

    Raises:
        CheckpointError: files are missing or damaged, or of another model or optimizer.
    Collective: yes.
    """
    # checked everywhere before any rank enters DeepSpeed's collectives
    on_all_ranks(lambda: _check_same_run(engine, folder), ranks)
    tensors, progress = read_zero(folder).tensors, read_progress(folder)
    optimizer, stage3 = engine.optimizer, engine.zero_optimization_stage() == 3
    if stage3:
        optimizer.checkpoint_event_prologue()
    own = optimizer.state_dict()
    flats = own["fp32_flat_groups" if stage3 else "single_partition_of_fp32_groups"]
    places = list(_sliced_places(engine) if stage3 else _joined_places(engine))
    _fill(flats, places, tensors)
    base = own["optimizer_state_dict" if stage3 else "base_optimizer_state"]
    base["state"] = _base_state(optimizer.optimizer, flats, places, progress, stage3=stage3)
    world_size = engine.seq_dp_world_size
    optimizer.load_state_dict([own] * world_size, load_from_fp32_weights=True)
    if stage3:
        optimizer.checkpoint_event_epilogue()
    else:
        optimizer.update_lp_params()
    _restore_buffers(engine, tensors)
    engine.global_steps = int(progress.counters["global_steps"])
    engine.skipped_steps = int(progress.counters["skipped_steps"])
    return int(progress.counters["steps_done"])


def _check_same_run(engine: deepspeed.DeepSpeedEngine, folder: Path) -> None:
    """Refuse a checkpoint of other parameters or another optimizer."""
    _check_same_parameters(engine, read_zero(folder).tensors, folder)
    _check_same_optimizer(engine, read_progress(folder), folder)


def _check_same_parameters(
    engine: deepspeed.DeepSpeedEngine, tensors: Mapping[str, StoredTensor], folder: Path
) -> None:
    for group in engine._get_zero_param_shapes():
        for name, shape in group.items():
            found = tensors[name].shape if name in tensors else None
            if found != tuple(shape):
                raise CheckpointError(
                    f"{folder}: {name} = {found}; expected {tuple(shape)}. It is a checkpoint of "
                    f"another model; start anew in another output_dir."
                )


def _check_same_optimizer(
    engine: deepspeed.DeepSpeedEngine, progress: ZeroProgress, folder: Path
) -> None:
    adam = not isinstance(engine.optimizer.optimizer, torch.optim.SGD)
    wanted = {"exp_avg", "exp_avg_sq"} if adam else set()
    if set(progress.moments) != wanted:
        raise CheckpointError(
            f"{folder}: optimizer state = {sorted(progress.moments)}; expected {sorted(wanted)}. "
            f"It is of another optimizer; undo the change of train.optimizer."
        )
    if engine.zero_nvme_offload_optimizer():
        raise CheckpointError(
            f"{folder}: optimizer = on NVMe; expected the ranks and the ds_config of the saving "
            f"run there. Use them, or offload to the CPU."
        )


def _sliced_places(engine: deepspeed.DeepSpeedEngine) -> Iterator[_Place]:
    """Stage 3: this rank has one slice of every parameter, in the order of its groups."""
    rank, world_size = engine.global_rank, engine.seq_dp_world_size
    for group, shapes in enumerate(engine._get_zero_param_shapes()):
        offset = 0
        for name, shape in shapes.items():
            width = -(-numel(shape) // world_size)
            start = min(rank * width, numel(shape))
            yield _Place(name, group, offset, start, min(width, numel(shape) - start))
            offset += width


def _joined_places(engine: deepspeed.DeepSpeedEngine) -> Iterator[_Place]:
    """Stages 1 and 2: DeepSpeed knows which part of a parameter lies in this rank's partition."""
    for name, parameter in engine.module.named_parameters():
        mapping = getattr(parameter, "_hp_mapping", None)
        if mapping is not None:
            flat, own = mapping.hp_fragment_address, mapping.lp_fragment_address
            yield _Place(name, mapping.param_group_index, flat.start, own.start, own.numel)


def _fill(flats: list[Tensor], places: list[_Place], tensors: Mapping[str, StoredTensor]) -> None:
    """Copy this rank's pieces into flat tensors; what is padding becomes zero."""
    for flat in flats:
        flat.data.zero_()
    for place in places:
        piece = flats[place.group].data[place.offset : place.offset + place.count]
        tensors[place.name].open()(place.start, piece)


def _base_state(
    optimizer: torch.optim.Optimizer,
    flats: list[Tensor],
    places: list[_Place],
    progress: ZeroProgress,
    *,
    stage3: bool,
) -> dict[int, dict[str, Any]]:
    """The state of the inner optimizer, which has one flat parameter per group."""
    # the optimizer of stage 3 holds its parameters only while it steps; they are not padded
    sizes = [flat.numel() for flat in flats] if stage3 else [
        group["params"][0].numel() for group in optimizer.param_groups
    ]  # fmt: skip
    state: dict[int, dict[str, Any]] = {group: {} for group in range(len(flats))}
    for key, moments in progress.moments.items():
        filled = [torch.zeros(size, device=flat.device) for size, flat in zip(sizes, flats,
                  strict=True)]  # fmt: skip
        _fill(filled, places, moments)
        for group, tensor in enumerate(filled):
            state[group][key] = tensor
    counts_in_python = not isinstance(optimizer, torch.optim.AdamW)
    for key, value in progress.scalars.items():
        for entry in state.values():
            # each its own tensor: the optimizer advances them in place
            entry[key] = int(value) if counts_in_python else torch.tensor(value)
    return {group: entry for group, entry in state.items() if entry}


def _restore_buffers(
    engine: deepspeed.DeepSpeedEngine, tensors: Mapping[str, StoredTensor]
) -> None:
    for name, buffer in engine.module.named_buffers():
        if name in tensors:
            tensors[name].open()(0, buffer.data.view(-1))
