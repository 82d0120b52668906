"""A teacher's vectors as a recipe asks for them, whatever the task; it must not know any task."""

from dataclasses import dataclass
from typing import Any

from trainer.recipe.fields import bounded
from trainer.recipe.kind import TermSettings


@dataclass(frozen=True, kw_only=True)
class EmbeddingDistillationRecipe:
    """Bring the vector of every text near a teacher's, from `data.sources[].teacher_embeddings`."""

    weight: float = bounded(1.0, above=0)
    """Weight of the mean of 1 - cosine over the distinct texts of a step, of whole vectors alone
    (Zhang et al. 2024, arXiv:2412.19048; for all texts: EmbeddingGemma, arXiv:2509.20354)."""
    projection: bool = False
    """Bring the model's vector to the teacher's size by a linear layer without bias, which is
    trained for this term alone and is in no export (the fully connected layers of Jasper and
    Stella, arXiv:2412.19048); false: both have one size."""


TERM = TermSettings(
    name="embedding_distillation",
    label="Embedding distillation",
    weight=0.0,
    meaning="Weight of the distance to a teacher's vectors.",
    has_own_key=True,
)
"""The term, of every task whose settings have a key of its name."""
LAYER_KEY = f"{TERM.name}.projection"
"""Key of a task's section that asks for a layer to a teacher's size."""


def embedding_distillation(settings: Any) -> EmbeddingDistillationRecipe | None:
    """What a task's settings say of a teacher's vectors; None too for a task without the key."""
    found: EmbeddingDistillationRecipe | None = getattr(settings, TERM.name, None)
    return found


def is_projected(settings: Any) -> bool:
    """Whether a trained layer brings the model's vectors to the teacher's size for the term."""
    found = embedding_distillation(settings)
    return found is not None and found.projection


def embedding_weight(settings: Any) -> float:
    """Weight of the term; 0 where nothing is said of it."""
    found = embedding_distillation(settings)
    return 0.0 if found is None else found.weight
