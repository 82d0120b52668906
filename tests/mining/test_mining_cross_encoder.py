"""A cross-encoder scores pairs by its logits, and what is none, or has no weights, is refused."""

import json
import random
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.mining.test_mining_mine import mine, text
from tests.support import corpus, exported, tiny
from tests.support.data_files import write_jsonl
from trainer.errors import RecipeError
from trainer.mining.teacher import load_cross_encoder

# sentence-transformers is imported, and models are loaded many times
pytestmark = pytest.mark.slow
CPU = torch.device("cpu")


def make_cross_encoder(folder: Path, *, num_labels: int = 1) -> Path:
    """A tiny classifier of pairs with random weights, far enough apart to tell pairs."""
    from transformers import AutoModelForSequenceClassification

    config = tiny.bert_config(
        vocab_size=exported.VOCABULARY, pad_token_id=0, num_labels=num_labels,
        initializer_range=0.3,
    )  # fmt: skip
    torch.manual_seed(3)
    AutoModelForSequenceClassification.from_config(config).save_pretrained(folder)
    corpus.save_byte_tokenizer(folder, exported.VOCABULARY)
    return folder


def logits_of(folder: Path, pairs: list[tuple[str, str]]) -> list[float]:
    """Without sentence-transformers, a pair at a time."""
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    model = AutoModelForSequenceClassification.from_pretrained(folder).eval()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    made = []
    for query, passage in pairs:
        tokens = tokenizer(query, passage, truncation=True, max_length=64, return_tensors="pt")
        with torch.no_grad():
            made.append(float(model(**tokens).logits[0, 0]))
    return made


def test_logits_are_the_scores_of_pairs(tmp_path: Path) -> None:
    folder = make_cross_encoder(tmp_path / "model")
    score = load_cross_encoder(str(folder), CPU)
    queries, passages = ["red square", "blue"], ["a red one", "something blue and round", "x"]
    pairs = np.array([[0, 1], [1, 1], [1, 2], [0, 0]], np.int64)
    texts = [(queries[query], passages[passage]) for query, passage in pairs.tolist()]
    wanted = logits_of(folder, texts)
    # of float32 sums in another order
    np.testing.assert_allclose(score(queries, passages, pairs), wanted, atol=1e-5)
    assert np.ptp(wanted) > 0.01


def test_what_is_no_cross_encoder_is_refused(tmp_path: Path) -> None:
    several = make_cross_encoder(tmp_path / "several", num_labels=3)
    with pytest.raises(RecipeError, match="a model with 3 labels; expected 1"):
        load_cross_encoder(str(several), CPU)
    headless = tmp_path / "headless"
    tiny.save_model(tiny.bert_config(vocab_size=exported.VOCABULARY, pad_token_id=0), headless)
    corpus.save_byte_tokenizer(headless, exported.VOCABULARY)
    config = json.loads((headless / "config.json").read_text())
    (headless / "config.json").write_text(json.dumps(config | {"num_labels": 1}))
    with pytest.raises(RecipeError, match=r"--cross-encoder: .*tensors are missing"):
        load_cross_encoder(str(headless), CPU)
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "config.json").write_text("{")
    with pytest.raises(RecipeError, match="not loaded"):
        load_cross_encoder(str(tmp_path / "broken"), CPU)


def test_sentence_transformers_leaves_out_the_same(tmp_path: Path) -> None:
    from datasets import Dataset
    from sentence_transformers import CrossEncoder, SentenceTransformer
    from sentence_transformers.util import mine_hard_negatives

    base = exported.make_base(tmp_path / "base")
    model = exported.make_export(base, tmp_path / "model")
    judge = make_cross_encoder(tmp_path / "judge")
    rng = random.Random(8)
    pairs = [{"query": f"{text(rng)} {n}", "positive": f"{text(rng)} {n}"} for n in range(40)]
    source = write_jsonl(
        tmp_path / "pairs.jsonl",
        [{"query": one["query"], "positives": [one["positive"]]} for one in pairs],
    )
    # theirs are ordered by the cross-encoder, so all are taken
    peer = mine_hard_negatives(
        Dataset.from_list(pairs), SentenceTransformer(str(model), device="cpu"),
        cross_encoder=CrossEncoder(str(judge), device="cpu"), absolute_margin=0.0,
        num_negatives=40, range_max=40, output_format="triplet",
        query_prompt_name="query", corpus_prompt_name="document", verbose=False,
    )  # fmt: skip
    wanted: dict[str, set[str]] = {one["query"]: set() for one in pairs}
    for row in peer:
        wanted[row["query"]].add(row["negative"])
    options = ("--num-negatives", "40", "--cross-encoder", str(judge), "--guide-margin", "0")
    found, record = mine(tmp_path, model, source, *options)
    assert {row["query"]: set(row["negatives"]) for row in found} == wanted
    assert 0 < record["left_out"]["guide_margin"] < 40 * 39
    two, _ = mine(tmp_path, model, source, *options, ranks=2, output="two")
    assert two == found
    for row in found[:3]:
        texts = [*row["positives"], *row["negatives"]]
        given = [*row["positive_scores"], *row["negative_scores"]]
        wanted_scores = logits_of(judge, [(row["query"], one) for one in texts])
        np.testing.assert_allclose(given, wanted_scores, atol=1e-5)
