"""Score a held-out set of any kind with a function that embeds texts; it must not know models."""

import logging
from collections.abc import Callable, Sequence
from typing import Any

from trainer.data.evalsets import EvalSet
from trainer.evaluation.examine import Embed, FiniteEmbed, SetReport
from trainer.evaluation.ir import examine_ranking
from trainer.evaluation.labelled import examine_classification, examine_clustering
from trainer.evaluation.paired import examine_bitext, examine_pair_classification
from trainer.evaluation.reranking import examine_reranking
from trainer.evaluation.sts import examine_pairs
from trainer.recipe import ir, sts
from trainer.recipe.eval_kinds import (
    BITEXT,
    CLASSIFICATION,
    CLUSTERING,
    PAIR_CLASSIFICATION,
    RERANKING,
)

logger = logging.getLogger(__name__)

EXAMINERS: dict[str, Callable[[Any, FiniteEmbed], SetReport]] = {
    ir.EVAL_KIND.name: examine_ranking,
    sts.EVAL_KIND.name: examine_pairs,
    CLASSIFICATION.name: examine_classification,
    CLUSTERING.name: examine_clustering,
    PAIR_CLASSIFICATION.name: examine_pair_classification,
    RERANKING.name: examine_reranking,
    BITEXT.name: examine_bitext,
}
"""What examines a held-out set, by kind. A new kind is a file beside this one and one line here."""


def evaluate_set(held_out: EvalSet, embed: Embed) -> dict[str, float]:
    """Metrics of a set.

    Args:
        held_out: of any kind.
        embed: called with the same texts in the same order on all ranks.

    Returns:
        The metrics of its kind, such as `spearman` and `pearson` of the cosines, or `ndcg_at_10`,
        `mrr_at_10` and `recall_at_100` of exact search over the whole corpus.
    Collective: if `embed` is.
    """
    return examine_set(held_out, embed).metrics


def examine_set(held_out: EvalSet, embed: Embed, dims: Sequence[int] = ()) -> SetReport:
    """Metrics of a set, of its prefixes too, and the geometry of its vectors.

    Each text is embedded once, whatever is scored.

    Texts whose vectors are not finite count as similar to nothing (cosine 0), with a warning.

    Args:
        held_out: of any kind.
        embed: called with the same texts in the same order on all ranks.
        dims: sizes of the normalised prefixes that are scored besides the whole vector, such as
            those of `model.matryoshka`; those that are not below it are left out.

    Collective: if `embed` is.
    """
    finite = FiniteEmbed(embed, dims)
    report = EXAMINERS[held_out.kind](held_out, finite)
    if finite.num_bad:
        logger.warning(
            "evaluation: %d of %d texts have embeddings that are not finite; they count as similar "
            "to nothing. The first: %.80r",
            finite.num_bad,
            finite.num_texts,
            finite.first_bad,
        )
    return report
