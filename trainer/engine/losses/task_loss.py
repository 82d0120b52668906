"""What the loss of a task is to a step; it must not know any task.

Letters: U texts of the step, H vector size.
"""

from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor

from trainer.distributed.group import Ranks

Vectors = tuple[Tensor, ...]
"""(last [n, H],) or (last [n, H], middle [n, H]) of n texts, float32."""

TaskLoss = Callable[[Vectors], dict[str, Tensor]]
"""From tables [U, H] of each layer to this rank's share of each term; `loss` is their total."""

MakeLoss = Callable[[Any, Any, Ranks], TaskLoss]
"""From a batch of the task, its settings and this process to its loss."""


def own_slice(total: int, ranks: Ranks) -> slice:
    """The examples that this rank scores; shares differ by one at most."""
    return slice(
        total * ranks.rank // ranks.world_size, total * (ranks.rank + 1) // ranks.world_size
    )


def weighted_sum(values: Mapping[str, Tensor], weights: Mapping[str, float]) -> Tensor | float:
    """Sum of the terms times their weights, in their order."""
    return sum(weights[name] * value for name, value in values.items())
