"""Matryoshka prefixes: the first dimensions of a vector as a vector of its own.

Reference: Kusupati et al. 2022, arXiv:2205.13147; like sentence-transformers' MatryoshkaLoss, each
prefix is normalised and has one weight. Letters: D embedding size.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import normalize

SMALLEST_NORM = 1e-12
"""Prefixes shorter than this are divided by it, as `torch.nn.functional.normalize` does."""


@dataclass(frozen=True)
class Prefix:
    """The leading dimensions that a loss reads, and the weight of what it finds there."""

    size: int | None
    """Dimensions d; None: all."""
    weight: float = 1.0
    """Factor of the loss."""

    def is_whole(self, vectors: Tensor) -> bool:
        """Whether nothing is cut from vectors [..., D]: they are read as given, not normalised."""
        return self.size is None or self.size == vectors.shape[-1]

    def width(self, size: int) -> int:
        """Dimensions that it has of vectors [D].

        Args:
            size: D.
        """
        return size if self.size is None else min(self.size, size)


WHOLE = Prefix(None)
"""The vectors as they are."""


def ascending(prefixes: Sequence[Prefix], size: int) -> list[Prefix]:
    """The prefixes of vectors [D], shortest first.

    Args:
        prefixes: in any order.
        size: D.
    """
    return sorted(prefixes, key=lambda prefix: prefix.width(size))


def cut(vectors: Tensor, prefix: Prefix) -> Tensor:
    """The normalised prefix [..., d] of vectors [..., D]."""
    if prefix.is_whole(vectors):
        return vectors
    return normalize(vectors[..., : prefix.size], dim=-1, eps=SMALLEST_NORM)


def is_smallest(scales: Tensor) -> Tensor:
    """Which of `inverse_norms` are those of prefixes that have no direction, bool [...].

    What they are divided by is then a constant.
    """
    # float32 rounds the bound itself
    return scales >= (1 - 1e-6) / SMALLEST_NORM


def inverse_norms(vectors: Tensor, prefix: Prefix, dtype: torch.dtype) -> Tensor | None:
    """One over the norm of each prefix [...], of vectors [..., D]; None where nothing is cut."""
    if prefix.is_whole(vectors):
        return None
    norms = torch.linalg.vector_norm(vectors.detach()[..., : prefix.size], dim=-1, dtype=dtype)
    return norms.clamp_min(SMALLEST_NORM).reciprocal()
