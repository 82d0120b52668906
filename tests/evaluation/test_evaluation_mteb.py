"""Kinds of held-out sets against mteb's own evaluators, on the same texts and vectors."""

import json
from collections.abc import Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np
import pytest

from tests.support.held_out_sets import Embedder, opened, vector_of, write_sets
from trainer.evaluation.evaluate import evaluate_set

mteb = pytest.importorskip("mteb", reason="needs the extra mteb")
datasets = pytest.importorskip("datasets")
pytestmark = pytest.mark.slow

CLOSE = 1e-6
"""Scores are of the same vectors; sums of float64 are taken in another order."""


MAIN_SCORES = {
    "Classification": "accuracy",
    "Clustering": "v_measure",
    "PairClassification": "cosine_ap",
    "BitextMining": "f1",
    "Reranking": "map_at_1000",
}


class TableModel:
    """What mteb asks of a model; gives the same vectors as `Embedder`."""

    mteb_model_meta = None

    def encode(self, inputs: Any, **_: Any) -> np.ndarray:
        texts = [text for batch in inputs for text in batch["text"]]
        return np.stack([vector_of(text).numpy() for text in texts])

    def similarity(self, first: Any, second: Any) -> Any:
        return mteb.similarity_functions.cos_sim(first, second)

    def similarity_pairwise(self, first: Any, second: Any) -> Any:
        return mteb.similarity_functions.pairwise_cos_sim(first, second)


def rows_of(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def columns(rows: Sequence[dict[str, Any]], **names: str) -> Any:
    """A set of `datasets` with columns by mteb's names."""
    return datasets.Dataset.from_dict(
        {new: [row[old] for row in rows] for new, old in names.items()}
    )


def task(base: type, kind: str, data: Any, **changes: Any) -> Any:
    """A task of a class of mteb, with data of its own."""
    metadata = mteb.TaskMetadata(
        name=f"Local{kind}", description="Local.", type=kind, main_score=MAIN_SCORES[kind],
        dataset={"path": "local/none", "revision": "none"}, eval_langs=["eng-Latn"],
    )  # fmt: skip
    made = type(f"Local{kind}", (base,), {"metadata": metadata, **changes})()
    made.dataset, made.data_loaded = data, True
    return made


def scores(local: Any) -> dict[str, Any]:
    found: dict[str, Any] = local.evaluate(
        TableModel(), split="test", encode_kwargs={"batch_size": 7}
    )
    return found["default"]


@pytest.fixture(scope="module", params=[0, 1, 2])
def sets(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, Path]:
    return write_sets(tmp_path_factory.mktemp("sets"), seed=request.param)


def ours(kind: str, sets: dict[str, Path]) -> dict[str, float]:
    return evaluate_set(opened(kind, sets[kind]), Embedder())


@pytest.mark.parametrize("numbers", [False, True])
def test_classification(sets: dict[str, Path], numbers: bool, tmp_path: Path) -> None:
    parts = {name: rows_of(sets["classification"] / f"{name}.jsonl") for name in ("train", "test")}
    if numbers:
        for rows in parts.values():
            for row in rows:
                row["label"] = len(row["label"])
    for name, rows in parts.items():
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    data = datasets.DatasetDict(
        {name: columns(rows, text="text", label="label") for name, rows in parts.items()}
    )
    theirs = scores(task(mteb.abstasks.AbsTaskClassification, "Classification", data))
    found = evaluate_set(opened("classification", tmp_path), Embedder())
    assert 0.4 < found["accuracy"] < 1
    assert found == pytest.approx(
        {"accuracy": theirs["accuracy"], "f1_macro": theirs["f1"]}, abs=CLOSE
    )


def test_clustering(sets: dict[str, Path]) -> None:
    data = {"test": columns(rows_of(sets["clustering"]), sentences="text", labels="label")}
    whole = {"max_fraction_of_documents_to_embed": None}
    local = task(mteb.abstasks.AbsTaskClustering, "Clustering", datasets.DatasetDict(data), **whole)
    found = ours("clustering", sets)
    assert 0.2 < found["v_measure"] < 1
    assert found == pytest.approx({"v_measure": scores(local)["v_measure"]}, abs=CLOSE)


def test_pair_classification(sets: dict[str, Path]) -> None:
    rows = rows_of(sets["pair_classification"])
    data = {"test": columns(rows, sentence1="text1", sentence2="text2", labels="label")}
    base = mteb.abstasks.AbsTaskPairClassification
    theirs = scores(task(base, "PairClassification", datasets.DatasetDict(data)))
    found = ours("pair_classification", sets)
    assert 0.2 < found["average_precision"] < 1
    assert found == pytest.approx({"average_precision": theirs["cosine_ap"]}, abs=CLOSE)


def test_bitext(sets: dict[str, Path]) -> None:
    data = {"test": columns(rows_of(sets["bitext"]), sentence1="text1", sentence2="text2")}
    base = mteb.abstasks.AbsTaskBitextMining
    theirs = scores(task(base, "BitextMining", datasets.DatasetDict(data)))
    found = ours("bitext", sets)
    assert 0.1 < found["f1"] < 1
    assert found == pytest.approx({"f1": theirs["f1"]}, abs=CLOSE)


def reranking_split(rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Queries with candidates as mteb makes them of its older rows."""
    base = mteb.abstasks.text.reranking.AbsTaskReranking
    made: dict[str, Any] = {"queries": [], "corpus": [], "relevant_docs": {}, "top_ranked": {}}
    for number, row in enumerate(rows):
        example = {
            "query": row["query"],
            "positive": row["positives"],
            "negative": row["negatives"],
        }
        one = base._process_example(None, example, "test", number)
        query, documents = one["query_id"], one["doc_ids"]
        made["queries"].append({"id": query, "text": one["query"]})
        made["corpus"] += [
            {"id": name, "text": text, "title": ""}
            for name, text in zip(documents, one["doc_texts"], strict=True)
        ]
        made["relevant_docs"][query] = dict(zip(documents, one["relevance_scores"], strict=True))
        made["top_ranked"][query] = documents
    return made | {name: datasets.Dataset.from_list(made[name]) for name in ("queries", "corpus")}


def test_reranking(sets: dict[str, Path]) -> None:
    rows = rows_of(sets["reranking"])
    # equal candidates of a query have equal scores
    rows[0]["negatives"][0] = rows[0]["positives"][0]
    local = task(
        mteb.abstasks.AbsTaskRetrieval, "Reranking", {"default": {"test": reranking_split(rows)}}
    )
    by_query: dict[str, dict[str, float]] = {}

    def keep(scores: dict[str, dict[str, float]], *_: Any, **__: Any) -> dict[str, float]:
        by_query.update(scores)
        return {}

    local.task_specific_scores = keep
    theirs = scores(local)
    path = sets["reranking"].with_name("ties.jsonl")
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    found = evaluate_set(opened("reranking", path), Embedder())
    assert len(by_query) == len(rows)
    expected = {
        "map": fmean(one["map_cut_1000"] for one in by_query.values()),
        "ndcg_at_10": fmean(one["ndcg_cut_10"] for one in by_query.values()),
    }
    assert {name: found[name] for name in expected} == pytest.approx(expected, abs=CLOSE)
    assert found["mrr"] == pytest.approx(theirs["mrr_at_1000"], abs=CLOSE)
    # mteb's own means, to the five digits that it shows
    for name, key in {"map": "map_at_1000", "ndcg_at_10": "ndcg_at_10"}.items():
        assert found[name] == pytest.approx(theirs[key], abs=6e-6)
