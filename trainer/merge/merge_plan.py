"""Match the tensors of base and checkpoints, and refuse what does not fit, before any is read."""

import hashlib
import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from trainer.checkpoint.json_files import read_object
from trainer.checkpoint.names import backbone_prefix, is_head, is_optional, projection_name
from trainer.checkpoint.open import (
    ADAPTER_BASE,
    OpenedCheckpoint,
    base_fingerprint,
    identity,
    open_checkpoint,
)
from trainer.checkpoint.tensors import SlicedTensor, StoredTensor, numel
from trainer.errors import CheckpointError
from trainer.merge.assets import Assets, check_architecture, find_assets, weights_form
from trainer.merge.depth import count_layers
from trainer.merge.expected import check_expected
from trainer.merge.low_rank import equal_values
from trainer.merge.matching import Root, bare, check_complete, common_prefix, matched
from trainer.merge.output import ShardFile, plan_shards
from trainer.merge.settings import MergeSettings
from trainer.merge.stream import MergeItem
from trainer.merge.whole_adapter import check_whole_adapter, check_whole_modules

logger = logging.getLogger(__name__)


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
    num_layers: int
    """Of the model."""

    @property
    def averaged(self) -> tuple[str, ...]:
        """Tensors that the base has not: the mean of the checkpoints, whatever the method."""
        return tuple(item.name for item in self.items if item.is_averaged)

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

    base: OpenedCheckpoint
    """theta0."""
    sources: tuple[OpenedCheckpoint, ...]
    """theta_k."""
    prefix: str
    """What the base puts before the names of its backbone."""
    root: dict[str, SlicedTensor]
    """The base's tensors without that prefix, and zeros for those that it has not."""
    added: frozenset[str]
    """Names of those zeros: the dense layer behind the pooling, where only checkpoints have it."""
    prefixes: tuple[str, ...]
    """What each checkpoint puts before those names."""
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
    base_source = open_checkpoint(base)
    if base_source.adapters:
        raise CheckpointError(
            f"{base}: kind = adapter; expected a full model as base. Name the model that the "
            "adapters were trained on."
        )
    sources = tuple(open_checkpoint(path) for path in checkpoints)
    folders = {one.path: one.assets for one in sources if one.kind != "peft"}
    check_architecture(base_source.assets, folders)
    prefix = backbone_prefix(base_source.plain)
    root, added = _root_of(base_source, sources, prefix)
    names = Root(base_source.path, root)
    prefixes = tuple(common_prefix(one, names) for one in sources)
    own = tuple(matched(one, its, names) for one, its in zip(sources, prefixes, strict=True))
    for one, its in zip(sources, prefixes, strict=True):
        if one.kind == "peft":
            _check_adapter(one, its, root, base_source)
    _check_base_identity(base_source, sources)
    own_names = [name for name in root if projection_name(name) is None]
    check_expected(base_source.path, own_names, base_source.assets)
    return Inputs(base=base_source, sources=sources, prefix=prefix, root=root, added=added,
                  prefixes=prefixes, matched=own)  # fmt: skip


def _check_adapter(
    source: OpenedCheckpoint, prefix: str, root: Mapping[str, SlicedTensor], base: OpenedCheckpoint
) -> None:
    """Refuse an adapter some of whose modules have no weights."""
    own = [name for name in root if not is_head(name) and not is_optional(name, root[name])]
    check_whole_modules(source.path, {bare(name, prefix) for name in source.plain}, own)
    matrices = [
        name.removesuffix(".weight")
        for name, tensor in root.items()
        if name.endswith(".weight") and len(tensor.shape) == 2 and not is_head(name)
    ]
    check_whole_adapter(
        source.path,
        {bare(name, prefix) for name in source.adapters},
        matrices,
        prefix=prefix,
        base=next((one for one in base.assets if (one / "config.json").is_file()), None),
    )


def _root_of(
    base: OpenedCheckpoint, sources: Sequence[OpenedCheckpoint], prefix: str
) -> tuple[dict[str, SlicedTensor], frozenset[str]]:
    """The base's tensors by bare name, with zeros for a projection that only checkpoints have.

    One that only the base has was left out of the training, and is left out here.

    Returns:
        The tensors, and the names of the zeros.
    """
    projected = {
        name: tensor
        for source in reversed(sources)
        for name, tensor in source.plain.items()
        if projection_name(name) is not None
    }
    root = {
        bare(name, prefix): tensor
        for name, tensor in base.plain.items()
        if projection_name(name) is None or projected
    }
    zeros: dict[str, SlicedTensor] = {
        name: StoredTensor(tuple(one.shape), (torch.zeros(numel(one.shape), dtype=one.dtype),))
        for name, one in projected.items()
        if name not in root
    }
    return root | zeros, frozenset(zeros)


