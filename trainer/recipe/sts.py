"""Semantic similarity as a recipe writes it: two texts and a score."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated

from trainer.recipe.embedding_distillation import (
    TERM,
    EmbeddingDistillationRecipe,
    embedding_weight,
)
from trainer.recipe.eval_kind import EvalKind
from trainer.recipe.fields import NumberOf, NumbersByName, bounded
from trainer.recipe.kind import (
    Side,
    TaskKind,
    TermSettings,
    defaults,
    temperature_numbers,
    term_table,
    weight_numbers,
)

TERMS = term_table(
    TermSettings(
        name="pearson",
        label="Pearson",
        weight=2.0,
        meaning="Weight of 1 - Pearson correlation.",
    ),
    TermSettings(
        name="rank_kl",
        label="RankKL",
        weight=5.0,
        temperature=0.05,
        meaning="Weight of RankKL, whose mean over n belongs to this default.",
    ),
    TermSettings(
        name="pro",
        label="PRO",
        weight=0.5,
        temperature=0.05,
        meaning="Weight of PRO.",
    ),
    TermSettings(
        name="cosent",
        label="CoSENT",
        weight=0.0,
        temperature=0.05,
        meaning="Weight of CoSENT, the usual STS loss; for comparisons.",
    ),
    TermSettings(
        name="angle",
        label="AnglE",
        weight=0.0,
        temperature=0.05,
        meaning="Weight of AnglE, CoSENT on an angle in complex space.",
    ),
    TermSettings(
        name="infonce",
        label="InfoNCE",
        weight=1.0,
        temperature=0.02,
        layer="middle",
        meaning="Weight of the auxiliary InfoNCE on the middle hidden layer. Set 0 for a decoder "
        "with mean pooling whose first token outweighs all others there, as in SmolLM2.",
    ),
    TERM,
)
"""Terms of the similarity loss; default weights are those of the authors' release of CoDiEmb."""


def _weights() -> dict[str, NumberOf]:
    return weight_numbers(TERMS)


def _temperatures() -> dict[str, NumberOf]:
    return temperature_numbers(TERMS)


@dataclass(frozen=True, kw_only=True)
class StsRecipe:
    """Semantic similarity."""

    global_batch_size: int = bounded(low=2, required=True)
    """Pairs of one step over all ranks."""
    weights: Annotated[Mapping[str, float], NumbersByName(_weights, low=0)] = field(
        default_factory=lambda: defaults(_weights())
    )
    """Weights of the terms; 0 leaves a term out."""
    temperatures: Annotated[Mapping[str, float], NumbersByName(_temperatures, above=0)] = field(
        default_factory=lambda: defaults(_temperatures())
    )
    """Temperatures of the terms; each divides cosines or their differences."""
    infonce_threshold: float = bounded(0.8, low=0, high=1)
    """Pairs whose normalised gold score is at or above this are positives of the InfoNCE."""
    embedding_distillation: EmbeddingDistillationRecipe | None = None
    """Learn a teacher's vectors; null: no source may have `teacher_embeddings`."""
    cross_device: bool = True
    """Losses over the pairs of all ranks; false: over each rank's share, then averaged."""


def similarity_weights(**given: float) -> dict[str, float]:
    """Weights of every term: given ones by name, defaults for the others."""
    return defaults(_weights(), **given)


def similarity_temperatures(**given: float) -> dict[str, float]:
    """Temperatures of every term that has one: given ones by name, defaults for the others."""
    return defaults(_temperatures(), **given)


def _all_weights(settings: StsRecipe) -> Mapping[str, float]:
    return {**settings.weights, TERM.name: embedding_weight(settings)}


def _compares_queries(settings: StsRecipe) -> str | None:
    """The key under which texts meet those of other pairs; None: cosines of pairs alone do."""
    return "tasks.sts.weights.infonce" if settings.weights["infonce"] else None


def _texts_of_row(settings: StsRecipe) -> Mapping[Side, int]:
    return {"query": 2}


KIND = TaskKind(
    name="sts",
    label="similarity",
    settings=StsRecipe,
    terms=TERMS,
    has_scores=True,
    texts_of_row=_texts_of_row,
    prompts={"sts": "query"},
    benchmark_prompts={"STS": "sts"},
    weights_of=_all_weights,
    compares_queries=_compares_queries,
)
EVAL_KIND = EvalKind(
    name="sts",
    label="similarity",
    layout="a file of scored pairs",
    metrics={"spearman": "Spearman", "pearson": "Pearson"},
    prompts={"query": ("STS", "sts")},
    has_scores=True,
    hub_task="semantic-similarity",
)
