"""Tensors of a DeepSpeed ZeRO checkpoint by name, without DeepSpeed and without joining its shards.

Layout (measured with DeepSpeed 0.19.8). `*_model_states.pt` holds names and shapes of the trained
parameters per group, frozen weights and buffers; `*_optim_states.pt`, one per rank, holds a slice
of the float32 masters, which are the truth of a bf16 run:

- stage 3: each parameter is cut into W slices of ceil(numel / W); a group of a rank is the
  concatenation of its slices. The padding of the last slices is not zero.
- stages 1 and 2: the groups of the ranks, joined, hold the parameters one after the other, with
  padding where `param_alignment_paddings` says so and at the end.
"""

import json
import os
import re
from bisect import bisect_right
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from typing import Any

from torch import Tensor

from trainer.checkpoint.manifest import UNREADABLE
from trainer.checkpoint.tensors import StoredTensor, numel
from trainer.checkpoint.unpickle import load_pickled
from trainer.checkpoint.zero_files import MAX_NAMED, ZeroFiles, find_files
from trainer.checkpoint.zero_values import flat, gaps_of, shapes_of, states_of, stored
from trainer.errors import CheckpointError
from trainer.run_folder.layout import LATEST


@dataclass(frozen=True)
class ZeroTensors:
    """What a tag folder holds."""

    tensors: dict[str, StoredTensor]
    """Trained parameters (float32 masters), frozen ones and buffers, by the module's names."""
    aliases: dict[str, str]
    """Names that share another's storage (tied weights)."""
    files: tuple[Path, ...]
    """Files that were read, in order."""
    world_size: int
    """Ranks that wrote it."""


def read_zero(folder: Path) -> ZeroTensors:
    """Open a tag folder of ZeRO stage 1, 2 or 3.

    Args:
        folder: the folder with the `.pt` files.

    Returns:
        All its tensors, mapped.

    Raises:
        CheckpointError: if a rank's file is missing, stale, cut or unsafe, if the files disagree
            about world size, step or sizes, or if the checkpoint is of tensor, pipeline or expert
            parallelism.
    """
    files = find_files(folder)
    with states_of(folder):
        model, states = _open(files)
        tensors = dict(_trained(files, model, states))
        tensors |= _frozen(files, model)
        aliases = {str(a): str(b) for a, b in model[0].get("shared_params", {}).items()}
        untrained = _whole_in_module(model[0], partitioned=_is_stage_3(states))
        known = {*tensors, *aliases}
        tensors |= {name: one for name, one in untrained.items() if name not in known}
        for alias, name in aliases.items():
            if name not in tensors:
                raise ValueError(f"{alias} shares the storage of {name}, which is absent")
    return ZeroTensors(tensors, aliases, files.optim + files.model, len(files.optim))


@dataclass(frozen=True)
class ZeroProgress:
    """What a tag folder holds besides tensors of the model."""

    moments: dict[str, dict[str, StoredTensor]]
    """The optimizer's, as its state's key -> parameter -> float32 tensor of its shape."""
    scalars: dict[str, float]
    """The optimizer's other numbers, the same for all parameters: `step`."""
    counters: dict[str, Any]
    """The first model file's plain values: `global_steps`, `steps_done` and others."""


def read_progress(folder: Path) -> ZeroProgress:
    """Open the optimizer's state in a tag folder of ZeRO stage 1, 2 or 3.

    Args:
        folder: the folder with the `.pt` files.

    Returns:
        Its tensors, mapped, and its numbers.

    Raises:
        CheckpointError: as `read_zero`.
    """
    files = find_files(folder)
    with states_of(folder):
        return _progress(files, *_open(files))


def _progress(files: ZeroFiles, model: Sequence[Any], states: Sequence[Any]) -> ZeroProgress:
    groups = _field(files.model[0], model[0], "param_shapes")
    key = "optimizer_state_dict" if _is_stage_3(states) else "base_optimizer_state"
    by_rank = [_field(path, state, key)["state"] for path, state in zip(files.optim, states,
               strict=True)]  # fmt: skip
    first = by_rank[0].get(0, {})
    numbers = [name for name, value in first.items() if getattr(value, "ndim", 0) == 0]
    moments = {
        name: dict(_named(files, states, groups,
                          [[state[i][name] for i in range(len(groups))] for state in by_rank]))
        for name in first if name not in numbers
    }  # fmt: skip
    plain = (bool, int, float, str)
    counters = {name: value for name, value in model[0].items() if isinstance(value, plain)}
    return ZeroProgress(moments, {name: float(first[name]) for name in numbers}, counters)


def _open(files: ZeroFiles) -> tuple[list[Any], list[Any]]:
    """What the model files hold, and the optimizers' state dicts."""
    optim = [load_pickled(path) for path in files.optim]
    model = [load_pickled(path) for path in files.model]
    states = [_field(path, one, "optimizer_state_dict") for path, one in zip(files.optim, optim,
              strict=True)]  # fmt: skip
    _check_world(files, model, states)
    return model, states


