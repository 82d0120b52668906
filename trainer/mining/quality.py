"""How much a query's negatives can teach, before anything is trained; it must not read files."""

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

SAFE_MARGIN = 0.05
"""Share of the positive's cosine by which a negative that is surely none stays below it: 1 - 0.95,
the best of NV-Retriever (Moreira et al. 2024, arXiv:2407.15831)."""


@dataclass(frozen=True, kw_only=True)
class ContrastiveInformation:
    """Of the negatives of one query."""

    capacity: float
    """ln(1 + n), nats: what n negatives can tell at most."""
    hardness: float
    """Mean cosine of the negatives, those below 0 as 0; 0 to 1."""
    safety: float
    """1 where the hardest negative stays `SAFE_MARGIN` below the positive, 0 where it is as near
    as the positive or nearer."""

    @property
    def total(self) -> float:
        """Capacity times the harmonic mean of hardness and safety, nats."""
        both = self.hardness + self.safety
        return self.capacity * 2 * self.hardness * self.safety / both if both else 0.0


def contrastive_information(
    positive: float, negatives: NDArray[np.float32]
) -> ContrastiveInformation:
    """Effective contrastive information of a query: ln(1 + n) * 2 h f / (h + f).

    Args:
        positive: cosine of the query's least similar positive.
        negatives: cosines of its negatives [n].

    Returns:
        Its parts; all are 0 without negatives.

    Reference: Sinha, Seetharaman and Bansal 2026, arXiv:2603.20990v1, name the parts: the
    logarithmic bound of InfoNCE on mutual information by the number of negatives (van den Oord et
    al. 2018, arXiv:1807.03748, eq. 5), times a harmonic mean of hardness and of a max-margin
    safety that punishes unsafe negatives strictly. Difference: the forms of h and f are ours, and
    their later ECI_sem, which also looks at words and at how negatives differ, is another measure.
    """
    if not len(negatives):
        return ContrastiveInformation(capacity=0.0, hardness=0.0, safety=0.0)
    below = positive - float(negatives.max())
    width = SAFE_MARGIN * abs(positive)
    return ContrastiveInformation(
        capacity=math.log1p(len(negatives)),
        hardness=float(np.clip(negatives, 0, 1).mean(dtype=np.float64)),
        safety=min(1.0, below / width) if below > 0 and width else float(below > 0),
    )
