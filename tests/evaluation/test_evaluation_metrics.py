"""Metrics by hand-computed values, and search that equals a full sort."""

import math
from collections.abc import Callable, Sequence

import numpy as np
import pytest
import torch
from torch import Tensor

from trainer.errors import DataError
from trainer.evaluation import search
from trainer.evaluation.metrics import pearson, ranking_metrics, spearman
from trainer.evaluation.search import top_k_streamed

Metric = Callable[[Sequence[float], Sequence[float]], float]


def test_spearman_counts_order_only() -> None:
    assert spearman([0.1, 0.2, 0.9, 0.95], [0, 1, 4, 5]) == pytest.approx(1.0)
    assert spearman([0.9, 0.5, 0.1], [0, 1, 2]) == pytest.approx(-1.0)
    # ranks 1 2 3 4 against 1.5 1.5 3 4: correlation of ranks = 4.5 / sqrt(5 * 4.5)
    assert spearman([1, 2, 3, 4], [0, 0, 1, 2]) == pytest.approx(4.5 / math.sqrt(22.5))


def test_pearson_counts_distance() -> None:
    assert pearson([1, 2, 3], [10, 20, 30]) == pytest.approx(1.0)
    # centred -1 0 1 against -4/3 -1/3 5/3
    assert pearson([1, 2, 3], [0, 1, 3]) == pytest.approx(3 / math.sqrt(2 * 42 / 9))


@pytest.mark.parametrize("metric", [spearman, pearson])
def test_equal_predictions_have_no_correlation(metric: Metric) -> None:
    assert math.isnan(metric([0.5, 0.5, 0.5], [0, 1, 2]))


@pytest.mark.parametrize("metric", [spearman, pearson])
def test_pairs_that_do_not_fit_are_refused(metric: Metric) -> None:
    with pytest.raises(DataError, match=r"\[2\] and \[3\]; expected two equal \[n\]"):
        metric([1, 2], [1, 2, 3])
    with pytest.raises(DataError, match="n of at least 2"):
        metric([1], [1])
    with pytest.raises(DataError, match=r"gold scores that are all 4\.0"):
        metric([1, 2], [4, 4])


def test_ranking_metrics_by_hand() -> None:
    qrels = {"a": {"d1": 2, "d2": 1, "d3": 0}, "b": {"d9": 1}}
    top_ids = {"a": ["d3", "d2", "d1"], "b": ["d8", "d9"], "not judged": ["d1"]}
    result = ranking_metrics(top_ids, qrels)
    ideal = 2 / math.log2(2) + 1 / math.log2(3)
    ndcg_a = (1 / math.log2(3) + 2 / math.log2(4)) / ideal  # linear gains, as trec_eval has them
    ndcg_b = 1 / math.log2(3)
    assert result == pytest.approx(
        {"ndcg_at_10": (ndcg_a + ndcg_b) / 2, "mrr_at_10": 0.5, "recall_at_100": 1.0}, rel=1e-6
    )


def test_cuts() -> None:
    ids = [f"d{i}" for i in range(150)]
    at = {name: ranking_metrics({"q": ids}, {"q": {name: 1}}) for name in ("d9", "d10", "d100")}
    assert at["d9"]["mrr_at_10"] == pytest.approx(0.1)
    assert at["d9"]["ndcg_at_10"] == pytest.approx(1 / math.log2(11))
    assert at["d10"] == {"ndcg_at_10": 0.0, "mrr_at_10": 0.0, "recall_at_100": 1.0}
    assert at["d100"]["recall_at_100"] == 0.0


def test_judged_query_without_ranking_counts_as_zero() -> None:
    qrels = {"a": {"d1": 1}, "b": {"d1": 1}}
    assert ranking_metrics({"a": ["d1"]}, qrels)["ndcg_at_10"] == pytest.approx(0.5)
    assert ranking_metrics({"a": ["d1"], "b": []}, qrels)["mrr_at_10"] == pytest.approx(0.5)


def test_order_of_ids_wins_over_their_names() -> None:
    # trec_eval breaks ties of scores by document id; a ranking has none
    for ids in (["a", "z"], ["z", "a"]):
        result = ranking_metrics({"q": ids}, {"q": {"z": 1}})
        assert result["mrr_at_10"] == pytest.approx(1 / (1 + ids.index("z")))


