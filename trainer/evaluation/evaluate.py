"""Score a held-out set of any task with a function that embeds texts; it must not know models."""

import logging
from collections.abc import Callable, Sequence
from typing import Any

from trainer.data.evalsets import EvalSet
from trainer.evaluation.examine import Embed, FiniteEmbed, SetReport
from trainer.evaluation.ir import examine_ranking
from trainer.evaluation.sts import examine_pairs
from trainer.recipe import ir, sts

logger = logging.getLogger(__name__)

EXAMINERS: dict[str, Callable[[Any, FiniteEmbed], SetReport]] = {
    ir.KIND.name: examine_ranking,
    sts.KIND.name: examine_pairs,
}
"""What examines a held-out set, by task. A new task is a file beside this one and one line here."""


def evaluate_set(held_out: EvalSet, embed: Embed) -> dict[str, float]:
    """Metrics of a set.

    Args:
        held_out: of any task.
        embed: called with the same texts in the same order on all ranks.

    Returns:
        The metrics of its task, such as `spearman` and `pearson` of the cosines, or `ndcg_at_10`,
        `mrr_at_10` and `recall_at_100` of exact search over the whole corpus.
    Collective: if `embed` is.
    """
    return examine_set(held_out, embed).metrics


def examine_set(held_out: EvalSet, embed: Embed, dims: Sequence[int] = ()) -> SetReport:
    """Metrics of a set, of its prefixes too, and the geometry of its vectors.

    Each text is embedded once, whatever is scored.

    Texts whose vectors are not finite count as similar to nothing (cosine 0), with a warning.

    Args:
        held_out: of any task.
        embed: called with the same texts in the same order on all ranks.
        dims: sizes of the normalised prefixes that are scored besides the whole vector, such as
            those of `model.matryoshka`; those that are not below it are left out.

    Collective: if `embed` is.
    """
    finite = FiniteEmbed(embed, dims)
    report = EXAMINERS[held_out.task](held_out, finite)
    if finite.num_bad:
        logger.warning(
            "evaluation: %d of %d texts have embeddings that are not finite; they count as similar "
            "to nothing. The first: %.80r",
            finite.num_bad,
            finite.num_texts,
            finite.first_bad,
        )
    return report
