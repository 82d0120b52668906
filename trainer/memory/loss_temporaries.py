"""What the loss of each task holds besides vectors and their gradients, in bytes of float32.

A task that is not in the table is planned for as one whose loss compares all rows of a step.
"""

from collections.abc import Callable
from typing import Any

from trainer.objectives.tiles import TILE_BYTES
from trainer.recipe import ir, sts
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


TEMPORARIES: dict[str, Callable[[Any], int]] = {
    ir.KIND.name: _retrieval,
    sts.KIND.name: _all_pairs,
}
"""From a task's settings to bytes."""


def cuts_vectors(settings: TaskSettings) -> bool:
    """Whether a term copies the leading part of every vector of a step, which InfoNCE does not."""
    if isinstance(settings, ir.IrRecipe):
        return settings.spread_out > 0 or settings.distillation is not None
    return True


def temporary_bytes(task: str, settings: TaskSettings) -> int:
    """Bytes that the loss of a step of a task holds at its peak."""
    return TEMPORARIES.get(task, _all_pairs)(settings)
