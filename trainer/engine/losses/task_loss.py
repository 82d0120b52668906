"""What the loss of a task is to a step; it must not know any task.

Letters: U texts of the step, H vector size.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from trainer.data.batch import Texts
from trainer.distributed.group import Ranks
from trainer.objectives.prefixes import WHOLE, Prefix, cut
from trainer.recipe.embedding_distillation import is_projected
from trainer.recipe.schema import MatryoshkaRecipe

Vectors = tuple[Tensor, ...]
"""last [n, D], then middle [n, H] where a term reads it, then taught [n, S], brought to the size of
a teacher's vectors where the task projects; of n texts, float32. D = H without projection."""

Prefixes = Sequence[Prefix]
"""Leading parts of the vectors whose losses are summed with their weights."""

TaskLoss = Callable[[Vectors, Prefixes], dict[str, Tensor]]
"""From tables [U, H] of each layer and the parts of them that count to this rank's share of each
term, summed over the parts; `loss` is their total."""

MakeLoss = Callable[[Any, Any, Ranks], TaskLoss]
"""From a batch of the task, its settings and this process to its loss."""


def own_slice(total: int, ranks: Ranks) -> slice:
    """The examples that this rank scores; shares differ by one at most."""
    return slice(
        total * ranks.rank // ranks.world_size, total * (ranks.rank + 1) // ranks.world_size
    )


@dataclass(frozen=True, kw_only=True)
class OwnTexts:
    """This rank's share of the distinct texts, with what a teacher says of them."""

    rows: slice
    """Which rows of the tables."""
    share: float
    """Part of all texts that they are."""
    teacher_vectors: Tensor | None
    """A teacher's vectors [u, D]; None where the batch has none."""


def own_texts(texts: Texts, ranks: Ranks) -> OwnTexts:
    """The texts that this rank scores, whoever embedded them."""
    total, vectors = len(texts.token_ids), texts.teacher_vectors
    rows = own_slice(total, ranks)
    return OwnTexts(
        rows=rows,
        share=(rows.stop - rows.start) / total,
        teacher_vectors=None
        if vectors is None
        else torch.from_numpy(vectors[rows]).to(ranks.device),
    )


def without_taught(tables: Vectors, settings: Any) -> Vectors:
    """The tables of layers of the model alone.

    Args:
        tables: all of a step.
        settings: of its task.
    """
    return tables[:-1] if is_projected(settings) else tables


def taught_table(tables: Vectors, settings: Any) -> Tensor:
    """The table that a teacher's vectors are compared with [U, S], or [U, D] without a layer.

    Args:
        tables: all of a step.
        settings: of its task.
    """
    return tables[-1] if is_projected(settings) else tables[0]


def weighted_sum(values: Mapping[str, Tensor], weights: Mapping[str, float]) -> Tensor | float:
    """Sum of the terms times their weights, in their order."""
    return sum(weights[name] * value for name, value in values.items())


def prefixes_of(matryoshka: MatryoshkaRecipe | None) -> Prefixes:
    """The leading parts of the vectors that a recipe trains."""
    if matryoshka is None:
        return (WHOLE,)
    weights = matryoshka.weights or (1.0,) * len(matryoshka.dims)
    return tuple(map(Prefix, matryoshka.dims, weights))


def over_prefixes(
    at: Callable[[Vectors], dict[str, Tensor]], tables: Vectors, prefixes: Prefixes
) -> dict[str, Tensor]:
    """What a loss finds on each leading part of the tables, summed with the parts' weights.

    A part that is the whole vector is whole in all layers, whatever their sizes; of a shorter one
    each layer has its own first d numbers.

    Args:
        at: from tables to terms.
        tables: of the last layer [U, D], and of the middle one [U, H] where a term reads it.
        prefixes: at least one.
    """
    total: dict[str, Tensor] = {}
    for prefix in prefixes:
        part_of = WHOLE if prefix.is_whole(tables[0]) else prefix
        for name, value in at(tuple(cut(table, part_of) for table in tables)).items():
            part = value if prefix.weight == 1 else prefix.weight * value
            total[name] = total[name] + part if name in total else part
    return total
