"""Scores of held-out sets, and the exact search they need; it must not embed or read files.

Letters: Q queries, D embedding size, n rows of a corpus block or scored pairs, k rows kept.
"""

from collections.abc import Iterable, Mapping, Sequence

import numpy as np
import pytrec_eval
import torch
from scipy import stats
from torch import Tensor

from trainer.data.beir import MAX_GAIN
from trainer.errors import DataError

NDCG_CUT = 10
"""Ranks that nDCG looks at."""

MRR_CUT = 10
"""Ranks among which the first relevant document must be."""

RECALL_CUT = 100
"""Ranks among which relevant documents are counted; rankings should be this deep."""

SCORE_BYTES = 16 * 2**20
"""Largest block of query-document scores held at once, bytes; making its sort keys takes about
eight times that."""

_LOW_BITS = 2**32 - 1


def spearman(pred: Sequence[float] | np.ndarray, gold: Sequence[float] | np.ndarray) -> float:
    """Spearman rank correlation, ties sharing their mean rank.

    Args:
        pred: predicted similarities [n].
        gold: gold scores [n].

    Returns:
        -1 to 1; NaN if all predictions are equal, where no correlation is defined.

    Raises:
        DataError: if there are not two equal [n] with n of at least 2, or all golds are equal.
    """
    pairs = _read_pairs(pred, gold, "spearman")
    return float("nan") if pairs is None else float(stats.spearmanr(*pairs).statistic)


def pearson(pred: Sequence[float] | np.ndarray, gold: Sequence[float] | np.ndarray) -> float:
    """Pearson correlation.

    Args:
        pred: predicted similarities [n].
        gold: gold scores [n].

    Returns:
        -1 to 1; NaN if all predictions are equal, where no correlation is defined.

    Raises:
        DataError: if there are not two equal [n] with n of at least 2, or all golds are equal.
    """
    pairs = _read_pairs(pred, gold, "pearson")
    return float("nan") if pairs is None else float(stats.pearsonr(*pairs).statistic)


def ranking_metrics(
    top_ids: Mapping[str, Sequence[str]], qrels: Mapping[str, Mapping[str, int]]
) -> dict[str, float]:
    """Means over the judged queries, by trec_eval's own code and definitions.

    nDCG gains are the judged grades themselves, discounted by log2(rank + 1), against the ideal
    order of all judged documents. A judged query without a ranking counts as 0 everywhere.

    Args:
        top_ids: document ids of each query, best first, each once, at least RECALL_CUT where the
            corpus has as many. Queries that are not in `qrels` are left out.
        qrels: grade of each judged document by query; above 0 is relevant, below 0 counts as 0.

    Returns:
        `ndcg_at_10`, `mrr_at_10` and `recall_at_100`, each 0 to 1.

    Raises:
        DataError: if no query is judged, or a grade is above MAX_GAIN.
    """
    if not qrels:
        raise DataError("evaluation: qrels = 0 queries; expected at least 1. Check the split.")
    judged = {
        query: {document: _checked(grade) for document, grade in grades.items()}
        for query, grades in qrels.items()
    }
    deep = {query: _as_run(ids) for query, ids in top_ids.items() if query in judged}
    cut = {query: _as_run(top_ids[query][:MRR_CUT]) for query in deep}
    ndcg, recall = f"ndcg_cut_{NDCG_CUT}", f"recall_{RECALL_CUT}"
    scored = pytrec_eval.RelevanceEvaluator(judged, {ndcg, recall}).evaluate(deep)
    first = pytrec_eval.RelevanceEvaluator(judged, {"recip_rank"}).evaluate(cut)
    return {
        f"ndcg_at_{NDCG_CUT}": sum(row[ndcg] for row in scored.values()) / len(judged),
        f"mrr_at_{MRR_CUT}": sum(row["recip_rank"] for row in first.values()) / len(judged),
        f"recall_at_{RECALL_CUT}": sum(row[recall] for row in scored.values()) / len(judged),
    }


