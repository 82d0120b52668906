"""Tiny seeded models and batches for engine tests."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import AutoModel, BertConfig, PretrainedConfig, Qwen3Config

from trainer.data.batch import Batch, IrBatch, LabelsBatch, StepPlan, StsBatch, Texts
from trainer.recipe.embedding_distillation import EmbeddingDistillationRecipe
from trainer.recipe.ir import DistillationRecipe, IrRecipe, MaskRecipe
from trainer.recipe.schema import (
    DataRecipe,
    EngineRecipe,
    MatryoshkaRecipe,
    ModelRecipe,
    ProjectionRecipe,
    Recipe,
    SourceRecipe,
    TrainRecipe,
)
from trainer.recipe.sts import StsRecipe, similarity_weights

VOCABULARY = 97
TEACHER_SIZE = 24
"""Elements of a teacher's vectors, and of a composed recipe's projection."""


def qwen3_config(**changes: Any) -> PretrainedConfig:
    """Four decoder layers of 32."""
    settings = {
        "vocab_size": VOCABULARY,
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 4,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 8,
        "max_position_embeddings": 64,
        "initializer_range": 0.15,
    }
    return Qwen3Config(**(settings | changes))


def bert_config(**changes: Any) -> PretrainedConfig:
    """Two encoder layers of 32, without dropout."""
    settings = {
        "vocab_size": VOCABULARY,
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "max_position_embeddings": 64,
        "hidden_dropout_prob": 0.0,
        "attention_probs_dropout_prob": 0.0,
    }
    return BertConfig(**(settings | changes))


def save_model(config: PretrainedConfig, folder: Path) -> Path:
    """Random seeded weights as an ordinary model folder."""
    torch.manual_seed(0)
    AutoModel.from_config(config).save_pretrained(folder)
    return folder


def make_recipe(path: Path, **changes: Any) -> Recipe:
    """A recipe around a model folder; `changes` replace whole sections."""
    sections: dict[str, Any] = {
        "name": "tiny",
        "output_dir": "unused",
        "model": ModelRecipe(path=str(path)),
        "data": DataRecipe(
            sources=(
                SourceRecipe(name="ir", task="ir", path="unused"),
                SourceRecipe(name="sts", task="sts", path="unused"),
            ),
            pattern={"ir": 1, "sts": 1},
        ),
        "tasks": {
            "ir": IrRecipe(global_batch_size=8, positives=2, negatives=1, temperature=0.1),
            "sts": StsRecipe(global_batch_size=8),
        },
        "train": TrainRecipe(
            max_steps=3,
            optimizer="sgd",
            schedule="constant",
            learning_rate=0.005,
            max_grad_norm=0.0,
            weight_decay=0.0,
        ),
        "engine": EngineRecipe(max_tokens_per_chunk=64),
    }
    return Recipe(**(sections | changes))


def composed_recipe(path: Path, **changes: Any) -> Recipe:
    """All at once: directions, masks, weightings, teachers, prefixes, a projection."""
    vectors = EmbeddingDistillationRecipe(weight=3.0)
    sections: dict[str, Any] = {
        "data": DataRecipe(
            sources=tuple(
                SourceRecipe(name=task, task=task, path="unused", teacher_embeddings="unused")
                for task in ("ir", "sts")
            )
        ),
        "model": ModelRecipe(
            path=str(path),
            pooling="weighted_mean",
            projection=ProjectionRecipe(size=TEACHER_SIZE, bias=True, activation="tanh"),
            matryoshka=MatryoshkaRecipe(dims=(24, 16, 8), weights=(0.5, 0.25, 0.25)),
        ),
        "tasks": {
            "ir": IrRecipe(
                global_batch_size=8,
                positives=2,
                negatives=1,
                temperature=0.1,
                directions=("query_to_doc", "query_to_query", "doc_to_query", "doc_to_doc"),
                mask=MaskRecipe(margin=0.1, of="own", guide=True),
                hardness=5.0,
                spread_out=0.5,
                distillation=DistillationRecipe(weight=2.0, temperature=0.1),
                embedding_distillation=vectors,
                weights={"infonce": 1.0, "hard_negatives": 0.5},
            ),
            "sts": StsRecipe(
                global_batch_size=8,
                weights=similarity_weights(angle=0.2),
                embedding_distillation=vectors,
            ),
        },
    }
    return make_recipe(path, **(sections | changes))


def make_texts(lengths: list[int], *, seed: int) -> Texts:
    """Random token ids of the given lengths, and a teacher's vectors for a composed recipe."""
    rng = np.random.default_rng(seed)
    ids = tuple(rng.integers(1, VOCABULARY, size=n).astype(np.int32) for n in lengths)
    return Texts(
        token_ids=ids,
        num_prompt_tokens=np.zeros(len(ids), np.int64),
        teacher_vectors=rng.normal(size=(len(ids), TEACHER_SIZE)).astype(np.float16),
    )


