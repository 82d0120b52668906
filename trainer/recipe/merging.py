"""What a recipe may say of the checkpoints that a run merges when it ends."""

from dataclasses import dataclass
from typing import Literal

from trainer.recipe.fields import bounded


@dataclass(frozen=True, kw_only=True)
class MergeRecipe:
    """The last checkpoints merged into `merged/` when the run ends."""

    last: int = bounded(low=1, required=True)
    """Newest checkpoints that are merged; at most `checkpoint.keep`."""
    method: Literal["delta", "uniform", "task_arithmetic", "ties"] = "delta"
    """`delta` weights by how far each tensor moved from the base; see `tools/delta_merge.py`."""
    granularity: Literal["tensor", "row", "element"] = "tensor"
    """What shares one weight under `delta`."""
    alpha: float = 1.0
    """Exponent of the norms under `delta`; 0 is uniform, below 0 favours who moved least."""
    scale: float = 1.0
    """lambda, the factor of the summed change."""
