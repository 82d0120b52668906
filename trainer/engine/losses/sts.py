"""The similarity loss: cosines of scored pairs against their gold scores.

Letters: U texts of the step, H vector size, n pairs.
"""

from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from trainer.data.batch import StsBatch
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
    without_taught,
)
from trainer.objectives.terms import (
    SIMILARITY_TERMS,
    Parts,
    SimilarityInputs,
    Term,
    weighted_terms,
)
from trainer.recipe.sts import KIND, TERMS, StsRecipe


@dataclass(frozen=True, kw_only=True)
class SimilarityLoss:
    """The terms of one batch on one rank.

    Over the pairs of all ranks each rank computes the same, and counts 1 / W of it. Of texts each
    rank has a share.
    """

    settings: StsRecipe
    """Weights and temperatures."""
    terms: list[Term]
    """Those that have a weight."""
    world_size: int
    """W."""
    first: Tensor
    """First texts as rows of the tables [n], int64."""
    second: Tensor
    """Second texts as rows of the tables [n], int64."""
    gold: Tensor
    """Gold scores, 0..1 [n], float32."""
    texts: OwnTexts
    """The texts whose vectors are compared with a teacher's."""

    def __call__(self, tables: Vectors, prefixes: Prefixes) -> dict[str, Tensor]:
        """This rank's share of each term; see `TaskLoss`."""
        taught = taught_table(tables, self.settings)[self.texts.rows]
        own = without_taught(tables, self.settings)
        values = over_prefixes(partial(self._at, taught), own, prefixes)
        whole = self._values("whole", own, self._cosines(own), taught)
        shares = {name: self.texts.share * value for name, value in whole.items()}
        total = values["loss"] + weighted_sum(shares, KIND.weights_of(self.settings))
        return {**values, **shares, "loss": total}

    def _at(self, taught: Tensor, tables: Vectors) -> dict[str, Tensor]:
        """The terms of pairs on one leading part of the vectors."""
        cosines = self._cosines(tables)
        values = self._values("each", tables, cosines, taught)
        # a batch without order stays connected to the vectors
        total = 0.0 * cosines.sum() + weighted_sum(values, self.settings.weights)
        return {name: value / self.world_size for name, value in {"loss": total, **values}.items()}

    def _values(
        self, parts: Parts, tables: Vectors, cosines: Tensor, taught: Tensor
    ) -> dict[str, Tensor]:
        """The terms that read such parts of vectors, unweighted."""
        values = {}
        for term in self.terms:
            if term.parts == parts:
                reads, options = term.arguments(self._inputs(term.name, tables, cosines, taught))
                values[term.name] = term.function(*reads, **options)
        return values

    def _cosines(self, tables: Vectors) -> Tensor:
        """Of all pairs [n]."""
        return (tables[0][self.first] * tables[0][self.second]).sum(dim=1)

    def _inputs(
        self, name: str, tables: Vectors, cosines: Tensor, taught: Tensor
    ) -> SimilarityInputs:
        """What a term reads."""
        table_UH = tables[TERMS[name].layer == "middle"]
        return SimilarityInputs(
            first=table_UH[self.first],
            second=table_UH[self.second],
            cosines=cosines,
            gold=self.gold,
            is_positive=self.gold >= self.settings.infonce_threshold,
            temperature=self.settings.temperatures.get(name),
            taught=taught,
            teacher_vectors=self.texts.teacher_vectors,
        )


def similarity_loss(batch: StsBatch, settings: StsRecipe, ranks: Ranks) -> SimilarityLoss:
    """The loss of a batch on this rank."""
    own = slice(None) if settings.cross_device else own_slice(len(batch.score), ranks)
    return SimilarityLoss(
        settings=settings,
        terms=weighted_terms(SIMILARITY_TERMS, KIND.weights_of(settings)),
        world_size=ranks.world_size,
        first=torch.from_numpy(batch.text1[own]).to(ranks.device),
        second=torch.from_numpy(batch.text2[own]).to(ranks.device),
        gold=torch.from_numpy(batch.score[own]).to(ranks.device),
        texts=own_texts(batch.texts, ranks),
    )
