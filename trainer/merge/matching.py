"""Bring a checkpoint's tensors under the base's names, or say by name what does not fit.

It must not read tensors.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from trainer.checkpoint.lora_deltas import adapted
from trainer.checkpoint.names import (
    BACKBONE_PREFIXES,
    is_head,
    is_optional,
    likely_prefix,
    projection_name,
)
from trainer.checkpoint.open import OpenedCheckpoint
from trainer.checkpoint.tensors import SlicedTensor
from trainer.errors import CheckpointError

MAX_NAMED = 5
"""Names listed in a message."""


@dataclass(frozen=True)
class Root:
    """The base's tensors by the names that all inputs are brought under."""

    path: Path
    """Of the base."""
    tensors: dict[str, SlicedTensor]
    """Without the prefix of the backbone; those that the base has not, as zeros."""

    @property
    def needed(self) -> list[str]:
        """Names without which an embedder is not whole."""
        return [name for name, tensor in self.tensors.items() if not is_optional(name, tensor)]


def common_prefix(source: OpenedCheckpoint, root: Root) -> str:
    """Prefix under which a checkpoint keeps the base's names: the one that fits most of them."""
    names = {*source.plain, *(f"{module}.weight" for module in source.adapters)}
    # beside the backbone, under no prefix
    names = {name for name in names if projection_name(name) is None}

    def fitting(prefix: str) -> int:
        return sum(name.startswith(prefix) and bare(name, prefix) in root.tensors for name in names)

    return max(("", *BACKBONE_PREFIXES), key=fitting)


def bare(name: str, prefix: str) -> str:
    """A name without a prefix."""
    return name.removeprefix(prefix)


def matched(source: OpenedCheckpoint, prefix: str, root: Root) -> dict[str, SlicedTensor]:
    """A checkpoint's tensors under the base's names; adapters applied, gaps of adapters filled.

    Args:
        source: the checkpoint.
        prefix: what it puts before the base's names.
        root: of the base.

    Raises:
        CheckpointError: tensors or adapters that the base has no name for.
    """
    own = {bare(name, prefix): tensor for name, tensor in source.plain.items()}
    tied = {bare(name, prefix) for name in source.tied}
    foreign = [
        name
        for name, tensor in own.items()
        if name not in root.tensors and name not in tied and not is_optional(name, tensor)
    ]
    if foreign:
        missing = [] if source.adapters else [name for name in root.needed if name not in own]
        raise _misnamed(source.path, foreign, len(own), missing, root)
    if source.adapters and source.lora is not None:
        modules = {bare(name, prefix): parts for name, parts in source.adapters.items()}
        # what an adapter's checkpoint does not hold is the base's
        weights = _with_tied_head(modules, {**root.tensors, **own})
        lost = [f"{name}.weight" for name in modules if f"{name}.weight" not in weights]
        if lost:
            raise _misnamed(source.path, lost, len(modules), [], root, what="adapted weights")
        own = adapted(weights, modules, source.lora)
    return own


def _with_tied_head(
    modules: Mapping[str, Mapping[str, SlicedTensor]], weights: Mapping[str, SlicedTensor]
) -> dict[str, SlicedTensor]:
    """The weights, with the table of embeddings as a head whose tokens are trained with its own.

    peft saves trained tokens of a model that ties the two under both names.
    """
    found = dict(weights)
    trained = [f"{name}.weight" for name, parts in modules.items() if set(parts) == {"tokens"}]
    tables = [name for name in trained if name in weights and not is_head(name)]
    if len(tables) == 1:
        found |= {name: weights[tables[0]] for name in trained if is_head(name)} | found
    return found


def _misnamed(
    path: Path,
    foreign: Sequence[str],
    count: int,
    missing: Sequence[str],
    root: Root,
    *,
    what: str = "tensors",
) -> CheckpointError:
    """What to raise for names that the base does not have."""
    lacks = ""
    if missing:
        lacks = (f", which has {len(missing)} of {len(root.needed)} that it lacks: "
                 f"{_some(missing)}")  # fmt: skip
    return CheckpointError(
        f"{path}: {_some(foreign)} = not in the base ({len(foreign)} of its {count} {what}){lacks}"
        f"; expected the names of the base {root.path}. {_advice(path, foreign, missing, root)}"
    )


def _advice(path: Path, foreign: Sequence[str], missing: Sequence[str], root: Root) -> str:
    if all(is_head(name) for name in foreign):
        return (
            "The base has no head but its embeddings, which a head's adapter would change alone. "
            "Train the adapter without the head, or on the embeddings."
        )
    extra = likely_prefix(root.tensors, foreign)
    if extra:
        return f"Save {path} without the prefix {extra} that it puts before the base's names."
    lacking = likely_prefix(foreign, root.tensors)
    if lacking:
        return f"Save {root.path} without the prefix {lacking} that it puts before its names."
    if any(".experts" in name for name in foreign):
        return (
            "Are its experts stacked in one parameter and the base's not? Save both as one "
            "release of transformers does, or merge the trainer's exports of whole models."
        )
    if not missing:
        return "Name the base that this checkpoint was trained from, or save that base whole."
    return "Name the base that this checkpoint was trained from."


def check_complete(
    path: Path, kept: Sequence[str], own: Mapping[str, SlicedTensor], root: Root
) -> None:
    """Refuse a checkpoint that lacks a tensor, or has one of another shape or kind.

    Args:
        path: of the checkpoint.
        kept: names of the result's tensors.
        own: from `matched`.
        root: of the base.

    Raises:
        CheckpointError: naming the tensors.
    """
    missing = [name for name in kept if name not in own]
    if missing:
        raise CheckpointError(
            f"{path}: {_some(missing)} = missing ({len(missing)} of the base's {len(kept)} "
            "tensors); expected every tensor of the base. Copy the checkpoint again, or save it "
            "whole."
        )
    for name in kept:
        _check_tensor(path, name, own[name], root.tensors[name])


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


def _some(names: Iterable[str]) -> str:
    listed = list(names)
    more = f" and {len(listed) - MAX_NAMED} more" if len(listed) > MAX_NAMED else ""
    return ", ".join(listed[:MAX_NAMED]) + more
