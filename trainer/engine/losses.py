"""The loss of a step, from this rank's vectors to their gradients.

Vectors of all ranks are gathered into one table; each rank scores its own share of the examples
against all candidates; gradients to texts that other ranks embedded are summed back. DeepSpeed
averages parameter gradients over ranks, so gradients leave here times the number of ranks: the one
place where the world size meets the loss.

Letters: U texts of the step, H vector size, G queries over all ranks, B on this rank, P + N
passages per query, n pairs.
"""

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from trainer.data.batch import Batch, IrBatch, StsBatch
from trainer.distributed.group import Ranks
from trainer.distributed.rows import gather_rows, reduce_rows
from trainer.engine.chunks import ChunkPlan
from trainer.engine.grad_cache import ValueAndGrad, Vectors
from trainer.objectives.contrastive import info_nce, paired_info_nce
from trainer.objectives.registry import sts_loss
from trainer.recipe.ir import IrRecipe, MarginMask
from trainer.recipe.resolve import pools_middle
from trainer.recipe.sts import StsRecipe

TableLoss = Callable[[Vectors], dict[str, Tensor]]
"""From tables [U, H] of each output to this rank's share of each term; `loss` is their total."""


def needs_middle(batch: Batch, tasks: TasksRecipe) -> bool:
    """Whether the step's loss reads the middle hidden layer."""
    return isinstance(batch, StsBatch) and pools_middle(tasks)


def step_loss(batch: Batch, tasks: TasksRecipe, plan: ChunkPlan, ranks: Ranks) -> ValueAndGrad:
    """The loss of a batch as the passes want it.

    Args:
        batch: the global batch, equal on all ranks.
        tasks: temperatures and weights.
        plan: which rank embedded which text.
        ranks: this process.

    Returns:
        A function from this rank's vectors (in the order of its chunks) to (gradients times the
        number of ranks, terms as scalars over all ranks). Collective: yes.
    """
    share = _share_of(batch, tasks, ranks)
    order = torch.from_numpy(np.concatenate([plan.rows(r) for r in range(ranks.world_size)]))
    place = torch.argsort(order).to(ranks.device)

    def pull(vectors: Vectors) -> tuple[Vectors, dict[str, Tensor]]:
        # rank order -> text order [U, H]
        tables = tuple(gather_rows(v, counts=plan.counts)[place].requires_grad_() for v in vectors)
        with torch.enable_grad():
            terms = share(tables)
            found = torch.autograd.grad(terms["loss"], tables, allow_unused=True)
        gradients = tuple(
            _own_rows(t if g is None else g, order, plan, ranks, unused=g is None)
            for t, g in zip(tables, found, strict=True)
        )
        return gradients, _summed(terms, ranks)

    return pull


def whole_loss(
    batch: Batch, tasks: TasksRecipe, plan: ChunkPlan, device: torch.device
) -> Callable[[Vectors], Tensor]:
    """The loss of a batch on one process alone, for autograd: no cache, no collective.

    Args:
        batch: the global batch.
        tasks: temperatures and weights.
        plan: of one rank, in whose order the vectors come.
        device: of the vectors.
    """
    share = _share_of(batch, tasks, Ranks(rank=0, world_size=1, device=device))
    place = torch.argsort(torch.from_numpy(plan.rows(0))).to(device)
    return lambda vectors: share(tuple(v[place] for v in vectors))["loss"]


def _own_rows(
    gradient_UH: Tensor, order: Tensor, plan: ChunkPlan, ranks: Ranks, *, unused: bool
) -> Tensor:
    """Sum a table's gradient over ranks and keep the rows this rank embedded [n, H]."""
    if unused:
        gradient_UH = torch.zeros_like(gradient_UH)
    in_rank_order = gradient_UH.detach()[order.to(gradient_UH.device)]
    own = reduce_rows(in_rank_order, counts=plan.counts, rank=ranks.rank)
    return own * ranks.world_size


def _summed(terms: dict[str, Tensor], ranks: Ranks) -> dict[str, Tensor]:
    """Shares of all ranks added up; one collective."""
    values = torch.stack([value.detach().float() for value in terms.values()])
    if ranks.world_size > 1:
        torch.distributed.all_reduce(values)
    return dict(zip(terms, values.unbind(), strict=True))