def test_grades_below_zero_count_as_zero() -> None:
    # trec_eval itself writes out of bounds for them
    top_ids = {"a": ["d2", "d1", "d3"], "b": ["d1"]}
    below = {"a": {"d1": 2, "d2": -2, "d3": -1}, "b": {"d1": -7, "d2": 1}}
    zero = {"a": {"d1": 2, "d2": 0, "d3": 0}, "b": {"d1": 0, "d2": 1}}
    assert ranking_metrics(top_ids, below) == ranking_metrics(top_ids, zero)


def test_huge_grades_are_refused() -> None:
    with pytest.raises(DataError, match="grade = 4294967297; expected at most 10000"):
        ranking_metrics({"a": ["d"]}, {"a": {"d": 4294967297}})


def test_documents_without_a_score_come_last() -> None:
    documents = torch.tensor([[1.0, 0.0], [math.nan, 0.0], [-1.0, 0.0]])
    scores, rows = top_k_streamed(torch.tensor([[1.0, 0.0]]), [documents], 3)
    assert rows.tolist() == [[0, 2, 1]]
    assert scores.tolist() == [[1.0, -1.0, -math.inf]]


def test_no_judged_query_is_refused() -> None:
    with pytest.raises(DataError, match="qrels = 0 queries; expected at least 1"):
        ranking_metrics({"q": ["d"]}, {})


def whole_numbers(*shape: int, seed: int) -> Tensor:
    """Small integers: every dot product is exact, and many are equal."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(-2, 3, shape, generator=generator).float()


def by_full_sort(queries: Tensor, corpus: Tensor, k: int) -> tuple[list, list]:
    all_scores, all_rows = [], []
    for row in (queries @ corpus.T).tolist():
        best = sorted(range(len(row)), key=lambda i: (-row[i], i))[:k]
        all_rows.append(best)
        all_scores.append([row[i] for i in best])
    return all_scores, all_rows


@pytest.mark.parametrize("block_rows", [1, 7, 100, 1000])
@pytest.mark.parametrize("k", [1, 10, 200])
def test_search_equals_a_full_sort_with_ties(block_rows: int, k: int) -> None:
    queries, corpus = whole_numbers(9, 4, seed=0), whole_numbers(100, 4, seed=1)
    scores, rows = top_k_streamed(queries, corpus.split(block_rows), k)
    assert (scores.tolist(), rows.tolist()) == by_full_sort(queries, corpus, k)
    assert (scores.dtype, rows.dtype) == (torch.float32, torch.int64)


def test_search_in_pieces_of_the_queries(monkeypatch: pytest.MonkeyPatch) -> None:
    queries, corpus = whole_numbers(9, 4, seed=0), whole_numbers(50, 4, seed=1)
    monkeypatch.setattr(search, "SCORE_BYTES", 2 * 4 * 25)  # two queries at a time
    scores, rows = top_k_streamed(queries, corpus.split(25), 5)
    assert (scores.tolist(), rows.tolist()) == by_full_sort(queries, corpus, 5)


def test_search_keeps_the_bits_of_scores() -> None:
    generator = torch.Generator().manual_seed(2)
    values = torch.randn(300, 1, generator=generator) * 1e-3
    scores, rows = top_k_streamed(torch.ones(1, 1), values.split(64), 300)
    assert torch.equal(scores[0], values[:, 0].sort(descending=True).values)
    assert torch.equal(values[rows[0], 0], scores[0])


def test_search_orders_signed_zeros_by_row() -> None:
    blocks = [np.array([[0.0], [-0.0], [-1.0], [0.0], [1.0]], dtype=np.float32)]
    scores, rows = top_k_streamed(torch.ones(1, 1), blocks, 5)
    assert rows.tolist() == [[4, 0, 1, 3, 2]]
    assert scores.tolist() == [[1.0, 0.0, 0.0, 0.0, -1.0]]


def test_search_of_an_empty_corpus() -> None:
    scores, rows = top_k_streamed(torch.ones(3, 2), [], 5)
    assert (scores.shape, rows.shape) == ((3, 0), (3, 0))


def test_search_refuses_another_embedding_size() -> None:
    with pytest.raises(DataError, match=r"corpus block = \[4, 3\]; expected \[n, 2\]"):
        top_k_streamed(torch.ones(3, 2), [torch.ones(4, 3)], 5)
