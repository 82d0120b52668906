"""The retrieval loss: this rank's queries against all candidates of the global batch.

Letters: U texts of the step, H vector size, G queries over all ranks, B on this rank, P + N
passages per query.
"""

from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import normalize

from trainer.data.batch import IrBatch
from trainer.distributed.group import Ranks
from trainer.engine.losses.task_loss import (
    OwnTexts,
    Prefixes,
    Vectors,
    over_prefixes,
    own_slice,
    own_texts,
    taught_table,
    weighted_sum,
)
from trainer.objectives.blocks import Guide
from trainer.objectives.distillation import DISTANCES
from trainer.objectives.prefixes import WHOLE
from trainer.objectives.terms import RETRIEVAL_TERMS, RetrievalInputs, Share, Term, weighted_terms
from trainer.recipe.ir import KIND, IrRecipe, MaskRecipe, is_guided


@dataclass(frozen=True, kw_only=True)
class RetrievalLoss:
    """The terms of one batch on one rank."""

    settings: IrRecipe
    """Weights, slots, temperature, and what is compared."""
    terms: list[Term]
    """Those that have a weight."""
    shares: dict[Share, float]
    """Part of the batch's value that a term's value on this rank is."""
    query: Tensor
    """All queries as rows of the tables [G], int64."""
    own: slice
    """Those of this rank."""
    passages: Tensor
    """All passages as rows of the tables [G, P + N], int64; 0 where absent."""
    absent: Tensor
    """Passages that do not exist [G, P + N], bool."""
    masked: Tensor
    """Known pairs as (query, flat passage) [M, 2], int64; queries are counted as terms do. Or bool
    [B, G, P + N]."""
    teacher: Tensor | None
    """A teacher's scores of own passages [B, P + N], NaN where a row has none."""
    guide: Guide | None
    """A teacher's vectors that say which candidates are left out."""
    texts: OwnTexts
    """The texts whose vectors are compared with a teacher's."""

    def __call__(self, tables: Vectors, prefixes: Prefixes) -> dict[str, Tensor]:
        """This rank's share of each term; see `TaskLoss`."""
        # what terms of one layer read is gathered once for all of them
        layers = {KIND.terms[term.name].layer for term in self.terms if term.parts != "each"}
        taught = taught_table(tables, self.settings)[self.texts.rows]
        shared = {
            layer: self._inputs(tables[layer == "middle"], taught, prefixes) for layer in layers
        }
        values = {}
        for term in self.terms:
            layer, share = KIND.terms[term.name].layer, self.shares[term.share]
            if term.parts != "each":
                values[term.name] = share * _value(term, shared[layer])
            else:
                table = (tables[layer == "middle"],)
                summed = over_prefixes(partial(self._cut_value, term, taught), table, prefixes)
                values[term.name] = share * summed[term.name]
        weights = KIND.weights_of(self.settings)
        return {"loss": weighted_sum(values, weights), **values}  # type: ignore[dict-item]

    def _cut_value(self, term: Term, taught: Tensor, tables: Vectors) -> dict[str, Tensor]:
        """A term that knows no prefixes on one leading part of the vectors."""
        return {term.name: _value(term, self._inputs(tables[0], taught, (WHOLE,)))}

    def _inputs(self, table_UH: Tensor, taught: Tensor, prefixes: Prefixes) -> RetrievalInputs:
        """What terms read, from the vectors of one layer and from those to teach [u, S]."""
        settings, mask = self.settings, self.settings.mask
        distilled = settings.distillation
        limits = mask if isinstance(mask, MaskRecipe) else MaskRecipe()
        return RetrievalInputs(
            queries=table_UH[self.query[self.own]],
            all_queries=table_UH[self.query] if reads_all_queries(settings) else None,
            passages=table_UH[self.passages],
            num_positives=settings.positives,
            temperature=settings.temperature,
            mask=self.masked,
            absent=self.absent,
            margin=limits.margin,
            margin_of=limits.of,
            guide=self.guide,
            first_row=self.own.start,
            directions=settings.directions,
            in_batch=settings.in_batch,
            hardness=settings.hardness,
            hardness_of=settings.hardness_of,
            teacher=self.teacher,
            distance=None
            if distilled is None
            else partial(
                DISTANCES[distilled.loss],
                temperature=distilled.divisor,
                teacher_temperature=distilled.teacher_temperature,
            ),
            prefixes=prefixes,
            taught=taught,
            teacher_vectors=self.texts.teacher_vectors,
        )


def _value(term: Term, inputs: RetrievalInputs) -> Tensor:
    """A term on this rank, unweighted."""
    reads, options = term.arguments(inputs)
    return term.function(*reads, **options)


