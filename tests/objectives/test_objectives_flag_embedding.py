"""Losses that FlagEmbedding has too give its values and gradients on the same vectors.

Its own model computes them, around a backbone that hands vectors through.
"""

import importlib.util
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tests.support.peer_losses import check, raw, unit
from trainer.objectives.contrastive import info_nce
from trainer.objectives.distillation import kl_divergence
from trainer.objectives.prefixes import Prefix

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("FlagEmbedding") is None, reason="needs the extra peers"
)
TEMPERATURE = 0.05


class Vectors(nn.Module):
    """Texts that are embedded already, as a model's hidden states of one token each."""

    def forward(self, vectors: Tensor, **_: Any) -> SimpleNamespace:
        return SimpleNamespace(last_hidden_state=vectors[:, None])


def peer(**settings: Any) -> Any:
    from FlagEmbedding.finetune.embedder.encoder_only.base.modeling import (
        BiEncoderOnlyEmbedderModel,
    )

    settings = {"temperature": TEMPERATURE, "normalize_embeddings": True} | settings
    return BiEncoderOnlyEmbedderModel(Vectors(), **settings)


def texts(vectors: Tensor) -> dict[str, Tensor]:
    """Features of texts, as it takes them."""
    flat = vectors.reshape(-1, vectors.shape[-1])
    return {"vectors": flat, "attention_mask": torch.ones(len(flat), 1)}


@pytest.mark.parametrize("in_batch", [True, False])
@pytest.mark.parametrize("num_negatives", [1, 3])
def test_in_batch_and_own_negatives(in_batch: bool, num_negatives: int) -> None:
    queries, passages = raw(6, 8), raw(6, 1 + num_negatives, 8, seed=1)
    theirs = peer()(texts(queries), texts(passages), no_in_batch_neg_flag=not in_batch).loss
    ours = info_nce(
        unit(queries),
        unit(passages),
        num_positives=1,
        temperature=TEMPERATURE,
        in_batch=in_batch,
    )
    check(ours, theirs, queries, passages)


@pytest.mark.parametrize("in_batch", [True, False])
def test_distillation_beside_the_loss(in_batch: bool) -> None:
    queries, passages = raw(5, 8), raw(5, 4, 8, seed=1)
    teacher = raw(5, 4, seed=2).detach()
    model = peer(kd_loss_type="kl_div")
    theirs = model(
        texts(queries), texts(passages), teacher_scores=teacher.numpy(),
        no_in_batch_neg_flag=not in_batch,
    ).loss  # fmt: skip
    scores = (unit(passages) @ unit(queries)[:, :, None]).squeeze(2)
    divergence = kl_divergence(scores, teacher, temperature=TEMPERATURE, teacher_temperature=1.0)
    # a cross-entropy with the teacher's shares: the divergence and the teacher's own entropy
    shares = teacher.softmax(1)
    entropy = -(shares * shares.log()).sum(1).mean()
    plain = info_nce(
        unit(queries),
        unit(passages),
        num_positives=1,
        temperature=TEMPERATURE,
        in_batch=in_batch,
    )
    check(plain + divergence + entropy, theirs, queries, passages)


def test_matryoshka() -> None:
    queries, passages, dims = raw(6, 8), raw(6, 3, 8, seed=1), (8, 4, 3)
    theirs = peer(use_mrl=True, mrl_dims=[*dims])(texts(queries), texts(passages)).loss
    ours = info_nce(
        unit(queries),
        unit(passages),
        num_positives=1,
        temperature=TEMPERATURE,
        prefixes=[Prefix(dim, 1 / len(dims)) for dim in dims],
    )
    # it adds the dims up in float32
    torch.testing.assert_close(ours, theirs.double(), rtol=1e-6, atol=1e-7)
    found, expected = (
        torch.autograd.grad(loss, (queries, passages), retain_graph=True) for loss in (ours, theirs)
    )
    for left, right in zip(found, expected, strict=True):
        torch.testing.assert_close(left, right, rtol=1e-6, atol=1e-7)
