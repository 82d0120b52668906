"""What a run keeps on disk, as a recipe writes it; part of `trainer.recipe.schema`."""

from dataclasses import dataclass
from typing import Literal

from trainer.recipe.fields import bounded

Export = Literal["adapter", "merged", "both"]


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
    by_depth: tuple[float, ...] | None = None
    """Factors of lambda from the first layer to the last, linear in between; null: 1 for all."""


@dataclass(frozen=True, kw_only=True)
class CheckpointRecipe:
    """What is kept on disk."""

    every_steps: int | None = bounded(None, low=1)
    """Null: only after the last step, unless `every_minutes` is given."""
    every_minutes: float | None = bounded(None, above=0)
    """Also save when so much time has passed since the last save; null: by steps only."""
    keep: int = bounded(2, low=1)
    """Newest checkpoints kept; older ones are deleted."""
    export: Export = "merged"
    """`model/` of an adapter run: the base with adapters merged, the `adapter` alone (a peft folder
    that names its base), or `both`: merged, with the peft folder in `model/adapter/`."""
    merge: MergeRecipe | None = None
    """Fuse the last checkpoints at the end; null: only `model/` is written."""
