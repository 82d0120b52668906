"""Match the tensors of base and checkpoints, and refuse what does not fit, before any is read."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from trainer.checkpoint.json_files import read_object
from trainer.checkpoint.lora_deltas import adapted
from trainer.checkpoint.names import BACKBONE_PREFIXES, backbone_prefix, is_head, is_optional
from trainer.checkpoint.open import (
    ADAPTER_BASE,
    Source,
    base_fingerprint,
    identity,
    open_source,
)
from trainer.checkpoint.tensors import SlicedTensor
from trainer.errors import CheckpointError
from trainer.merge.assets import Assets, check_architecture, find_assets
from trainer.merge.output import ShardFile, plan_shards
from trainer.merge.settings import MergeSettings
from trainer.merge.stream import MergeItem

MAX_NAMED = 5
"""Names listed in a message."""


@dataclass(frozen=True, kw_only=True)
class MergePlan:
    """All that a merge will do."""

    items: tuple[MergeItem, ...]
    """Tensors of the result in the base's order."""
    left_out: tuple[str, ...]
    """Tensors of the base that not every checkpoint has and no embedder needs: heads, and buffers
    that models compute themselves."""
    shards: tuple[ShardFile, ...]
    """Files of weights."""
    assets: Assets
    """Where the other files come from."""
    identities: tuple[dict[str, Any], ...]
    """Base and checkpoints."""
    dtype: torch.dtype
    """Dtype of most of the result."""

    @property
    def output_bytes(self) -> int:
        """Size of the weights' files."""
        return sum(shard.num_bytes for shard in self.shards)

    @property
    def input_bytes(self) -> int:
        """Bytes of tensors to read once."""
        return sum(item.input_bytes for item in self.items)


@dataclass(frozen=True, kw_only=True)
class Inputs:
    """Opened base and checkpoints, matched by name."""

    base: Source
    """theta0."""
    sources: tuple[Source, ...]
    """theta_k."""
    prefix: str
    """What the base puts before the names of its backbone."""
    root: dict[str, SlicedTensor]
    """The base's tensors without that prefix."""
    matched: tuple[dict[str, SlicedTensor], ...]
    """Each checkpoint's tensors under the same names, adapters applied."""


def open_inputs(base: Path, checkpoints: Sequence[Path]) -> Inputs:
    """Open base and checkpoints and bring them under the same names.

    Args:
        base: the pre-trained model.
        checkpoints: at least one.

    Raises:
        CheckpointError: if an input is missing, damaged, unsafe, or of another model.
    """
    base_source = open_source(base)
    if base_source.adapters:
        raise CheckpointError(
            f"{base}: kind = adapter; expected a full model as base. Name the model that the "
            "adapters were trained on."
        )
    sources = tuple(open_source(path) for path in checkpoints)
    folders = {one.path: one.assets for one in sources if one.kind != "peft"}
    check_architecture(base_source.assets, folders)
    prefix = backbone_prefix(base_source.plain)
    root = {_bare(name, prefix): tensor for name, tensor in base_source.plain.items()}
    matched = tuple(_matched(one, root) for one in sources)
    _check_base_identity(base_source, sources)
    return Inputs(base=base_source, sources=sources, prefix=prefix, root=root, matched=matched)


def plan_merge(base: Path, checkpoints: Sequence[Path], settings: MergeSettings) -> MergePlan:
    """Open everything and match it.

    Args:
        base: the pre-trained model.
        checkpoints: at least one.
        settings: dtype, shard size and `hash_files` matter here.

    Raises:
        CheckpointError: if an input is missing, damaged, unsafe, or of another model.
    """
    inputs = open_inputs(base, checkpoints)
    base_source, sources, root = inputs.base, inputs.sources, inputs.root
    prefix, matched = inputs.prefix, inputs.matched
    kept = [
        name
        for name, tensor in root.items()
        if not is_optional(name, tensor) or all(name in one for one in matched)
    ]
    for source, own in zip(sources, matched, strict=True):
        _check_complete(source.path, kept, own, root)
    restore = prefix if all(_common_prefix(one, root) == prefix for one in sources) else ""
    paths = (base_source.path, *(one.path for one in sources))
    items = tuple(
        MergeItem(
            name=name if is_head(name) else restore + name,
            base=root[name],
            tuned=tuple(one[name] for one in matched),
            dtype=_output_dtype(root[name].dtype, settings),
            paths=paths,
        )
        for name in kept
    )
    return MergePlan(
        items=items,
        left_out=tuple(name for name in root if name not in set(kept)),
        shards=tuple(plan_shards(items, settings.max_shard_bytes)),
        assets=find_assets([one.assets for one in sources], base_source.assets),
        identities=tuple(identity(one, hash_files=settings.hash_files)
                         for one in (base_source, *sources)),
        dtype=_main_dtype(items),
    )  # fmt: skip


