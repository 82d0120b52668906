"""Kinds of held-out sets against mteb's own evaluators, on the same texts and vectors."""

import json
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np
import pytest

from tests.support.held_out_sets import Embedder, opened, vector_of, write_sets
from trainer.data.held_out_records import Candidates
from trainer.data.reranking import RerankingSet
from trainer.evaluation.evaluate import evaluate_set

pytestmark = [pytest.mark.slow, pytest.mark.mteb]

CLOSE = 1e-6
"""Scores are of the same vectors; sums of float64 are taken in another order."""


class TableModel:
    """What mteb asks of a model; gives the same vectors as `Embedder`."""

    mteb_model_meta = None

    def encode(self, inputs: Any, **_: Any) -> np.ndarray:
        texts = [text for batch in inputs for text in batch["text"]]
        return np.stack([vector_of(text).numpy() for text in texts])

    def similarity(self, first: Any, second: Any) -> Any:
        from mteb.similarity_functions import cos_sim

        return cos_sim(first, second)

    def similarity_pairwise(self, first: Any, second: Any) -> Any:
        from mteb.similarity_functions import pairwise_cos_sim

        return pairwise_cos_sim(first, second)


def both(kind: str, path: Path) -> tuple[dict[str, float], dict[str, Any]]:
    """Our scores of a set and mteb's."""
    from tests.support.mteb_tasks import local_task

    theirs = local_task(kind, path).evaluate(
        TableModel(), split="test", encode_kwargs={"batch_size": 7}
    )
    return evaluate_set(opened(kind, path), Embedder()), theirs["default"]


@pytest.fixture(scope="module", params=[0, 1, 2])
def sets(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, Path]:
    return write_sets(tmp_path_factory.mktemp("sets"), seed=request.param)


@pytest.mark.parametrize("numbers", [False, True])
def test_classification(sets: dict[str, Path], numbers: bool, tmp_path: Path) -> None:
    for name in ("train.jsonl", "test.jsonl"):
        text = (sets["classification"] / name).read_text()
        if numbers:
            for number, label in enumerate(("grey", "blue", "green", "red")):
                text = text.replace(f'"label": "{label}"', f'"label": {number}')
        (tmp_path / name).write_text(text)
    found, theirs = both("classification", tmp_path)
    assert 0.4 < found["accuracy"] < 1
    expected = {"accuracy": theirs["accuracy"], "f1_macro": theirs["f1"]}
    assert found == pytest.approx(expected, abs=CLOSE)


@pytest.mark.parametrize(
    ("kind", "metric", "key", "low"),
    [
        ("clustering", "v_measure", "v_measure", 0.2),
        ("pair_classification", "average_precision", "cosine_ap", 0.2),
        ("bitext", "f1", "f1", 0.1),
    ],
)
def test_kinds_of_one_metric(
    kind: str, metric: str, key: str, low: float, sets: dict[str, Path]
) -> None:
    found, theirs = both(kind, sets[kind])
    assert low < found[metric] < 1
    assert found == pytest.approx({metric: theirs[key]}, abs=CLOSE)


def test_reranking(sets: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    import mteb

    rows = [json.loads(line) for line in sets["reranking"].read_text().splitlines()]
    # equal candidates of a query have equal scores
    rows[0]["negatives"][0] = rows[0]["positives"][0]
    path = sets["reranking"].with_name("ties.jsonl")
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    by_query: dict[str, dict[str, float]] = {}

    def keep(
        task: Any, scores: dict[str, dict[str, float]], *_: Any, **__: Any
    ) -> dict[str, float]:
        by_query.update(scores)
        return {}

    # scores of each query: mteb rounds their means to five digits
    monkeypatch.setattr(mteb.abstasks.AbsTaskRetrieval, "task_specific_scores", keep)
    found, theirs = both("reranking", path)
    assert len(by_query) == len(rows)
    expected = {
        "map": fmean(one["map_cut_1000"] for one in by_query.values()),
        "mrr": theirs["mrr_at_1000"],
        "ndcg_at_10": fmean(one["ndcg_cut_10"] for one in by_query.values()),
    }
    assert found == pytest.approx(expected, abs=CLOSE)
    for name, key in {"map": "map_at_1000", "ndcg_at_10": "ndcg_at_10"}.items():
        assert found[name] == pytest.approx(theirs[key], abs=6e-6)


def test_grades_and_answers_that_are_not_ranked_count_as_there(sets: dict[str, Path]) -> None:
    from tests.support.mteb_tasks import local_task

    task = local_task("reranking", sets["reranking"])
    data = task.dataset["default"]["test"]
    rows = [json.loads(line) for line in sets["reranking"].read_text().splitlines()]
    of_query, ours = list(data["relevant_docs"].values()), []
    for number, row in enumerate(rows):
        judged = of_query[number]
        answers = [name for name, gain in judged.items() if gain]
        gains = [1 + (number + at) % 3 for at in range(len(answers))]
        judged |= dict(zip(answers, gains, strict=True))
        # every third query is answered by the first candidate of another one, which is not ranked
        missed = (2,) if number % 3 == 0 else ()
        other = data["corpus"]["id"][0 if number else -1]
        judged |= {other: 2} if missed else {}
        ours.append(
            Candidates(row["query"], tuple(row["positives"]), tuple(row["negatives"]),
                       gains=tuple(gains), missed=missed)
        )  # fmt: skip
    theirs = task.evaluate(TableModel(), split="test", encode_kwargs={"batch_size": 7})["default"]
    found = evaluate_set(RerankingSet(rows=tuple(ours)), Embedder())
    keys = {"map": "map_at_1000", "mrr": "mrr_at_1000", "ndcg_at_10": "ndcg_at_10"}
    for name, key in keys.items():
        # mteb rounds its means to five digits
        assert found[name] == pytest.approx(theirs[key], abs=6e-6)
    assert found["map"] < 1
