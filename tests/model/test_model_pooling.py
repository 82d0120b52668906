"""The mean weighted by position: a loop in float64, and sentence-transformers' own module."""

import pytest
import torch
from sentence_transformers.sentence_transformer.modules import Pooling
from torch import Tensor

from trainer.model.pooling import pool

LENGTHS = torch.tensor([7, 3, 5, 4])


def states() -> Tensor:
    """Token states [4, 7, 6] of four texts, padded on the right with large numbers."""
    hidden_BLH = torch.randn(4, 7, 6, generator=torch.Generator().manual_seed(0))
    for row, length in enumerate(LENGTHS):
        hidden_BLH[row, length:] = 1e3
    return hidden_BLH


@pytest.mark.parametrize("prompt", [0, 2])
def test_a_weighted_mean_is_that_of_a_loop(prompt: int) -> None:
    hidden_BLH = states().requires_grad_()
    cotangent_BH = torch.randn(4, 6, generator=torch.Generator().manual_seed(1))
    got = pool(hidden_BLH, LENGTHS, torch.full((4,), prompt), "weighted_mean")
    (gradient,) = torch.autograd.grad((got * cotangent_BH).sum(), hidden_BLH)
    wide_BLH = states().double().requires_grad_()
    rows = []
    for row, length in enumerate(LENGTHS.tolist()):
        total = sum((place + 1) * wide_BLH[row, place] for place in range(prompt, length))
        rows.append(total / sum(place + 1 for place in range(prompt, length)))
    want = torch.stack(rows)
    (wanted,) = torch.autograd.grad((want * cotangent_BH.double()).sum(), wide_BLH)
    torch.testing.assert_close(got.double(), want, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(gradient.double(), wanted, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("prompt", [0, 2])
@pytest.mark.parametrize("padding", ["right", "left"])
def test_a_weighted_mean_is_that_of_sentence_transformers(prompt: int, padding: str) -> None:
    module = Pooling(6, pooling_mode="weightedmean", include_prompt=False)
    theirs, mask = states(), torch.arange(7) < LENGTHS[:, None]
    if padding == "left":
        for row, length in enumerate(LENGTHS.tolist()):
            theirs[row], mask[row] = theirs[row].roll(7 - length, 0), mask[row].roll(7 - length)
    features = {
        "token_embeddings": theirs,
        "attention_mask": mask.long(),
        "prompt_length": prompt,
    }
    want = module(features)["sentence_embedding"]
    got = pool(states(), LENGTHS, torch.full((4,), prompt), "weighted_mean")
    torch.testing.assert_close(got, want, rtol=1e-6, atol=1e-6)


def test_weights_of_a_long_text_in_bfloat16_are_exact() -> None:
    hidden_BLH = torch.zeros(1, 1001, 2, dtype=torch.bfloat16)
    hidden_BLH[0, 999, 0], hidden_BLH[0, 1000, 1] = 1, 1
    zero = torch.zeros(1, dtype=torch.int64)
    got = pool(hidden_BLH, torch.tensor([1001]), zero, "weighted_mean")
    assert (got[0, 1] / got[0, 0]).item() == pytest.approx(1001 / 1000, rel=1e-6)
