"""The terms of each task's loss: a name, a function and what it reads. Weights come from elsewhere.

Adding a term is one line in its table here, and its `TermSettings` under the same name in the
task's file of `trainer.recipe`.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from trainer.objectives.arguments import require
from trainer.objectives.contrastive import info_nce, paired_info_nce
from trainer.objectives.ranking import cosent_loss, pearson_loss, pro_loss, rank_kl_loss


@dataclass(frozen=True, kw_only=True)
class Term:
    """A term as a value."""

    name: str
    """As in the recipe's weights and in the metrics."""
    function: Callable[..., Tensor]
    """From what it reads to a scalar [], connected to the vectors."""
    reads: tuple[str, ...]
    """Fields of the task's inputs that are its positional arguments."""
    options: tuple[str, ...] = ()
    """Fields that are its keyword arguments."""

    def arguments(self, inputs: object) -> tuple[list[Any], dict[str, Any]]:
        """Positional and keyword arguments of the function, out of a task's inputs."""
        positional = [getattr(inputs, field) for field in self.reads]
        return positional, {field: getattr(inputs, field) for field in self.options}


@dataclass(frozen=True, kw_only=True)
class RetrievalInputs:
    """What terms of retrieval may read."""

    queries: Tensor
    """Rows first_row .. first_row + B of the G queries [B, D]."""
    passages: Tensor
    """Passages of all G queries [G, P + N, D], the P positive slots first."""
    num_positives: int
    """P."""
    temperature: float
    """Divides cosine similarity."""
    mask: Tensor | None
    """Known positives left out of denominators: int64 pairs [M, 2] of (row, flat column)."""
    absent: Tensor | None
    """Passages that do not exist [G, P + N], bool."""
    margin: float | None
    """Candidates above a query's best positive by more than this are left out; None: none."""
    first_row: int
    """Global row of the first query."""


@dataclass(frozen=True, kw_only=True)
class SimilarityInputs:
    """What terms of similarity may read; first and second are of the layer that the term reads."""

    first: Tensor
    """First texts [n, D], unit norm."""
    second: Tensor
    """Second texts [n, D], unit norm."""
    cosines: Tensor
    """Their cosines [n]."""
    gold: Tensor
    """Gold scores, 0..1 [n]."""
    is_positive: Tensor
    """Pairs whose gold score makes them positives [n], bool."""
    temperature: float | None
    """The term's own; None where it has none."""


def table(*terms: Term) -> dict[str, Term]:
    """Terms by name."""
    return {term.name: term for term in terms}


def cosent_at_temperature(pred: Tensor, gold: Tensor, *, temperature: float) -> Tensor:
    """CoSENT with its scale as a temperature, like the other terms."""
    return cosent_loss(pred, gold, scale=1 / temperature)


RETRIEVAL_TERMS = table(
    Term(
        name="infonce",
        function=info_nce,
        reads=("queries", "passages"),
        options=("num_positives", "temperature", "mask", "absent", "margin", "first_row"),
    ),
)
"""Terms of `RetrievalInputs`."""

SIMILARITY_TERMS = table(
    Term(name="pearson", function=pearson_loss, reads=("cosines", "gold")),
    Term(
        name="rank_kl",
        function=rank_kl_loss,
        reads=("cosines", "gold"),
        options=("temperature",),
    ),
    Term(name="pro", function=pro_loss, reads=("cosines", "gold"), options=("temperature",)),
    Term(
        name="cosent",
        function=cosent_at_temperature,
        reads=("cosines", "gold"),
        options=("temperature",),
    ),
    Term(
        name="infonce",
        function=paired_info_nce,
        reads=("first", "second", "is_positive"),
        options=("temperature",),
    ),
)
"""Terms of `SimilarityInputs`."""


def weighted_terms(terms: Mapping[str, Term], weights: Mapping[str, float]) -> list[Term]:
    """The terms whose weight is not 0, in the order of the weights.

    Args:
        terms: a table.
        weights: weight by name.

    Raises:
        ObjectiveError: if a weight belongs to no term of the table.
    """
    for name in weights:
        advice = "Add the term to its table in trainer/objectives/terms.py."
        require(name in terms, "weights", name, f"one of {', '.join(terms)}", advice)
    return [terms[name] for name, weight in weights.items() if weight]
