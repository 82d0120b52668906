"""Kinds of held-out sets that are no task: scores equal those of their definitions.

Letters: D embedding size.
"""

import json
import math
from collections.abc import Sequence
from pathlib import Path
from statistics import fmean

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from torch import Tensor

from tests.support.held_out_sets import KINDS, D, Embedder, opened, vector_of, write_sets
from trainer.data.held_out_records import Candidates
from trainer.evaluation import examine, paired, reranking
from trainer.evaluation.evaluate import evaluate_set, examine_set
from trainer.evaluation.label_metrics import (
    classification_scores,
    clustering_draws,
    clustering_score,
    few_shot_rows,
)
from trainer.recipe.eval_kinds import EVAL_KINDS
from trainer.recipe.kind import Side


@pytest.fixture(scope="module")
def sets(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return write_sets(tmp_path_factory.mktemp("sets"))


def rows_of(path: Path) -> list[dict[str, object]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_no_two_kinds_have_one_main_metric() -> None:
    main = [kind.main_metric for kind in EVAL_KINDS.values()]
    assert len(set(main)) == len(main)


def test_few_shots_are_drawn_as_mteb_draws_them() -> None:
    labels = np.array([0, 1] * 20)
    experiments = few_shot_rows(labels)
    assert len(experiments) == 10
    order = list(range(40))
    for rows in experiments:
        order = [order[i] for i in np.random.RandomState(42).permutation(40)]
        first = [[row for row in order if labels[row] == one][:8] for one in (0, 1)]
        assert rows.tolist() == [row for row in order if row in first[0] + first[1]]
    # a label with fewer rows gives all of them
    few = few_shot_rows(np.array([0, 1, 0]))
    assert [sorted(rows) for rows in few] == [[0, 1, 2]] * 10


def test_classification_is_the_mean_of_classifiers() -> None:
    rng = np.random.default_rng(0)
    labels = [0, 1, 2] * 8
    centres = np.eye(3, 5)[labels]
    experiments = [
        ((centres + rng.normal(size=(24, 5)) * scale).astype(np.float32), labels)
        for scale in (0.6, 0.9)
    ]
    test = (centres + rng.normal(size=(24, 5)) * 0.7).astype(np.float32)
    right, f1s = [], []
    for vectors, learnt in experiments:
        found = LogisticRegression(random_state=42).fit(vectors, learnt).predict(test).tolist()
        right.append(fmean(a == b for a, b in zip(found, labels, strict=True)))
        parts = []
        for label in range(3):
            both = sum(a == b == label for a, b in zip(found, labels, strict=True))
            parts.append(2 * both / (found.count(label) + labels.count(label)))
        f1s.append(fmean(parts))
    assert right[0] != right[1]
    # sums of float64
    expected = pytest.approx({"accuracy": fmean(right), "f1_macro": fmean(f1s)}, abs=1e-12)
    arrays = [(vectors, np.array(learnt)) for vectors, learnt in experiments]
    assert classification_scores(arrays, test, np.array(labels)) == expected


def test_clusterings_are_of_draws_with_repeats() -> None:
    draws = clustering_draws(3)
    assert [len(rows) for rows in draws] == [16_384] * 10
    assert {row for rows in draws for row in rows} == {0, 1, 2}
    vectors = np.eye(3, dtype=np.float32)
    labels = np.array([0, 1, 1])
    alike = [(vectors[rows], labels[rows]) for rows in draws[:2]]
    # three clusters of two labels: homogeneous, and complete as far as h(labels | clusters) says
    shares = [np.bincount(rows, minlength=3) / len(rows) for rows in draws[:2]]
    scores = []
    for a, b, c in shares:
        clusters = -sum(p * math.log(p) for p in (a, b, c))
        within = -sum(p * math.log(p / (b + c)) for p in (b, c))
        completeness = 1 - within / clusters
        scores.append(2 * completeness / (1 + completeness))
    # sums of float64
    found = clustering_score(alike, num_labels=3)
    assert found == pytest.approx({"v_measure": fmean(scores)}, abs=1e-9)


def test_pairs_are_ranked_by_cosine() -> None:
    first = torch.tensor([[1.0, 0], [1, 0], [0, 0], [0.6, 0.8]])
    second = torch.tensor([[1.0, 0], [0.6, 0.8], [0, 1], [0.6, 0.8]])
    found = paired.cosines_of_pairs(first, second)
    assert found.dtype == np.float32
    # equal vectors have exactly 1, and a vector of zeros is like nothing
    assert found.tolist() == pytest.approx([1, 0.6, 0, 1], abs=1e-6)
    assert (found[0], found[2], found[3]) == (1, 0, 1)


def test_average_precision_of_pairs(sets: dict[str, Path]) -> None:
    rows = rows_of(sets["pair_classification"])
    cosines = [float(vector_of(str(r["text1"])) @ vector_of(str(r["text2"]))) for r in rows]
    order = sorted(range(len(rows)), key=lambda row: -cosines[row])
    truth = [rows[row]["label"] for row in order]
    places = [place for place, label in enumerate(truth, 1) if label]
    precisions = [(number + 1) / place for number, place in enumerate(places)]
    found = evaluate_set(opened("pair_classification", sets["pair_classification"]), Embedder())
    assert found == pytest.approx({"average_precision": fmean(precisions)}, abs=1e-12)


def test_candidates_are_ranked_by_cosine_and_ties_go_to_negatives() -> None:
    rows = [Candidates("q", ("a", "b"), ("c", "d")), Candidates("r", ("a",), ("b",))]
    scores = [torch.tensor([0.9, 0.5, 0.7, 0.5]), torch.tensor([0.5, 0.5])]
    first, second = reranking.ranking_values(rows, scores)
    # the order is a, c, d, b: the tie of b and d goes to the negative
    gains = 1 + 1 / math.log2(5)
    assert first == pytest.approx(
        {"map": (1 + 2 / 4) / 2, "mrr": 1, "ndcg_at_10": gains / (1 + 1 / math.log2(3))}, abs=1e-6
    )
    assert second == pytest.approx(
        {"map": 1 / 2, "mrr": 1 / 2, "ndcg_at_10": 1 / math.log2(3)}, abs=1e-6
    )


def test_reranking_is_the_mean_over_queries(sets: dict[str, Path]) -> None:
    values: dict[str, list[float]] = {"map": [], "mrr": [], "ndcg_at_10": []}
    for row in rows_of(sets["reranking"]):
        positives, negatives = row["positives"], row["negatives"]
        assert isinstance(positives, list)
        assert isinstance(negatives, list)
        query = vector_of(str(row["query"]))
        scored = [(-float(query @ vector_of(text)), text in positives)
                  for text in [*positives, *negatives]]  # fmt: skip
        found = [place for place, (_, good) in enumerate(sorted(scored), 1) if good]
        values["map"].append(fmean((i + 1) / place for i, place in enumerate(found)))
        values["mrr"].append(1 / found[0])
        best = sum(1 / math.log2(i + 2) for i in range(len(found)))
        values["ndcg_at_10"].append(sum(1 / math.log2(p + 1) for p in found if p <= 10) / best)
    expected = {name: fmean(some) for name, some in values.items()}
    # trec_eval's sums are of float64
    embed = Embedder()
    found_values = evaluate_set(opened("reranking", sets["reranking"]), embed)
    assert found_values == pytest.approx(expected, abs=1e-9)
    queries = {str(row["query"]) for row in rows_of(sets["reranking"])}
    assert {text for text, side in embed.seen if side == "query"} == queries


def test_f1_of_translations() -> None:
    # rows 0 and 1 find row 0, row 2 finds itself: F1 of 2/3, 0 and 1
    assert paired._matched(np.array([0, 0, 2])) == pytest.approx({"f1": 5 / 9}, abs=1e-12)


def test_translations_are_nearest_neighbours(sets: dict[str, Path]) -> None:
    rows = rows_of(sets["bitext"])
    first, second = (
        torch.stack([vector_of(str(row[name])) for row in rows]) for name in ("text1", "text2")
    )
    nearest = (first @ second.T).argmax(dim=1).numpy()
    found = evaluate_set(opened("bitext", sets["bitext"]), Embedder())
    assert found == paired._matched(nearest)
    assert 0.1 < found["f1"] < 1


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_is_scored_in_blocks_by_prefixes_and_with_geometry(
    kind: str, sets: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    held_out, embed = opened(kind, sets[kind]), Embedder()
    report = examine_set(held_out, embed, (6,))
    assert list(report.metrics) == list(EVAL_KINDS[kind].metrics)
    assert all(0 < value <= 1 for value in report.metrics.values())
    assert list(report.dims) == [D, 6]
    assert report.dims[D] == report.metrics
    assert {side for _, side in embed.seen} == set(EVAL_KINDS[kind].prompts)
    assert set(embed.seen.values()) == {1}

    def short(texts: Sequence[str], *, side: Side) -> Tensor:
        vectors = torch.stack([vector_of(text) for text in texts])[:, :6]
        return torch.nn.functional.normalize(vectors, dim=1)

    assert evaluate_set(held_out, short) == report.dims[6]
    geometry = report.geometry
    assert set(geometry.numbers) == {"alignment", "uniformity", "mean_cosine", "effective_rank"}
    assert all(sum(bins) > 0 for bins in geometry.histograms.values())
    # pairs that belong together lie closer than pairs made by chance
    assert geometry.alignment < 2 - 2 * geometry.mean_cosine
    for module in (examine, paired, reranking):
        monkeypatch.setattr(module, "BLOCK_TEXTS", 14)
    blocks = examine_set(held_out, Embedder(), (6,))
    assert (blocks.metrics, blocks.dims) == (report.metrics, report.dims)
    assert blocks.geometry.numbers == pytest.approx(geometry.numbers, abs=1e-6)


@pytest.mark.parametrize("kind", KINDS)
def test_vectors_that_are_not_finite_leave_scores_that_are(
    kind: str, sets: dict[str, Path]
) -> None:
    def broken(texts: Sequence[str], *, side: Side) -> Tensor:
        vectors = torch.stack([vector_of(text) for text in texts])
        vectors[0] = torch.nan
        return vectors

    report = examine_set(opened(kind, sets[kind]), broken, (6,))
    for metrics in report.dims.values():
        assert all(0 <= value <= 1 for value in metrics.values())
