"""The loss of a step as a value-and-gradient function of this rank's vectors.

Vectors of all ranks are gathered into one table; each rank scores its own share of the examples
against all candidates; gradients to texts that other ranks embedded are summed back. DeepSpeed
averages parameter gradients over ranks, so gradients leave here times the number of ranks: the one
place where the world size meets the loss.

Letters: U texts of the step, H vector size, n texts of this rank.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from trainer.data.batch import Batch
from trainer.distributed.group import Ranks
from trainer.distributed.rows import gather_rows, reduce_rows
from trainer.engine.chunks import ChunkPlan
from trainer.engine.losses.table import task_loss
from trainer.engine.losses.task_loss import Prefixes, TaskLoss, Vectors
from trainer.objectives.prefixes import WHOLE
from trainer.recipe.kind import TaskSettings


@dataclass(frozen=True, kw_only=True)
class StepLoss:
    """Value and gradient of a batch's loss, over all ranks."""

    loss: TaskLoss
    """This rank's share, from tables in the order of texts."""
    plan: ChunkPlan
    """Which rank embedded which text."""
    ranks: Ranks
    """This process."""
    prefixes: Prefixes = (WHOLE,)
    """Leading parts of the vectors that the loss reads."""

    def __call__(self, vectors: Vectors) -> tuple[Vectors, dict[str, Tensor]]:
        """Differentiate the loss at the vectors of all ranks.

        Where the loss is not finite the gradient is not either, so that the step has no update.

        Args:
            vectors: of this rank, in the order of its chunks, each [n, H].

        Returns:
            Gradients times the number of ranks, and terms as scalars over all ranks.
        Collective: yes.
        """
        order = torch.from_numpy(self.plan.order).to(self.ranks.device)
        place = torch.argsort(order)
        # rank order -> text order [U, H]
        tables = tuple(
            gather_rows(v, counts=self.plan.counts)[place].requires_grad_() for v in vectors
        )
        with torch.enable_grad():
            terms = self.loss(tables, self.prefixes)
            found = torch.autograd.grad(
                terms["loss"], tables, allow_unused=True, materialize_grads=True
            )
        gradients = tuple(self._own_rows(gradient, order) for gradient in found)
        values = self._summed(terms)
        is_finite = torch.isfinite(values["loss"])
        return tuple(torch.where(is_finite, g, torch.nan) for g in gradients), values

    def _own_rows(self, gradient_UH: Tensor, order: Tensor) -> Tensor:
        """Sum a table's gradient over ranks and keep the rows this rank embedded [n, H]."""
        in_rank_order = gradient_UH.detach()[order]
        own = reduce_rows(in_rank_order, counts=self.plan.counts, rank=self.ranks.rank)
        return own * self.ranks.world_size

    def _summed(self, terms: dict[str, Tensor]) -> dict[str, Tensor]:
        """Shares of all ranks added up; one collective."""
        values = torch.stack([value.detach().float() for value in terms.values()])
        if self.ranks.world_size > 1:
            torch.distributed.all_reduce(values)
        return dict(zip(terms, values.unbind(), strict=True))


def step_loss(
    batch: Batch,
    settings: TaskSettings,
    plan: ChunkPlan,
    ranks: Ranks,
    prefixes: Prefixes = (WHOLE,),
) -> StepLoss:
    """The loss of a batch.

    Args:
        batch: the global batch, equal on all ranks.
        settings: of its task.
        plan: which rank embedded which text.
        ranks: this process.
        prefixes: leading parts of the vectors that the loss reads.
    """
    loss = task_loss(batch, settings, ranks)
    return StepLoss(loss=loss, plan=plan, ranks=ranks, prefixes=prefixes)


def whole_loss(
    batch: Batch,
    settings: TaskSettings,
    plan: ChunkPlan,
    device: torch.device,
    prefixes: Prefixes = (WHOLE,),
) -> Callable[[Vectors], Tensor]:
    """The loss of a batch on one process alone, for autograd: no cache, no collective.

    Args:
        batch: the global batch.
        settings: of its task.
        plan: of one rank, in whose order the vectors come.
        device: of the vectors.
        prefixes: leading parts of the vectors that the loss reads.
    """
    loss = task_loss(batch, settings, Ranks(rank=0, world_size=1, device=device))
    place = torch.argsort(torch.from_numpy(plan.order)).to(device)
    return lambda vectors: loss(tuple(v[place] for v in vectors), prefixes)["loss"]
