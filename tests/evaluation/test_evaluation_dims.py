"""Scores of prefixes are those of a plain computation, from vectors that are embedded once.

Letters: D embedding size.
"""

import hashlib
from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn.functional import normalize

from trainer.data.ir import IrEvalSet
from trainer.data.sts import StsEvalSet
from trainer.evaluation import ir
from trainer.evaluation.evaluate import evaluate_set, examine_set
from trainer.evaluation.metrics import pearson, ranking_metrics, spearman
from trainer.recipe.kind import Side

D = 24
DIMS = (16, 5, 1)


class RandomEmbedder:
    """A random unit vector for each text, always the same one; counts texts."""

    def __init__(self) -> None:
        self.seen: Counter[str] = Counter()

    def __call__(self, texts: Sequence[str], *, side: Side) -> Tensor:
        self.seen.update(texts)
        return torch.stack([vector_of(text) for text in texts])


def vector_of(text: str) -> Tensor:
    seed = int.from_bytes(hashlib.sha256(text.encode()).digest()[:6], "big")
    vector = torch.randn(D, generator=torch.Generator().manual_seed(seed))
    return normalize(vector, dim=0)


def prefixes(texts: Sequence[str], dim: int) -> np.ndarray:
    """Normalised prefixes [n, dim], float64."""
    rows = np.stack([vector_of(text).double().numpy()[:dim] for text in texts])
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


@pytest.fixture
def pairs() -> StsEvalSet:
    rng = np.random.default_rng(0)
    texts = [f"text {number}" for number in range(30)]
    first, second = (tuple(map(str, rng.choice(texts, 50))) for _ in range(2))
    return StsEvalSet(text1=first, text2=second, score=tuple(rng.random(50).tolist()))


@pytest.fixture
def documents() -> IrEvalSet:
    rng = np.random.default_rng(1)
    # a list has what is asked of a corpus
    corpus: Any = [f"document {number}" for number in range(205)]
    ids = tuple(f"d{number}" for number in range(205))
    queries = tuple(f"query {number}" for number in range(9))
    qrels = {
        f"q{number}": {str(one): int(rng.integers(1, 4)) for one in rng.choice(ids, 12)}
        for number in range(9)
    }
    return IrEvalSet(
        query_ids=tuple(qrels), queries=queries, corpus_ids=ids, corpus=corpus, qrels=qrels
    )


def test_prefixes_of_pairs(pairs: StsEvalSet) -> None:
    embed = RandomEmbedder()
    report = examine_set(pairs, embed, DIMS)
    assert list(report.dims) == [D, *DIMS]
    assert report.dims[D] == report.metrics == evaluate_set(pairs, RandomEmbedder())
    for dim, metrics in report.dims.items():
        first, second = (prefixes(texts, dim) for texts in (pairs.text1, pairs.text2))
        cosines = (first * second).sum(axis=1)
        # of one dimension all cosines are 1 or -1: sums in float32 must be that, too
        cosines = cosines.round(6) if dim == 1 else cosines
        assert metrics["pearson"] == pytest.approx(pearson(cosines, pairs.score), abs=1e-5)
        # no two cosines of random vectors are so close that float32 could swap them
        assert metrics["spearman"] == pytest.approx(spearman(cosines, pairs.score), abs=1e-9)
    assert set(embed.seen.values()) == {1}


@pytest.mark.parametrize("block", [7, 100, 205])
def test_prefixes_of_a_corpus(
    documents: IrEvalSet, block: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ir, "BLOCK_TEXTS", block)
    embed = RandomEmbedder()
    report = examine_set(documents, embed, DIMS[:2])
    assert list(report.dims) == [D, *DIMS[:2]]
    assert report.dims[D] == report.metrics == evaluate_set(documents, RandomEmbedder())
    for dim, metrics in report.dims.items():
        scores = prefixes(documents.queries, dim) @ prefixes(list(documents.corpus), dim).T
        ranked = np.argsort(-scores, axis=1)[:, :100]
        best = {
            query: [documents.corpus_ids[row] for row in rows]
            for query, rows in zip(documents.query_ids, ranked, strict=True)
        }
        # the same ranking, and so the same numbers
        assert metrics == pytest.approx(ranking_metrics(best, documents.qrels), abs=1e-12)
    assert set(embed.seen.values()) == {1}


def test_sizes_that_cut_nothing_are_left_out(pairs: StsEvalSet) -> None:
    for dims in ((), (D,), (2 * D,)):
        assert examine_set(pairs, RandomEmbedder(), dims).dims == {}
    # the whole vector comes first, whatever is asked for, and nothing is scored twice
    assert list(examine_set(pairs, RandomEmbedder(), (5, 2 * D, 16, 5)).dims) == [D, 16, 5]


def test_prefixes_that_are_not_finite_are_like_nothing(pairs: StsEvalSet) -> None:
    def broken(texts: Sequence[str], *, side: Side) -> Tensor:
        vectors = RandomEmbedder()(texts, side=side)
        # one vector that is not finite, and one whose prefix is zero
        vectors[0] = torch.nan
        vectors[1, :5] = 0
        return normalize(vectors, dim=1)

    for metrics in examine_set(pairs, broken, (5,)).dims.values():
        assert all(np.isfinite(value) for value in metrics.values())
