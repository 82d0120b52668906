"""Vectors that a loss of this project and a peer's are given alike, and how both are compared."""

import torch
from torch import Tensor
from torch.nn.functional import normalize


def raw(*shape: int, seed: int = 0) -> Tensor:
    """Vectors as a model gives them, before they are normalised: the peers do so themselves."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64).requires_grad_()


def unit(vectors: Tensor) -> Tensor:
    """As our losses are given them."""
    return normalize(vectors, dim=-1)


def check(ours: Tensor, theirs: Tensor, *inputs: Tensor) -> None:
    """Equal values and gradients; both are computed in float64."""
    torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-11)
    found, expected = (torch.autograd.grad(loss, inputs) for loss in (ours, theirs))
    for left, right in zip(found, expected, strict=True):
        torch.testing.assert_close(left, right, rtol=1e-8, atol=1e-10)
