"""The loss of labelled texts: InfoNCE as retrieval has it, or the supervised contrastive loss.

Letters: U texts of the step, H vector size, G anchors over all ranks, B on this rank, P + N slots
per anchor.
"""

from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from trainer.data.batch import IrBatch, LabelsBatch
from trainer.data.shared_labels import all_known, own_known, shared_labels
from trainer.distributed.group import Ranks
from trainer.engine.losses.ir import retrieval_loss
from trainer.engine.losses.task_loss import (
    OwnTexts,
    Prefixes,
    TaskLoss,
    Vectors,
    own_slice,
    own_texts,
    taught_table,
    weighted_sum,
)
from trainer.objectives.terms import SUPERVISED_TERMS, SupervisedInputs, Term, weighted_terms
from trainer.recipe.ir import IrRecipe
from trainer.recipe.labels import KIND, LabelsRecipe


@dataclass(frozen=True, kw_only=True)
class SupervisedLoss:
    """The terms over all texts of one batch on one rank, whose anchors are its share of them."""

    settings: LabelsRecipe
    """Weights and temperature."""
    terms: list[Term]
    """Those that have a weight."""
    positive: Tensor
    """Which texts share a label with an own one [u, U], bool; an own one with itself too."""
    share: float
    """Part of the batch's anchors with a positive that are on this rank."""
    texts: OwnTexts
    """Own texts, and what a teacher says of them."""

    def __call__(self, tables: Vectors, prefixes: Prefixes) -> dict[str, Tensor]:
        """This rank's share of each term; see `TaskLoss`."""
        table_UH = tables[0]
        inputs = SupervisedInputs(
            texts=table_UH[self.texts.rows],
            all_texts=table_UH,
            positive=self.positive,
            temperature=self.settings.temperature,
            first_row=self.texts.rows.start,
            prefixes=prefixes,
            taught=taught_table(tables, self.settings)[self.texts.rows],
            teacher_vectors=self.texts.teacher_vectors,
        )
        values = {}
        for term in self.terms:
            reads, options = term.arguments(inputs)
            share = self.texts.share if term.share == "texts" else self.share
            values[term.name] = share * term.function(*reads, **options)
        weights = KIND.weights_of(self.settings)
        return {"loss": weighted_sum(values, weights), **values}  # type: ignore[dict-item]


def labels_loss(batch: LabelsBatch, settings: LabelsRecipe, ranks: Ranks) -> TaskLoss:
    """The loss of a batch on this rank."""
    if settings.objective == "supcon":
        return _supervised(batch, settings, ranks)
    own = own_slice(len(batch.query), ranks)
    total = len(batch.texts.token_ids)
    shared = shared_labels(batch.members, batch.query[own], total)
    retrieval = IrRecipe(
        global_batch_size=settings.global_batch_size,
        positives=settings.positives,
        negatives=settings.negatives,
        temperature=settings.temperature,
        in_batch=settings.objective == "in_batch",
        embedding_distillation=settings.embedding_distillation,
    )
    loss = retrieval_loss(_as_retrieval(batch), retrieval, ranks)
    # columns that no anchor has are dropped there
    passages = batch.passages[:, np.any(batch.passages >= 0, axis=0)]
    if settings.objective == "in_batch":
        known = all_known(shared, passages, num_positives=settings.positives, first=own.start)
        return replace(loss, masked=torch.from_numpy(known))
    row, slot = np.nonzero(own_known(shared, passages[own], num_positives=settings.positives))
    pairs = np.stack([row, (row + own.start) * passages.shape[1] + slot], axis=1)
    return replace(loss, masked=torch.from_numpy(pairs.astype(np.int64)))


def _as_retrieval(batch: LabelsBatch) -> IrBatch:
    """Anchors as queries; what is left out is found from the labels."""
    return IrBatch(
        plan=batch.plan,
        texts=batch.texts,
        query=batch.query,
        passages=batch.passages,
        masked=np.empty((0, 2), np.int64),
    )


def _supervised(batch: LabelsBatch, settings: LabelsRecipe, ranks: Ranks) -> SupervisedLoss:
    total, texts = len(batch.texts.token_ids), own_texts(batch.texts, ranks)
    has_positive = _has_positive(batch.members, total)
    rows = np.arange(texts.rows.start, texts.rows.stop)
    return SupervisedLoss(
        settings=settings,
        terms=weighted_terms(SUPERVISED_TERMS, KIND.weights_of(settings)),
        positive=torch.from_numpy(shared_labels(batch.members, rows, total)).to(ranks.device),
        share=float(has_positive[texts.rows].sum() / max(1, has_positive.sum())),
        texts=texts,
    )


def _has_positive(members: np.ndarray, total: int) -> np.ndarray:
    """Texts that share a label with another [U], bool."""
    sizes = np.bincount(members[:, 1])
    found = np.zeros(total, bool)
    found[members[sizes[members[:, 1]] > 1, 0]] = True
    return found
