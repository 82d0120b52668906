"""Scores of held-out sets by their published definitions; it must not embed, search or read files.

Letters: n scored pairs.
"""

from collections.abc import Mapping, Sequence

import numpy as np
import pytrec_eval
from scipy import stats

from trainer.data.beir import MAX_GAIN
from trainer.errors import DataError

NDCG_CUT = 10
"""Ranks that nDCG looks at."""

MRR_CUT = 10
"""Ranks among which the first relevant document must be."""

RECALL_CUT = 100
"""Ranks among which relevant documents are counted; rankings should be this deep."""


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
