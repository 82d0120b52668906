"""Geometry by naive loops and by hand, and what a whole set says of its vectors."""

import json
import math
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.nn.functional import normalize

from trainer.data.evalsets import open_eval_set
from trainer.evaluation.evaluate import examine_set
from trainer.evaluation.geometry import (
    NUM_BINS,
    alignment,
    describe_geometry,
    effective_rank,
    histogram,
    mean_cosine,
    uniformity,
)
from trainer.recipe.kind import Side
from trainer.recipe.schema import DataRecipe, EvalSetRecipe


@pytest.fixture
def vectors() -> Tensor:
    """Unit vectors around a common direction [40, 6]."""
    drawn = torch.randn(40, 6, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    return normalize(drawn + 0.5, dim=1)


def test_alignment_and_uniformity_equal_naive_loops(vectors: Tensor) -> None:
    other = vectors.roll(1, dims=0)
    squares = [float((a - b).square().sum()) for a, b in zip(vectors, other, strict=True)]
    # float64, a few dozen additions
    close = 1e-12
    assert alignment((vectors * other).sum(1)) == pytest.approx(sum(squares) / 40, abs=close)
    kernels = [
        math.exp(-2 * float((vectors[i] - vectors[j]).square().sum()))
        for i in range(40)
        for j in range(i)
    ]
    assert uniformity(vectors) == pytest.approx(math.log(sum(kernels) / len(kernels)), abs=close)
    cosines = [float(vectors[i] @ vectors[j]) for i in range(40) for j in range(i)]
    assert mean_cosine(vectors) == pytest.approx(sum(cosines) / len(cosines), abs=close)


def test_effective_rank_of_known_clouds() -> None:
    # equal singular values: the number of axes; a single direction: 1
    assert effective_rank(torch.eye(7, dtype=torch.float64)) == pytest.approx(7)
    assert effective_rank(torch.ones(9, 4, dtype=torch.float64) / 2) == pytest.approx(1)
    # singular values 3 and 1: shares 3/4 and 1/4
    two = torch.diag(torch.tensor([3.0, 1.0], dtype=torch.float64))
    entropy = -(0.75 * math.log(0.75) + 0.25 * math.log(0.25))
    assert effective_rank(two) == pytest.approx(math.exp(entropy))


def test_equal_vectors_are_a_point() -> None:
    point = torch.tensor([[0.6, 0.8]], dtype=torch.float64).repeat(5, 1)
    assert uniformity(point) == pytest.approx(0, abs=1e-12)
    assert mean_cosine(point) == pytest.approx(1)


def test_histogram_counts_everything_even_past_the_ends() -> None:
    counts = histogram(torch.tensor([-1.0000001, -1.0, 0.01, 0.03, 1.0, 1.0000001]))
    assert len(counts) == NUM_BINS
    assert (counts[0], counts[NUM_BINS // 2], counts[-1]) == (2, 2, 2)
    assert sum(counts) == 6


def test_too_little_to_measure_is_left_out() -> None:
    none = torch.empty(0)
    geometry = describe_geometry(torch.ones(1, 2), positive=none, negative=none, random=none)
    assert geometry.numbers == {}
    assert sum(map(sum, geometry.histograms.values())) == 0


class LetterEmbedder:
    """Counts letters: a text's vector depends on nothing but its letters."""

    def __call__(self, texts: Sequence[str], *, side: Side) -> Tensor:
        counts = [[text.count(letter) + 0.01 for letter in "abcdefgh"] for text in texts]
        return normalize(torch.tensor(counts), dim=1)


def test_a_set_of_pairs_tells_similar_from_dissimilar(tmp_path: Path) -> None:
    pairs = [("aa", "aa a", 5), ("bb", "b", 4.5), ("cc", "d", 0), ("ee", "f", 0.5), ("g", "gh", 3)]
    lines = [json.dumps({"text1": a, "text2": b, "score": s}) + "\n" for a, b, s in pairs]
    (tmp_path / "pairs.jsonl").write_text("".join(lines))
    held_out = EvalSetRecipe(name="pairs", task="sts", path=str(tmp_path / "pairs.jsonl"))
    report = examine_set(open_eval_set(held_out, DataRecipe(sources=())), LetterEmbedder())
    assert report.metrics["spearman"] > 0.8
    histograms = report.geometry.histograms
    assert sum(histograms["positive"]) == 2
    assert sum(histograms["negative"]) == 2
    assert sum(histograms["random"]) == 10  # one for each different text
    # equal letters: alignment about 0; other letters: cosine about 0
    assert report.geometry.alignment == pytest.approx(0, abs=1e-3)
    assert sum(histograms["negative"][NUM_BINS // 2 : NUM_BINS // 2 + 2]) == 2


def test_a_corpus_tells_relevant_from_best_ranked_others(tmp_path: Path) -> None:
    (tmp_path / "qrels").mkdir()
    texts = [("d1", "aaa"), ("d2", "bbb"), ("d3", "ab"), ("d4", "hh")]
    corpus = [json.dumps({"_id": name, "text": text}) + "\n" for name, text in texts]
    (tmp_path / "corpus.jsonl").write_text("".join(corpus))
    queries = [("q1", "a"), ("q2", "b")]
    lines = [json.dumps({"_id": name, "text": text}) + "\n" for name, text in queries]
    (tmp_path / "queries.jsonl").write_text("".join(lines))
    judged = "q1\td1\t1\nq1\td4\t0\nq2\td2\t2\n"
    (tmp_path / "qrels" / "dev.tsv").write_text("query-id\tcorpus-id\tscore\n" + judged)
    held_out = EvalSetRecipe(name="docs", task="ir", path=str(tmp_path))
    report = examine_set(open_eval_set(held_out, DataRecipe(sources=())), LetterEmbedder())
    assert report.metrics["ndcg_at_10"] == 1.0
    histograms = report.geometry.histograms
    # d1 for q1 and d2 for q2; the other three documents for each; one pair a document
    assert [sum(histograms[kind]) for kind in ("positive", "negative", "random")] == [2, 6, 4]
    assert histograms["positive"][-1] == 2


def test_vectors_that_are_not_finite_are_told_and_like_nothing(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    pairs = [("aa", "aa a", 5), ("bb", "b", 4.5), ("cc", "d", 0), ("ee", "hh", 5)]
    lines = [json.dumps({"text1": a, "text2": b, "score": s}) + "\n" for a, b, s in pairs]
    (tmp_path / "pairs.jsonl").write_text("".join(lines))
    held_out = EvalSetRecipe(name="pairs", task="sts", path=str(tmp_path / "pairs.jsonl"))
    opened = open_eval_set(held_out, DataRecipe(sources=()))

    def without_h(texts: Sequence[str], *, side: Side) -> Tensor:
        vectors = LetterEmbedder()(texts, side=side)
        return vectors.masked_fill(vectors[:, 7:] > 0.5, torch.nan)

    report = examine_set(opened, without_h)
    # cosines near 1, 1, 0 and 0 for golds of 1, 0.9, 0 and 1; the letters' 0.01 moves them a little
    assert report.metrics["pearson"] == pytest.approx(0.45 / math.sqrt(0.7075), abs=0.02)
    assert all(map(math.isfinite, report.geometry.numbers.values()))
    assert "1 of 8 texts have embeddings that are not finite" in caplog.text
    assert "'hh'" in caplog.text

    nothing = examine_set(opened, lambda texts, *, side: torch.full((len(texts), 8), torch.nan))
    assert math.isnan(nothing.metrics["spearman"])
    assert "8 of 8 texts" in caplog.text
