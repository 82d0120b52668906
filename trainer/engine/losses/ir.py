"""The retrieval loss: this rank's queries against all candidates of the global batch.

Letters: U texts of the step, H vector size, G queries over all ranks, B on this rank, P + N
passages per query.
"""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from trainer.data.batch import IrBatch
from trainer.distributed.group import Ranks
from trainer.engine.losses.task_loss import Vectors, own_slice, weighted_sum
from trainer.objectives.terms import RETRIEVAL_TERMS, RetrievalInputs, Term, weighted_terms
from trainer.recipe.ir import TERMS, IrRecipe, MarginMask


@dataclass(frozen=True, kw_only=True)
class RetrievalLoss:
    """The terms of one batch on one rank."""

    settings: IrRecipe
    """Weights, slots and temperature."""
    terms: list[Term]
    """Those that have a weight."""
    share: float
    """Of the global batch's queries, B / G."""
    query: Tensor
    """Own queries as rows of the tables [B], int64."""
    passages: Tensor
    """All passages as rows of the tables [G, P + N], int64; 0 where absent."""
    absent: Tensor
    """Passages that do not exist [G, P + N], bool."""
    masked: Tensor
    """Known positives as (own query, flat passage) [M, 2], int64."""
    first_row: int
    """Global row of the first own query."""

    def __call__(self, tables: Vectors) -> dict[str, Tensor]:
        """This rank's share of each term; see `TaskLoss`."""
        values = {}
        for term in self.terms:
            inputs = self._inputs(tables[TERMS[term.name].layer == "middle"])
            reads, options = term.arguments(inputs)
            values[term.name] = self.share * term.function(*reads, **options)
        return {"loss": weighted_sum(values, self.settings.weights), **values}  # type: ignore[dict-item]

    def _inputs(self, table_UH: Tensor) -> RetrievalInputs:
        """What terms read, from the vectors of one layer."""
        mask = self.settings.mask
        return RetrievalInputs(
            queries=table_UH[self.query],
            passages=table_UH[self.passages],
            num_positives=self.settings.positives,
            temperature=self.settings.temperature,
            mask=self.masked,
            absent=self.absent,
            margin=mask.margin if isinstance(mask, MarginMask) else None,
            first_row=self.first_row,
        )


def retrieval_loss(batch: IrBatch, settings: IrRecipe, ranks: Ranks) -> RetrievalLoss:
    """The loss of a batch on this rank.

    Columns of passages that no query has are dropped: negatives where no record has any.
    """
    own = own_slice(len(batch.query), ranks)
    columns = np.any(batch.passages >= 0, axis=0, keepdims=False)
    index = batch.passages[:, columns]
    return RetrievalLoss(
        settings=settings,
        terms=weighted_terms(RETRIEVAL_TERMS, settings.weights),
        share=(own.stop - own.start) / len(batch.query),
        query=torch.from_numpy(batch.query[own]).to(ranks.device),
        passages=torch.from_numpy(np.maximum(index, 0)).to(ranks.device),
        absent=torch.from_numpy(index < 0),
        masked=torch.from_numpy(_masked_of(batch, columns, own)),
        first_row=own.start,
    )


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