def ir_batch(step: int, *, long_first: bool = False) -> IrBatch:
    """8 queries, 2 positives and 1 negative each, with shared passages and a masked pair."""
    rng = np.random.default_rng(100 + step)
    lengths = rng.integers(2, 14, size=26)
    if long_first:
        lengths[:3] = 40
    passages = rng.integers(8, 26, size=(8, 3))
    return IrBatch(
        plan=StepPlan(step=step, task="ir", source="ir", epoch=0, rows=np.arange(8)),
        texts=make_texts(lengths.tolist(), seed=step),
        query=np.arange(8),
        passages=passages,
        masked=np.array([[1, 4 * 3 + 2], [5, 0]], dtype=np.int64),
        teacher=_teacher(rng),
    )


def _teacher(rng: np.random.Generator) -> np.ndarray:
    """Scores of 3 passages of 8 queries; two rows have none."""
    scores = rng.normal(size=(8, 3)).astype(np.float32)
    scores[[2, 5]] = np.nan
    return scores


def sts_batch(step: int) -> StsBatch:
    """8 pairs with ties and two golds at the top of the scale."""
    rng = np.random.default_rng(200 + step)
    score = np.array([1.0, 0.9, 0.5, 0.5, 0.2, 0.0, 0.7, 0.3], dtype=np.float32)
    return StsBatch(
        plan=StepPlan(step=step, task="sts", source="sts", epoch=0, rows=np.arange(8)),
        texts=make_texts(rng.integers(2, 14, size=16).tolist(), seed=50 + step),
        text1=np.arange(8),
        text2=np.arange(8, 16),
        score=score,
    )


def labels_batch(step: int) -> LabelsBatch:
    """8 anchors of 3 labels, 2 positives and 2 negatives each; text 20 is in two, 21 has no other.

    An anchor has a slot without a text, one a negative of a label of its own, as after cutting.
    """
    rng = np.random.default_rng(300 + step)
    labels = [text % 3 for text in range(24)]
    labels[21] = 9
    members = [(text, label) for text, label in enumerate(labels)] + [(20, 0)]
    by_label = {label: [t for t in range(8, 20) if t % 3 == label] for label in range(3)}
    positives = [rng.choice(by_label[row % 3], 2, replace=False) for row in range(8)]
    negatives = [rng.choice(by_label[(row + 1) % 3], 2, replace=False) for row in range(8)]
    passages = np.concatenate([np.array(positives), np.array(negatives)], axis=1)
    passages[1, 3], passages[2, 2], passages[3, 2], passages[4, 3] = -1, 20, 21, 22
    return LabelsBatch(
        plan=StepPlan(step=step, task="labels", source="labels", epoch=0, rows=np.arange(8)),
        texts=make_texts(rng.integers(2, 14, size=24).tolist(), seed=70 + step),
        query=np.arange(8),
        passages=passages,
        members=np.array(sorted(members), np.int64),
        num_masked=0,
    )


def three_batches() -> list[Batch]:
    """IR with adversarial lengths, STS, IR."""
    return [ir_batch(0, long_first=True), sts_batch(1), ir_batch(2)]


def instructed_batches() -> list[Batch]:
    """The same behind instructions: 9 tokens before queries and pairs, 5 before passages."""
    ir, sts, last = ir_batch(0, long_first=True), sts_batch(1), ir_batch(2)
    return [
        replace(ir, texts=_behind(ir.texts, 8)),
        replace(sts, texts=_behind(sts.texts, 16)),
        replace(last, texts=_behind(last.texts, 8)),
    ]


def _behind(texts: Texts, num_queries: int) -> Texts:
    """Texts with an instruction before the first ones and another before the others."""
    query, passage = np.arange(1, 10, dtype=np.int32), np.arange(20, 25, dtype=np.int32)
    ids = tuple(
        np.concatenate([query if i < num_queries else passage, text])
        for i, text in enumerate(texts.token_ids)
    )
    return replace(texts, token_ids=ids)