def _share_of(batch: Batch, tasks: TasksRecipe, ranks: Ranks) -> TableLoss:
    """This rank's share of the loss of a batch."""
    if isinstance(batch, IrBatch):
        assert tasks.ir is not None
        return _ir_share(batch, tasks.ir, ranks)
    assert tasks.sts is not None
    return _sts_share(batch, tasks.sts, ranks)


def _own_slice(total: int, ranks: Ranks) -> slice:
    """The examples that this rank scores; shares differ by one at most."""
    return slice(
        total * ranks.rank // ranks.world_size, total * (ranks.rank + 1) // ranks.world_size
    )


def _ir_share(batch: IrBatch, recipe: IrRecipe, ranks: Ranks) -> TableLoss:
    """Multi-positive InfoNCE of this rank's queries against all candidates."""
    own = _own_slice(len(batch.query), ranks)
    weight = (own.stop - own.start) / len(batch.query)
    query = torch.from_numpy(batch.query[own]).to(ranks.device)
    columns = np.any(batch.passages >= 0, axis=0, keepdims=False)
    index = batch.passages[:, columns]
    passages = torch.from_numpy(np.maximum(index, 0)).to(ranks.device)
    absent = torch.from_numpy(index < 0)
    masked = torch.from_numpy(_masked_of(batch, columns, own))

    def share(tables: Vectors) -> dict[str, Tensor]:
        (table_UH,) = tables
        loss = weight * info_nce(
            table_UH[query],
            table_UH[passages],
            num_positives=recipe.positives,
            temperature=recipe.temperature,
            mask=masked,
            absent=absent,
            margin=recipe.mask.margin if isinstance(recipe.mask, MarginMask) else None,
            first_row=own.start,
        )
        return {"loss": loss, "infonce": loss}

    return share


def _masked_of(batch: IrBatch, columns: np.ndarray, own: slice) -> np.ndarray:
    """Masked pairs as (own query row, flat passage among the kept columns) [M, 2], int64."""
    width = batch.passages.shape[1]
    rows, flat = batch.masked[:, 0], batch.masked[:, 1]
    mine = (rows >= own.start) & (rows < own.stop) & columns[flat % width]
    kept_of = np.cumsum(columns) - 1
    num_kept = int(columns.sum())
    known = np.stack(
        [rows[mine] - own.start, flat[mine] // width * num_kept + kept_of[flat[mine] % width]],
        axis=1,
    )
    return known.astype(np.int64)


def _sts_share(batch: StsBatch, recipe: StsRecipe, ranks: Ranks) -> TableLoss:
    """Pearson, RankKL, PRO, CoSENT and the auxiliary InfoNCE, weighted.

    Over the pairs of all ranks each rank would compute the same; it then counts 1 / W of it.
    """
    own = slice(None) if recipe.cross_device else _own_slice(len(batch.score), ranks)
    first = torch.from_numpy(batch.text1[own]).to(ranks.device)
    second = torch.from_numpy(batch.text2[own]).to(ranks.device)
    gold = torch.from_numpy(batch.score[own]).to(ranks.device)
    weights = {
        "pearson": recipe.weights.pearson,
        "rank_kl": recipe.weights.rank_kl,
        "pro": recipe.weights.pro,
        "cosent": recipe.weights.cosent,
    }
    temperatures = {
        "rank_kl": recipe.rank_kl_temperature,
        "pro": recipe.pro_temperature,
        "cosent": recipe.cosent_temperature,
    }

    def share(tables: Vectors) -> dict[str, Tensor]:
        cosine = (tables[0][first] * tables[0][second]).sum(dim=1)
        terms = sts_loss(cosine, gold, weights=weights, temperatures=temperatures)
        # a term without weight, or a batch without order, stays connected to the vectors
        total = 0.0 * cosine.sum() + sum(weights[name] * term for name, term in terms.items())
        if recipe.weights.infonce > 0:
            terms["infonce"] = paired_info_nce(
                tables[1][first],
                tables[1][second],
                gold >= recipe.infonce_threshold,
                temperature=recipe.infonce_temperature,
            )
            total = total + recipe.weights.infonce * terms["infonce"]
        return {name: t / ranks.world_size for name, t in {"loss": total, **terms}.items()}

    return share