def plan_merge(base: Path, checkpoints: Sequence[Path], settings: MergeSettings) -> MergePlan:
    """Open everything and match it.

    Args:
        base: the pre-trained model.
        checkpoints: at least one.
        settings: dtype, shard size and `hash_files` matter here.

    Raises:
        CheckpointError: if an input is missing, damaged, unsafe, or of another model.
    """
    return plan_of(open_inputs(base, checkpoints), settings)


def plan_of(inputs: Inputs, settings: MergeSettings) -> MergePlan:
    """The plan for opened inputs; its work grows with the number of tensors, not faster.

    Args:
        inputs: from `open_inputs`.
        settings: dtype, shard size and `hash_files` matter here.

    Raises:
        CheckpointError: if a checkpoint lacks a tensor, or has one of another shape or kind; if
            settings differ by depth and the model has no numbered layers.
    """
    base_source, sources, root = inputs.base, inputs.sources, inputs.root
    prefix, matched_ones = inputs.prefix, inputs.matched
    kept = [
        name
        for name, tensor in root.items()
        if not is_optional(name, tensor) or all(name in one for one in matched_ones)
    ]
    for source, own in zip(sources, matched_ones, strict=True):
        check_complete(source.path, kept, own, Root(base_source.path, root))
    _warn_of_heads(inputs, kept)
    restore = prefix if all(one == prefix for one in inputs.prefixes) else ""
    paths = (base_source.path, *(one.path for one in sources))
    items = tuple(
        MergeItem(
            name=name if is_head(name) or projection_name(name) else restore + name,
            base=root[name],
            tuned=tuple(one[name] for one in matched_ones),
            dtype=_output_dtype(root[name].dtype, settings),
            paths=paths,
            is_averaged=name in inputs.added,
        )
        for name in kept
    )
    known = set(kept)
    assets = find_assets([one.assets for one in sources], base_source.assets)
    _check_layer(assets, items)
    form = weights_form(assets)
    return MergePlan(
        items=items,
        left_out=tuple(name for name in root if name not in known),
        shards=tuple(plan_shards(items, settings.max_shard_bytes, form=form, dense=assets.dense)),
        assets=assets,
        identities=tuple(identity(one, hash_files=settings.hash_files)
                         for one in (base_source, *sources)),
        dtype=_main_dtype(items),
        num_layers=count_layers(root, settings),
    )  # fmt: skip


def _warn_of_heads(inputs: Inputs, kept: Sequence[str]) -> None:
    """Report each trained head over all tokens that the result has not, as where the base ties it.

    A copy of the embeddings, or of the base's own head, says nothing that is lost. Other heads are
    no part of an embedder.
    """
    known = set(kept)
    shapes = [tuple(one.shape) for one in inputs.root.values() if len(one.shape) == 2]
    table = max(shapes, default=())
    for source, own in zip(inputs.sources, inputs.matched, strict=True):
        for name, tensor in own.items():
            if name in known or not is_head(name) or tuple(tensor.shape) != table:
                continue
            alike = [other for other in own.values() if tuple(other.shape) == tuple(tensor.shape)]
            copies = [*(one for one in alike if one is not tensor), inputs.root.get(name)]
            if not any(one is not None and equal_values(tensor, one) for one in copies):
                logger.warning(
                    "%s: %s was trained and is left out: the base %s, or another checkpoint, has "
                    "no head but its embeddings",
                    source.path, name, inputs.base.path,
                )  # fmt: skip


def _check_layer(assets: Assets, items: Sequence[MergeItem]) -> None:
    """Raises for a dense layer without weights, or weights of one that no module names."""
    has_weights = any(projection_name(item.name) for item in items)
    if has_weights != bool(assets.dense):
        place = f"{assets.sentence or 'checkpoints'}/modules.json"
        found = "none" if has_weights else "one without weights"
        raise CheckpointError(
            f"{place}: dense layer = {found}; expected "
            f"{'that of the checkpoints' if has_weights else 'none, as in the checkpoints'}. Copy "
            "the modules that were trained beside the weights."
        )


def _recorded_base(source: OpenedCheckpoint) -> Mapping[str, Any] | None:
    """What a checkpoint's manifest, or the file beside an exported adapter, says of its base."""
    if source.manifest is not None:
        base: Mapping[str, Any] | None = source.manifest.get("base")
        return base
    file = source.path / ADAPTER_BASE
    return read_object(file) if source.kind == "peft" and file.is_file() else None


def _check_base_identity(base: OpenedCheckpoint, sources: Sequence[OpenedCheckpoint]) -> None:
    """A checkpoint that names its base's fingerprint must mean this base."""
    own = None
    for source in sources:
        recorded = (_recorded_base(source) or {}).get("fingerprint")
        if recorded is None:
            continue
        own = own or base_fingerprint(base)
        if recorded != own:
            raise CheckpointError(
                f"{source.path}: base = trained from other weights than {base.path}; expected its "
                "own base. Name the folder that the recipe's model.path named."
            )


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
