"""Hard negatives that a run mines itself, as a recipe writes it; see `trainer.recipe.schema`."""

from dataclasses import dataclass
from typing import Literal

from trainer.recipe.fields import bounded


@dataclass(frozen=True, kw_only=True)
class MineRecipe:
    """Hard negatives found again between steps by the current weights (ANCE, arXiv:2007.00808)."""

    every_steps: int = bounded(low=1, required=True)
    """Steps that train on what one search found. It is made before each step that is a multiple."""
    start: bool = False
    """Whether the base model searches before step 0; false: the first steps take the negatives of
    the rows."""
    sources: tuple[str, ...] | None = None
    """Names of the sources that are mined, of task `ir`; null: all of this task."""
    num_negatives: int = bounded(4, low=1)
    """Negatives that are kept of a query at most, of which each step draws `negatives`."""
    skip_top: int = bounded(0, low=0)
    """Best candidates that are left out, counted after all filters."""
    max_score: float | None = bounded(None, low=-2, high=2)
    """Highest cosine of a negative; null: any."""
    relative_margin: float | None = bounded(None, low=-2, high=2)
    """Highest cosine of a negative as a share of the positive's, such as 0.95 (NV-Retriever,
    arXiv:2407.15831); of several positives the least similar counts. Null: any."""
    absolute_margin: float | None = bounded(None, low=-2, high=2)
    """Cosine by which a negative must stay below the positive's; null: any."""
    sampling: Literal["hardest", "random"] = "hardest"
    """Of what is left: the best, or some by chance, a function of `seed` and the query."""
    depth: int | None = bounded(None, low=1)
    """Candidates that are searched for a query; null: enough for the filters."""