def _check_world(files: ZeroFiles, model: Sequence[Any], states: Sequence[Any]) -> None:
    """Every file must be of the same run: world size and step agree, one file per rank."""
    said = {path: int(_field(path, one, "dp_world_size")) for path, one in zip(files.model, model,
            strict=True)}  # fmt: skip
    for path, state in zip(files.optim, states, strict=True):
        count = _field(path, state, "partition_count")
        said[path] = max(count) if isinstance(count, list) else int(count)
    world_size = said[files.optim[0]]
    stale = [path.name for path, size in said.items() if size != world_size]
    stale += [path.name for paths in files.by_rank for path in paths[world_size:]]
    if stale:
        raise CheckpointError(
            f"{files.optim[0].parent}: world size = {world_size}; expected files of {world_size} "
            f"ranks only, but {', '.join(sorted(set(stale)))} are of another run. Move the stale "
            "files away."
        )
    _check_ranks(files, world_size)
    _check_steps(files, model)


def _check_ranks(files: ZeroFiles, world_size: int) -> None:
    for paths in files.by_rank:
        if len(paths) < world_size:
            # a damaged file may claim more ranks than there is memory to name
            missing = range(len(paths), min(world_size, len(paths) + MAX_NAMED))
            names = [re.sub(r"rank_\d+", f"rank_{rank}", paths[0].name, count=1)
                     for rank in missing]  # fmt: skip
            raise CheckpointError(
                f"{paths[0].parent}: world size = {world_size}; expected {', '.join(names)} too. "
                "Copy the missing file, or use another checkpoint."
            )


def _check_steps(files: ZeroFiles, model: Sequence[Any]) -> None:
    steps = {p.name: one.get("global_steps") for p, one in zip(files.model, model, strict=True)}
    common = Counter(steps.values()).most_common(1)[0][0]
    odd = [f"{name} at step {step}" for name, step in steps.items() if step != common]
    if odd:
        raise CheckpointError(
            f"{files.model[0].parent}: {', '.join(odd)}; expected step {common} as in the other "
            "ranks' files. Copy the files of one saving."
        )


def _trained(
    files: ZeroFiles, model: Sequence[Any], states: Sequence[Any]
) -> Iterator[tuple[str, StoredTensor]]:
    groups = _field(files.model[0], model[0], "param_shapes")
    key = "fp32_flat_groups" if _is_stage_3(states) else "single_partition_of_fp32_groups"
    flats = [_field(path, state, key) for path, state in zip(files.optim, states, strict=True)]
    yield from _named(files, states, groups, flats)


def _named(
    files: ZeroFiles,
    states: Sequence[Any],
    groups: Sequence[Mapping[str, Sequence[int]]],
    flats: Sequence[Sequence[Tensor]],
) -> Iterator[tuple[str, StoredTensor]]:
    """Cut the flat tensors of all ranks, one list of groups each, into parameters."""
    for path, one in zip(files.optim, flats, strict=True):
        if len(one) != len(groups):
            raise _misfit(path, f"{len(one)} groups of parameters", str(len(groups)))
    for index, shapes in enumerate(map(shapes_of, groups)):
        parts = [flat(one[index]) for one in flats]
        if _is_stage_3(states):
            yield from _sliced_group(files, shapes, parts)
        else:
            paddings = states[0].get("param_alignment_paddings")
            gaps = gaps_of(paddings[index]) if paddings else [0] * len(shapes)
            yield from _joined_group(files, shapes, parts, gaps)