def top_k_streamed(
    queries: Tensor, corpus_blocks: Iterable[Tensor | np.ndarray], k: int
) -> tuple[Tensor, Tensor]:
    """The k rows of a corpus with the largest dot product, exactly, one block at a time.

    Equal scores are ordered by row, the earlier first; scores that are not a number come last.
    Memory does not grow with the corpus.

    Args:
        queries: query embeddings [Q, D]; unit norm for cosine similarity. Scores are float32.
        corpus_blocks: consecutive rows of the corpus, each [n, D]; fewer than 2^32 rows in all.
        k: rows kept, at least 1.

    Returns:
        Scores, float32, and row numbers over all blocks, int64, both [Q, min(k, rows)], best first.

    Raises:
        DataError: if a block has another embedding size than the queries.
    """
    queries = queries.detach().float()
    keys = torch.empty((len(queries), 0), dtype=torch.int64, device=queries.device)
    first_row = 0
    for block in corpus_blocks:
        documents = torch.as_tensor(block).detach().to(queries.device, torch.float32)
        if documents.ndim != 2 or documents.shape[1] != queries.shape[1]:
            got, expected = list(documents.shape), f"[n, {queries.shape[1]}]"
            raise DataError(
                f"evaluation: corpus block = {got}; expected {expected}. "
                "Embed queries and documents with the same model."
            )
        num_queries = max(1, SCORE_BYTES // (4 * max(1, len(documents))))
        pieces = zip(queries.split(num_queries), keys.split(num_queries), strict=True)
        keys = torch.cat([_keep_best(*piece, documents, first_row, k) for piece in pieces])
        first_row += len(documents)
    return _decode(keys)


def _keep_best(queries: Tensor, keys: Tensor, documents: Tensor, first_row: int, k: int) -> Tensor:
    """The k largest keys [Q, at most k] of those so far and of a new block, largest first."""
    new = _encode(queries @ documents.T, first_row)
    new = new.topk(min(k, new.shape[1]), sorted=False).values
    both = torch.cat([keys, new], dim=1)
    return both.topk(min(k, both.shape[1])).values


def _encode(scores: Tensor, first_row: int) -> Tensor:
    """Unique int64 keys [Q, n] that order as (score descending, row ascending) when descending."""
    # -0.0 becomes 0.0
    bits = torch.where(scores.isnan(), -torch.inf, scores + 0.0).view(torch.int32)
    # IEEE 754: flipping the lower 31 bits of negative numbers makes integers order as floats.
    ordered = torch.where(bits < 0, bits ^ 0x7FFFFFFF, bits).to(torch.int64)
    rows = torch.arange(first_row, first_row + scores.shape[1], device=scores.device)
    return (ordered << 32) + (_LOW_BITS - rows)


def _decode(keys: Tensor) -> tuple[Tensor, Tensor]:
    """Scores and rows of the keys that `_encode` made."""
    ordered = (keys >> 32).to(torch.int32)
    bits = torch.where(ordered < 0, ordered ^ 0x7FFFFFFF, ordered)
    return bits.view(torch.float32), _LOW_BITS - (keys & _LOW_BITS)


def _checked(grade: int) -> int:
    """A grade as trec_eval can take it: negative ones make it write where it must not."""
    if grade > MAX_GAIN:
        raise DataError(
            f"evaluation: grade = {grade}; expected at most {MAX_GAIN}. Scale the judgements down."
        )
    return max(grade, 0)


def _as_run(ids: Sequence[str]) -> dict[str, float]:
    """Ids with falling scores, so that trec_eval, which sorts by score, keeps their order."""
    return {document: float(len(ids) - place) for place, document in enumerate(ids)}


def _read_pairs(
    pred: Sequence[float] | np.ndarray, gold: Sequence[float] | np.ndarray, metric: str
) -> tuple[np.ndarray, np.ndarray] | None:
    """Both in float64 [n], or None if the predictions are all equal."""
    values, scores = np.asarray(pred, dtype=np.float64), np.asarray(gold, dtype=np.float64)
    if values.ndim != 1 or values.shape != scores.shape or len(values) < 2:
        got = f"{list(values.shape)} and {list(scores.shape)}"
        raise DataError(
            f"evaluation: {metric} of {got}; expected two equal [n] with n of at least 2. "
            "Give one gold score per prediction."
        )
    if (scores == scores[0]).all():
        raise DataError(
            f"evaluation: {metric} of gold scores that are all {scores[0]}; expected at least two "
            "that differ. Check the set's score field."
        )
    return None if (values == values[0]).all() else (values, scores)