def _bare(name: str, prefix: str) -> str:
    return name.removeprefix(prefix)


def _common_prefix(source: Source, root: Mapping[str, SlicedTensor]) -> str:
    """Prefix under which a checkpoint keeps the base's names: the one that fits most of them."""
    names = {*source.plain, *(f"{module}.weight" for module in source.adapters)}

    def fitting(prefix: str) -> int:
        return sum(name.startswith(prefix) and _bare(name, prefix) in root for name in names)

    return max(("", *BACKBONE_PREFIXES), key=fitting)


def _matched(source: Source, root: Mapping[str, SlicedTensor]) -> dict[str, SlicedTensor]:
    """A checkpoint's tensors under the base's names; adapters applied, gaps of adapters filled."""
    prefix = _common_prefix(source, root)
    own = {_bare(name, prefix): tensor for name, tensor in source.plain.items()}
    tied = {_bare(name, prefix) for name in source.tied}
    foreign = [
        name
        for name, tensor in own.items()
        if name not in root and name not in tied and not is_optional(name, tensor)
    ]
    if foreign:
        raise CheckpointError(
            f"{source.path}: {_some(foreign)} = not in the base; expected the base's tensors only. "
            "Name the base that this checkpoint was trained from."
        )
    if source.adapters and source.lora is not None:
        modules = {_bare(name, prefix): parts for name, parts in source.adapters.items()}
        # what an adapter's checkpoint does not hold is the base's
        own = adapted({**root, **own}, modules, source.lora)
    return own


def _recorded_base(source: Source) -> Mapping[str, Any] | None:
    """What a checkpoint's manifest, or the file beside an exported adapter, says of its base."""
    if source.manifest is not None:
        base: Mapping[str, Any] | None = source.manifest.get("base")
        return base
    file = source.path / ADAPTER_BASE
    return read_object(file) if source.kind == "peft" and file.is_file() else None


def _check_base_identity(base: Source, sources: Sequence[Source]) -> None:
    """A checkpoint that names its base's fingerprint must mean this base."""
    for source in sources:
        recorded = (_recorded_base(source) or {}).get("fingerprint")
        if recorded is not None and recorded != base_fingerprint(base):
            raise CheckpointError(
                f"{source.path}: base = trained from other weights than {base.path}; expected its "
                "own base. Name the folder that the recipe's model.path named."
            )


def _check_complete(
    path: Path,
    kept: Sequence[str],
    own: Mapping[str, SlicedTensor],
    root: Mapping[str, SlicedTensor],
) -> None:
    missing = [name for name in kept if name not in own]
    if missing:
        raise CheckpointError(
            f"{path}: {_some(missing)} = missing; expected every tensor of the base. Copy the "
            "checkpoint again, or save it whole."
        )
    for name in kept:
        _check_tensor(path, name, own[name], root[name])


def _check_tensor(path: Path, name: str, own: SlicedTensor, wanted: SlicedTensor) -> None:
    if tuple(own.shape) != tuple(wanted.shape):
        raise CheckpointError(
            f"{path}: {name} shape = {list(own.shape)}; expected {list(wanted.shape)} as in the "
            "base. Name the base that this checkpoint was trained from."
        )
    if own.dtype.is_floating_point != wanted.dtype.is_floating_point:
        raise CheckpointError(
            f"{path}: {name} dtype = {own.dtype}; expected {wanted.dtype} as in the base. The "
            "file is damaged or quantised; save the model in floating point."
        )


def _some(names: Sequence[str]) -> str:
    more = f" and {len(names) - MAX_NAMED} more" if len(names) > MAX_NAMED else ""
    return ", ".join(names[:MAX_NAMED]) + more


def _output_dtype(base: torch.dtype, settings: MergeSettings) -> torch.dtype:
    if settings.dtype == "base" or not base.is_floating_point:
        return base
    dtype: torch.dtype = getattr(torch, settings.dtype)
    return dtype


def _main_dtype(items: Sequence[MergeItem]) -> torch.dtype:
    size: dict[torch.dtype, int] = {}
    for item in items:
        if item.dtype.is_floating_point:
            size[item.dtype] = size.get(item.dtype, 0) + item.num_bytes
    return max(size, key=lambda dtype: size[dtype], default=torch.float32)


def plan_id(plan: MergePlan, settings: MergeSettings) -> str:
    """What identifies a merge: inputs, settings and layout, as 12 hexadecimal digits."""
    layout = [[shard.name, len(shard.header), list(shard.slots)] for shard in plan.shards]
    inputs = [{**one, "files": {name: {**file, "sha256": None}
               for name, file in one["files"].items()}} for one in plan.identities]  # fmt: skip
    content = json.dumps([inputs, settings.recorded(), layout], sort_keys=True)
    return hashlib.sha256(content.encode()).hexdigest()[:12]