def _sliced_group(
    files: ZeroFiles, shapes: Mapping[str, Sequence[int]], parts: Sequence[Tensor]
) -> Iterator[tuple[str, StoredTensor]]:
    """Stage 3: slice r of every parameter lies in rank r's part."""
    offset, world_size = 0, len(parts)
    wanted = sum(-(-numel(shape) // world_size) for shape in shapes.values())
    for path, part in zip(files.optim, parts, strict=True):
        if part.numel() != wanted:
            raise _misfit(path, f"a flat group of {part.numel()} elements", str(wanted))
    for name, shape in shapes.items():
        width = -(-numel(shape) // world_size)
        slices = [part[offset : offset + width] for part in parts]
        yield name, _unpadded(shape, slices)
        offset += width


def _unpadded(shape: Sequence[int], slices: Sequence[Tensor]) -> StoredTensor:
    """Join equal slices, leaving out the padding behind the last element."""
    left, pieces = numel(shape), []
    for piece in slices:
        pieces.append(piece[: min(left, piece.numel())])
        left -= pieces[-1].numel()
    return stored(shape, pieces)


def _joined_group(
    files: ZeroFiles,
    shapes: Mapping[str, Sequence[int]],
    parts: Sequence[Tensor],
    gaps: Sequence[int],
) -> Iterator[tuple[str, StoredTensor]]:
    """Stages 1 and 2: the ranks' parts, joined, hold the parameters one after the other."""
    ends = list(accumulate(part.numel() for part in parts))
    available = ends[-1]
    wanted = sum(numel(shape) for shape in shapes.values()) + sum(gaps[:-1])
    # the end is padded to a multiple of 2 W, or of a few elements more where ranks align
    if not wanted <= available < wanted + 2 * len(parts) + sum(gaps) + 512:
        raise _misfit(files.optim[0], f"flat groups of {available} elements in all", str(wanted))
    offset = 0
    for (name, shape), gap in zip(shapes.items(), gaps, strict=True):
        yield name, stored(shape, tuple(_cut(parts, ends, offset, numel(shape))))
        offset += numel(shape) + gap


def _cut(parts: Sequence[Tensor], ends: Sequence[int], start: int, count: int) -> Iterator[Tensor]:
    """Pieces that hold elements `start` to `start + count` of the joined parts, at least one.

    Only the parts that hold some are looked at: a model has thousands of tensors, a run of ranks.
    """
    index = bisect_right(ends, start)
    if not count:
        yield parts[0][:0]
    while count:
        part = parts[index]
        offset = start - (ends[index] - part.numel())
        piece = part[offset : offset + count]
        if piece.numel():
            yield piece
        start, count, index = start + piece.numel(), count - piece.numel(), index + 1


def _frozen(files: ZeroFiles, model: Sequence[Any]) -> dict[str, StoredTensor]:
    """Weights that were not trained; none where saving left them out."""
    shapes, fragments = model[0].get("frozen_param_shapes"), model[0].get("frozen_param_fragments")
    if not shapes or not fragments:
        return {}
    tensors = {}
    for name, shape in shapes_of(shapes).items():
        ranks = [flat(_field(path, one, "frozen_param_fragments")[name])
                 for path, one in zip(files.model, model, strict=True)]  # fmt: skip
        if sum(part.numel() for part in ranks) < numel(shape):
            raise _misfit(files.model[0], f"{name} in fewer elements", str(numel(shape)))
        tensors[name] = _unpadded(shape, ranks)
    return tensors


def _is_stage_3(states: Sequence[Any]) -> bool:
    return "fp32_flat_groups" in states[0]


def _whole_in_module(model: Mapping[str, Any], *, partitioned: bool) -> dict[str, StoredTensor]:
    """Tensors that lie whole in the module's state: buffers, and at stage 1 frozen weights.

    At stage 3 the parameters there are empty placeholders.
    """
    module = model.get("module") or {}
    names = (model.get("buffer_names") or ()) if partitioned else module
    return {name: stored(module[name].shape, (flat(module[name]),))
            for name in names if name in module}  # fmt: skip


def _field(path: Path, content: Mapping[str, Any], name: str) -> Any:
    if name not in content:
        raise CheckpointError(
            f"{path}: {name} = absent; expected it in a file of DeepSpeed ZeRO stage 1, 2 or 3. "
            "Is it a checkpoint of another stage or tool?"
        )
    return content[name]


def _misfit(path: Path, found: str, wanted: str) -> CheckpointError:
    return CheckpointError(
        f"{path}: {found}; expected {wanted}. The files are of different runs or damaged; use "
        "another checkpoint."
    )


def latest_tag(folder: Path) -> Path:
    """The tag folder that `latest` of a checkpoints folder names.

    Raises:
        CheckpointError: if it names nothing that is there.
    """
    tag = (folder / LATEST).read_text(encoding="utf-8", errors="replace").strip()
    target = folder / tag
    if not tag or Path(tag).name != tag or not os.path.isdir(target):
        raise CheckpointError(
            f"{folder / 'latest'}: tag = {tag!r:.80}; expected the name of a folder beside it. "
            "Name the tag folder itself."
        )
    return target


def read_manifest(folder: Path) -> dict[str, Any] | None:
    """The trainer's manifest of a tag folder, if it has one; sizes of files are checked.

    Raises:
        CheckpointError: if it is damaged, or a file it names is missing or of another size.
    """
    path = folder / "manifest.json"
    if not path.is_file():
        return None
    try:
        manifest = json.loads(path.read_text(encoding="utf-8"))
        files = {str(name): int(entry["size"]) for name, entry in manifest["files"].items()}
        for name in ("recipe", "base"):
            if not isinstance(manifest.get(name), dict | None):
                raise ValueError(f"{name} is no object")
    except UNREADABLE as error:
        raise CheckpointError(
            f"{path}: content = damaged ({error}); expected the trainer's manifest. Use an older "
            "checkpoint."
        ) from error
    for name, size in files.items():
        file = folder / name
        found = file.stat().st_size if os.path.isfile(file) else None
        if found != size:
            raise CheckpointError(
                f"{file}: size = {'no file' if found is None else found}; expected {size} bytes as "
                "in manifest.json. Copy the checkpoint again."
            )
    return dict(manifest)
