"""Score a held-out set with any function that embeds texts; it must not know models or ranks."""

from collections.abc import Iterator, Sequence
from typing import Literal, Protocol

from torch import Tensor

from trainer.data.evalsets import IrEvalSet, StsEvalSet
from trainer.evaluation.metrics import (
    RECALL_CUT,
    pearson,
    ranking_metrics,
    spearman,
    top_k_streamed,
)

Side = Literal["query", "passage"]

BLOCK_TEXTS = 8_192
"""Documents embedded at a time; bounds memory whatever the corpus."""


class Embed(Protocol):
    """Embeds texts as in training; collective where the model is sharded."""

    def __call__(self, texts: Sequence[str], *, side: Side) -> Tensor:
        """Vectors [n, D], float32, norm 1, of all texts, equal on all ranks."""
        ...


def evaluate_set(held_out: StsEvalSet | IrEvalSet, embed: Embed) -> dict[str, float]:
    """Metrics of a set.

    Args:
        held_out: pairs, or queries with a corpus and judgements.
        embed: called with the same texts in the same order on all ranks.

    Returns:
        STS: `spearman` and `pearson` of the cosines. IR: `ndcg_at_10`, `mrr_at_10` and
        `recall_at_100` of exact search over the whole corpus.
    Collective: if `embed` is.
    """
    if isinstance(held_out, StsEvalSet):
        return _evaluate_sts(held_out, embed)
    return _evaluate_ir(held_out, embed)


def _evaluate_sts(held_out: StsEvalSet, embed: Embed) -> dict[str, float]:
    """Correlations of cosine with the gold score."""
    vectors = embed([*held_out.text1, *held_out.text2], side="query")
    first, second = vectors.split(len(held_out.score))
    cosine = (first * second).sum(dim=1).cpu().numpy()
    return {
        "spearman": spearman(cosine, held_out.score),
        "pearson": pearson(cosine, held_out.score),
    }


def _evaluate_ir(held_out: IrEvalSet, embed: Embed) -> dict[str, float]:
    """Rank the corpus for each query."""
    queries = embed(held_out.queries, side="query")
    k = min(RECALL_CUT, len(held_out.corpus_ids))
    _, rows = top_k_streamed(queries, _corpus_blocks(held_out, embed), k)
    top_ids = {
        query: [held_out.corpus_ids[row] for row in best]
        for query, best in zip(held_out.query_ids, rows.tolist(), strict=True)
    }
    return ranking_metrics(top_ids, held_out.qrels)


def _corpus_blocks(held_out: IrEvalSet, embed: Embed) -> Iterator[Tensor]:
    """Vectors of consecutive documents, a block at a time."""
    for start in range(0, len(held_out.corpus), BLOCK_TEXTS):
        stop = min(start + BLOCK_TEXTS, len(held_out.corpus))
        yield embed([held_out.corpus[i] for i in range(start, stop)], side="passage")
