"""How vectors lie on the sphere: alignment, uniformity, anisotropy; it must not embed or read.

Letters: n vectors or pairs, D embedding size, m sampled vectors.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

NUM_BINS = 50
"""Bins of a histogram of cosines over -1..1, each 0.04 wide."""
SAMPLE = 1_000
"""Vectors that uniformity, mean cosine and effective rank look at; their pairs are all counted."""

Histogram = list[int]
"""Number of cosines in each of NUM_BINS equal bins from -1 to 1."""


@dataclass(frozen=True, kw_only=True)
class Geometry:
    """The shape of one set's vectors."""

    alignment: float
    """Mean squared distance of positive pairs, 0 to 4. Lower is closer."""
    uniformity: float
    """Log of the mean Gaussian kernel of all pairs, -8 to 0. Lower is more even."""
    mean_cosine: float
    """Mean cosine of different texts; 0 is isotropic, 1 a single direction."""
    effective_rank: float
    """Dimensions that the vectors use, 1 to D."""
    histograms: Mapping[str, Histogram]
    """Cosines of `positive`, `negative` and `random` pairs."""

    @property
    def numbers(self) -> dict[str, float]:
        """All that are defined, without the histograms."""
        values = {
            "alignment": self.alignment,
            "uniformity": self.uniformity,
            "mean_cosine": self.mean_cosine,
            "effective_rank": self.effective_rank,
        }
        return {name: value for name, value in values.items() if math.isfinite(value)}

    @property
    def recorded(self) -> dict[str, Any]:
        """What `eval.jsonl` keeps."""
        return {**self.numbers, "histograms": dict(self.histograms)}


def describe_geometry(
    vectors: Tensor, *, positive: Tensor, negative: Tensor, random: Tensor
) -> Geometry:
    """The numbers and histograms of a set.

    Args:
        vectors: unit-norm embeddings of different texts [n, D]; the first SAMPLE are looked at.
        positive: cosines of pairs that belong together [any].
        negative: cosines of pairs that do not, but are hard to distinguish [any].
        random: cosines of pairs drawn at random [any].

    Returns:
        All numbers; those of fewer than 2 vectors, or of no positive pairs, are NaN.
    """
    sample = vectors[:SAMPLE].double()
    cosines = {"positive": positive, "negative": negative, "random": random}
    return Geometry(
        alignment=alignment(positive),
        uniformity=uniformity(sample),
        mean_cosine=mean_cosine(sample),
        effective_rank=effective_rank(sample),
        histograms={name: histogram(values) for name, values in cosines.items()},
    )


def alignment(cosines: Tensor) -> float:
    """Mean of ||x - y||^2 over positive pairs of unit-norm vectors.

    Args:
        cosines: of the pairs [n].

    Returns:
        0 to 4; NaN for no pairs.
    Reference: Wang and Isola 2020, arXiv:2005.10242, eq. 1 with alpha = 2.
    """
    return float((2 - 2 * cosines.double()).mean())


def uniformity(vectors: Tensor) -> float:
    """Log of the mean of exp(-2 ||x - y||^2) over all pairs of different rows.

    Args:
        vectors: unit-norm [m, D]; memory grows with the square of m.

    Returns:
        -8 (all opposite) to 0 (all equal); NaN for fewer than 2 vectors.
    Reference: Wang and Isola 2020, arXiv:2005.10242, eq. 2 with t = 2.
    """
    if len(vectors) < 2:
        return math.nan
    cosine = vectors @ vectors.T
    first, second = torch.triu_indices(len(vectors), len(vectors), offset=1)
    exponents = -2 * (2 - 2 * cosine[first, second])
    return float(exponents.logsumexp(dim=0)) - math.log(len(first))


def mean_cosine(vectors: Tensor) -> float:
    """Mean cosine of all pairs of different rows.

    Args:
        vectors: unit-norm [m, D]; fewer than 2 give NaN.
    Reference: Ethayarajh 2019, arXiv:1909.00512: anisotropy as average similarity.
    """
    if len(vectors) < 2:
        return math.nan
    count = len(vectors)
    total = vectors.sum(dim=0).square().sum() - vectors.square().sum()
    return float(total / (count * (count - 1)))


def effective_rank(vectors: Tensor) -> float:
    """Exponential of the entropy of the normalised singular values.

    Args:
        vectors: unit-norm [m, D], as they are: a common direction counts.

    Returns:
        1 (all on a line) to min(m, D) (spread evenly); NaN for fewer than 2 vectors.
    Reference: Roy and Vetterli 2007, "The effective rank: a measure of effective dimensionality".
    """
    if len(vectors) < 2:
        return math.nan
    values = torch.linalg.svdvals(vectors)
    shares = values / values.sum()
    return float(torch.special.entr(shares).sum().exp())


def histogram(cosines: Tensor) -> Histogram:
    """Counts of cosines in NUM_BINS bins from -1 to 1; rounding beyond the ends is counted there.

    Args:
        cosines: [any].
    """
    inside = cosines.detach().double().clamp(-1, 1).cpu()
    return [int(count) for count in torch.histc(inside, bins=NUM_BINS, min=-1, max=1)]
