"""The rows of the matrix: every form in which a trained model is exported; light to import."""

from dataclasses import dataclass
from itertools import product
from typing import Literal

from clients.families import FAMILIES, Family

Attention = Literal["causal", "bidirectional"]
Pooling = Literal["last", "mean"]
Weights = Literal["full", "merged", "adapter"]
"""All parameters trained; an adapter merged into its base; an adapter alone."""


@dataclass(frozen=True, kw_only=True)
class Form:
    """One export."""

    family: str
    """Key of `FAMILIES`."""
    attention: Attention
    """`model.attention` of the recipe."""
    pooling: Pooling
    """`model.pooling` of the recipe."""
    weights: Weights
    """What was trained and what is written."""

    @property
    def name(self) -> str:
        """Of its folder."""
        model_type = FAMILIES[self.family].model_type
        return f"{model_type}-{self.attention}-{self.pooling}-{self.weights}"


def attentions(family: Family) -> tuple[Attention, ...]:
    """What a family can be trained with: an encoder is bidirectional and nothing else."""
    return ("causal", "bidirectional") if family.is_decoder else ("bidirectional",)


POOLINGS: tuple[Pooling, ...] = ("last", "mean")
WEIGHTS: tuple[Weights, ...] = ("full", "merged", "adapter")
FORMS = tuple(
    Form(family=name, attention=attention, pooling=pooling, weights=weights)
    for name, family in FAMILIES.items()
    for attention, pooling, weights in product(attentions(family), POOLINGS, WEIGHTS)
)
"""In the order of the table."""
REFUSED = "refused.json"
"""File beside the exports: forms that the trainer does not export, with its reasons."""
