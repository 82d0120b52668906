"""What the loss of each task holds besides vectors and their gradients, in bytes of float32.

A task that is not in the table is planned for as one whose loss compares all rows of a step.
"""

from collections.abc import Callable
from typing import Any

from trainer.objectives.tiles import TILE_BYTES
from trainer.recipe import ir, labels, sts
from trainer.recipe.kind import TaskSettings

TILES = 4
"""Tiles of logits, or matrices of all pairs of rows, that a loss holds at once."""


def _retrieval(settings: ir.IrRecipe) -> int:
    """Tiles of the logits of all queries against all candidates."""
    candidates = settings.global_batch_size * (settings.positives + settings.negatives)
    return TILES * min(TILE_BYTES, 4 * settings.global_batch_size * candidates)


def _all_pairs(settings: TaskSettings) -> int:
    """Differences of the scores of all pairs of rows."""
    return TILES * 4 * settings.global_batch_size**2


def _labelled(settings: labels.LabelsRecipe) -> int:
    """Tiles of logits, and a flag for each anchor and text or slot, twice as one is a copy."""
    anchors = settings.global_batch_size
    slots = anchors * (settings.positives + settings.negatives)
    if settings.objective == "own_negatives":
        return TILES * 4 * slots + anchors * (anchors + slots)
    texts = anchors + slots
    rows = texts if settings.objective == "supcon" else anchors
    return TILES * min(TILE_BYTES, 4 * rows * texts) + 2 * rows * texts


TEMPORARIES: dict[str, Callable[[Any], int]] = {
    ir.KIND.name: _retrieval,
    sts.KIND.name: _all_pairs,
    labels.KIND.name: _labelled,
}
"""From a task's settings to bytes."""


def num_cuts(settings: TaskSettings) -> int:
    """Terms that hold a copy of the leading part of every vector, which InfoNCE does not."""
    if not isinstance(settings, ir.IrRecipe):
        return 1
    own_alone = settings.in_batch is False
    weights = ir.KIND.weights_of(settings)
    copying = ("hard_negatives", "spread_out", "distillation")
    return own_alone + sum(weights[name] > 0 for name in copying)


def temporary_bytes(task: str, settings: TaskSettings) -> int:
    """Bytes that the loss of a step of a task holds at its peak."""
    return TEMPORARIES.get(task, _all_pairs)(settings)
