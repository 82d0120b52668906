"""How deep in a model a tensor is, and what a merge does there; it must not open files.

Layers are told by names: the first part of a dotted name that is a number counts its layer, as in
`layers.3.mlp.up_proj.weight`, `h.3.attn.c_attn.weight` or `encoder.layer.3.output.dense.weight`.
Like the gradients of mergekit, several numbers are spread evenly from the first layer to the last,
and what lies between two of them has a value between theirs.
"""

from collections.abc import Iterable, Sequence
from dataclasses import replace

from trainer.errors import CheckpointError
from trainer.merge.settings import MergeSettings

FIRST = ("embed", "wte", "wpe")
"""In names of what comes before the first layer; all else without a number comes after the last."""


def count_layers(names: Iterable[str], settings: MergeSettings) -> int:
    """Layers of a model.

    Args:
        names: of its tensors.
        settings: of the merge.

    Raises:
        CheckpointError: if the settings differ by depth and no tensor is in a numbered layer.
    """
    found = max((layer for layer in map(layer_of, names) if layer is not None), default=-1) + 1
    if settings.by_depth is not None and found == 0:
        raise CheckpointError(
            f"merge: by_depth = {list(settings.by_depth)}; expected none, as no tensor of this "
            "model has the number of a layer in its name. Leave it out."
        )
    return found


def layer_of(name: str) -> int | None:
    """Number of a tensor's layer, from 0; None outside of them."""
    return next((int(part) for part in name.split(".") if part.isdecimal()), None)


def depth_of(name: str, num_layers: int) -> float:
    """From 0, the first layer and what comes before it, to 1, the last and what comes after it."""
    layer = layer_of(name)
    if layer is None:
        return 0.0 if any(part in name for part in FIRST) else 1.0
    return layer / max(1, num_layers - 1)


def at_depth(settings: MergeSettings, name: str, num_layers: int) -> MergeSettings:
    """The settings of one tensor: its own lambda.

    Args:
        settings: of the merge.
        name: of the tensor.
        num_layers: of the model.
    """
    if settings.by_depth is None:
        return settings
    factor = between(settings.by_depth, depth_of(name, num_layers))
    return replace(settings, lambda_=settings.lambda_ * factor, by_depth=None)


def between(values: Sequence[float], depth: float) -> float:
    """The value at a depth from 0 to 1 of those spread evenly over it, linear in between."""
    place = depth * (len(values) - 1)
    before = min(int(place), max(0, len(values) - 2))
    after = min(before + 1, len(values) - 1)
    share = place - before
    return values[before] * (1 - share) + values[after] * share
