"""Terms that shape the space of vectors whatever they stand for; it must not gather or sum them."""

import torch
from torch import Tensor

from trainer.objectives.arguments import compute_dtype, require, shape


def spread_out(vectors: Tensor) -> Tensor:
    """Mean squared similarity of different vectors: small where they fill the sphere.

    `1 / (n (n - 1)) sum over i != j of (v_i . v_j)^2`. Random unit vectors have 1 / D.

    Args:
        vectors: [n, D], unit norm for cosine similarity.

    Returns:
        The mean, scalar [], float32 (float64 if the input is), at least 0; a connected 0 if n < 2.
        Memory grows as the smaller of n^2 and D^2.

    Raises:
        ObjectiveError: if the shape is not [n, D].

    Collective: no.
    Reference: Schechter Vera et al. 2025 (EmbeddingGemma), arXiv:2509.20354, the spread-out loss:
        the second moment of the global orthogonal regulariser of Zhang et al. 2017,
        arXiv:1708.06320, without its floor of 1 / D and without its first moment.
    """
    advice = "Give one vector per row."
    require(vectors.ndim == 2, "spread_out: vectors", shape(vectors), "[n, D]", advice)
    num_vectors, size = vectors.shape
    with torch.autocast(vectors.device.type, enabled=False):
        values = vectors.to(compute_dtype((vectors,)))
        # both Gram matrices have the same sum of squares
        gram = values.T @ values if size < num_vectors else values @ values.T
        with_itself = values.square().sum(1).square().sum()
        others = gram.square().sum() - with_itself
    return others / max(1, num_vectors * (num_vectors - 1))