def reads_all_queries(settings: IrRecipe) -> bool:
    """Whether a term compares with the queries of other ranks."""
    return len(settings.directions) > 1 or settings.spread_out > 0


def retrieval_loss(batch: IrBatch, settings: IrRecipe, ranks: Ranks) -> RetrievalLoss:
    """The loss of a batch on this rank.

    Columns of passages that no query has are dropped: negatives where no record has any.
    """
    own, texts = own_slice(len(batch.query), ranks), own_texts(batch.texts, ranks)
    columns = np.any(batch.passages >= 0, axis=0, keepdims=False)
    index = batch.passages[:, columns]
    teacher = None if batch.teacher is None else batch.teacher[:, columns]
    pairs = _kept_columns(batch.masked, columns)
    guided = is_guided(settings)
    if guided and teacher is not None:
        pairs = np.concatenate([pairs, _better_negatives(teacher, settings.positives)])
    query = torch.from_numpy(batch.query).to(ranks.device)
    passages = torch.from_numpy(np.maximum(index, 0)).to(ranks.device)
    vectors = batch.texts.teacher_vectors if guided else None
    guide = None
    if vectors is not None:
        unit_UT = normalize(torch.from_numpy(vectors).to(ranks.device).float())
        all_queries = unit_UT[query] if reads_all_queries(settings) else None
        guide = Guide(
            queries=unit_UT[query[own]], passages=unit_UT[passages], all_queries=all_queries
        )
    return RetrievalLoss(
        settings=settings,
        terms=weighted_terms(RETRIEVAL_TERMS, KIND.weights_of(settings)),
        shares={**_shares(index, settings, own, teacher, ranks), "texts": texts.share},
        query=query,
        own=own,
        passages=passages,
        absent=torch.from_numpy(index < 0),
        masked=torch.from_numpy(_pairs_of(pairs, own, index.shape[1], settings)),
        teacher=None if teacher is None else torch.from_numpy(teacher[own]).to(ranks.device),
        guide=guide,
        texts=texts,
    )


def _shares(
    index: np.ndarray, settings: IrRecipe, own: slice, teacher: np.ndarray | None, ranks: Ranks
) -> dict[Share, float]:
    """What part of the batch's value is found on this rank, of terms over rows.

    Args:
        index: passages of all queries [G, P + N], below 0 where absent.
        settings: P.
        own: queries of this rank.
        teacher: scores [G, P + N]; None where no query has any.
        ranks: this process.
    """
    num_queries, num_own = len(index), own.stop - own.start
    taught = np.zeros(num_queries, bool)
    if teacher is not None:
        taught = ~np.isnan(teacher).any(axis=1)
    contrasted = (index[:, settings.positives :] >= 0).any(axis=1)
    return {
        "rows": num_own / num_queries,
        # a mean over own rows, as part of one over all rows that count
        "contrasted": num_own / max(1, int(contrasted.sum())),
        "taught": float(taught[own].sum() / max(1, taught.sum())),
        "batch": 1 / ranks.world_size,
    }


def _kept_columns(masked: np.ndarray, columns: np.ndarray) -> np.ndarray:
    """Pairs (query, flat passage) [M, 2] with passages counted among the kept columns, int64."""
    width, num_kept = len(columns), int(columns.sum())
    kept_of = np.cumsum(columns) - 1
    row, flat = masked[columns[masked[:, 1] % width]].T
    pairs = np.stack([row, flat // width * num_kept + kept_of[flat % width]], axis=1)
    return pairs.astype(np.int64)


def _better_negatives(teacher: np.ndarray, num_positives: int) -> np.ndarray:
    """Own hard negatives that a teacher scores above all own positives, as pairs [M, 2], int64.

    Args:
        teacher: scores [G, P + N]; NaN is above nothing.
        num_positives: P.
    """
    best = teacher[:, :num_positives].max(axis=1, keepdims=True)
    better = teacher > best
    better[:, :num_positives] = False
    row, column = np.nonzero(better)
    return np.stack([row, row * teacher.shape[1] + column], axis=1).astype(np.int64)


def _pairs_of(pairs: np.ndarray, own: slice, num_slots: int, settings: IrRecipe) -> np.ndarray:
    """The pairs that this rank's terms read, with rows counted as they count them."""
    row, group = pairs[:, 0], pairs[:, 1] // num_slots
    mine = (row >= own.start) & (row < own.stop)
    if reads_all_queries(settings):
        return pairs[mine | ((group >= own.start) & (group < own.stop))]
    return pairs[mine] - np.array([own.start, 0])
