"""Retrieval as a recipe writes it: a query, its positives, its hard negatives."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated, Literal

from trainer.recipe.fields import NumberOf, NumbersByName, bounded
from trainer.recipe.kind import (
    Fail,
    Side,
    TaskKind,
    TermSettings,
    defaults,
    term_table,
    weight_numbers,
)

TERMS = term_table(
    TermSettings(
        name="infonce",
        label="InfoNCE",
        weight=1.0,
        meaning="Weight of the multi-positive InfoNCE over the global batch.",
    ),
)
"""Terms of the retrieval loss."""


def _weights() -> dict[str, NumberOf]:
    return weight_numbers(TERMS)


@dataclass(frozen=True, kw_only=True)
class MarginMask:
    """Known positives, and candidates that score too well to be negatives, hard ones included."""

    margin: float = bounded(low=-2, high=2, required=True)
    """Cosine by which a candidate must exceed the query's best positive to be left out."""


@dataclass(frozen=True, kw_only=True)
class IrRecipe:
    """Retrieval."""

    global_batch_size: int = bounded(low=1, required=True)
    """Queries of one step over all ranks."""
    positives: int = bounded(1, low=1)
    """Positive slots P per query; each slot is one cross-entropy."""
    negatives: int = bounded(1, low=0)
    """Hard negatives N per query."""
    temperature: float = bounded(0.02, above=0)
    """Divides cosine similarity."""
    mask: Literal["known", "none"] | MarginMask = "known"
    """`known` removes candidates that are known positives of the query from its denominator;
    `{margin: m}` also those that score more than m above its best positive."""
    weights: Annotated[Mapping[str, float], NumbersByName(_weights, low=0)] = field(
        default_factory=lambda: defaults(_weights())
    )
    """Weights of the terms; 0 leaves a term out."""


def _texts_of_row(settings: IrRecipe) -> Mapping[Side, int]:
    return {"query": 1, "passage": settings.positives + settings.negatives}


def _check(settings: IrRecipe, fail: Fail) -> None:
    """A query without hard negatives needs those of another query."""
    if settings.global_batch_size == 1 and settings.negatives == 0:
        raise fail(
            "tasks.ir.global_batch_size", 1, "at least 2 where negatives is 0", "Raise either."
        )


KIND = TaskKind(
    name="ir",
    label="retrieval",
    settings=IrRecipe,
    terms=TERMS,
    loss_unit="nats",
    metrics={"ndcg_at_10": "nDCG@10", "mrr_at_10": "MRR@10", "recall_at_100": "Recall@100"},
    has_corpus=True,
    texts_of_row=_texts_of_row,
    prompts={"query": "query", "document": "passage"},
    hub_task="information-retrieval",
    check=_check,
)
