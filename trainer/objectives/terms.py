"""The terms of each task's loss: a name, a function and what it reads. Weights come from elsewhere.

Adding a term is one line in its table here, and its `TermSettings` under the same name in the
task's file of `trainer.recipe`.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from trainer.objectives.arguments import require
from trainer.objectives.blocks import Direction, Guide, HardnessOf, InBatch
from trainer.objectives.contrastive import info_nce, paired_info_nce
from trainer.objectives.distillation import embedding_loss
from trainer.objectives.prefixes import Prefix, cut
from trainer.objectives.ranking import (
    angle_loss,
    cosent_loss,
    pearson_loss,
    pro_loss,
    rank_kl_loss,
)
from trainer.objectives.regularisers import spread_out
from trainer.objectives.supervised import supcon

Distance = Callable[[Tensor, Tensor], Tensor]
"""From scores and a teacher's [b, C], positive first, to a scalar []: see `distillation`."""

Share = Literal["rows", "contrasted", "taught", "texts", "batch"]
"""A mean over this rank's rows, the same where rows without hard negatives are 0 and do not count,
over rows that a teacher scored, over this rank's share of the distinct texts, or the whole batch's
value."""

Parts = Literal["each", "summed", "whole"]
"""What a term does about leading parts of vectors: it is called on each of them, it takes them as
`prefixes` and sums over them, or it reads the whole vector alone."""


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
    share: Share = "rows"
    """What part of the batch a call of it covers."""
    parts: Parts = "each"
    """Which parts of the vectors it reads."""

    def arguments(self, inputs: object) -> tuple[list[Any], dict[str, Any]]:
        """Positional and keyword arguments of the function, out of a task's inputs."""
        positional = [getattr(inputs, field) for field in self.reads]
        return positional, {field: getattr(inputs, field) for field in self.options}


@dataclass(frozen=True, kw_only=True)
class RetrievalInputs:
    """What terms of retrieval may read; the arguments of `info_nce` are described there."""

    queries: Tensor
    """Rows first_row .. first_row + B of the G queries [B, D]."""
    all_queries: Tensor | None
    """All G queries [G, D]; None where no term reads them."""
    passages: Tensor
    """Passages of all G queries [G, P + N, D], the P positive slots first."""
    num_positives: int
    """P."""
    temperature: float
    """Divides cosine similarity."""
    mask: Tensor | None
    """Known pairs: int64 [M, 2] of (row, flat column); rows are global beside `all_queries`.
    Or bool [B, G, P + N]."""
    absent: Tensor | None
    """Passages that do not exist [G, P + N], bool."""
    margin: float | None
    """Candidates above a positive by more than this are left out; None: none."""
    margin_of: Literal["own", "best"]
    """The positive that the margin is measured from."""
    guide: Guide | None
    """Another model's vectors of the same texts; None: none."""
    first_row: int
    """Global row of the first query."""
    directions: Sequence[Direction]
    """What is compared."""
    in_batch: InBatch
    """Whose passages are candidates."""
    hardness: float
    """Added to a negative's logit per unit of its cosine."""
    hardness_of: HardnessOf
    """Which negatives that is for."""
    teacher: Tensor | None
    """A teacher's scores of own passages [B, P + N], NaN where a row has none; None: none has."""
    distance: Distance | None
    """From scores and a teacher's [b, C] to their distance; None where nothing is distilled."""
    prefixes: Sequence[Prefix]
    """Leading parts of the vectors."""
    taught: Tensor
    """This rank's share of the distinct texts, as a teacher's vectors are wide [u, S]."""
    teacher_vectors: Tensor | None
    """A teacher's vectors of these texts [u, S]; None where no term reads them."""


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
    taught: Tensor
    """This rank's share of the distinct texts, as a teacher's vectors are wide [u, S]."""
    teacher_vectors: Tensor | None
    """A teacher's vectors of these texts [u, S]; None where no term reads them."""


@dataclass(frozen=True, kw_only=True)
class SupervisedInputs:
    """What terms over all labelled texts may read; see the arguments of `supcon`."""

    texts: Tensor
    """This rank's share of the distinct texts [u, D]: its anchors."""
    all_texts: Tensor
    """All texts [U, D]."""
    positive: Tensor
    """Which texts share a label with an anchor [u, U], bool."""
    temperature: float
    """Divides cosine similarity."""
    first_row: int
    """Number of the first anchor among all texts."""
    prefixes: Sequence[Prefix]
    """Leading parts of the vectors."""
    taught: Tensor
    """The same texts, as a teacher's vectors are wide [u, S]."""
    teacher_vectors: Tensor | None
    """A teacher's vectors of these texts [u, S]; None where no term reads them."""


def table(*terms: Term) -> dict[str, Term]:
    """Terms by name."""
    return {term.name: term for term in terms}


def cosent_at_temperature(pred: Tensor, gold: Tensor, *, temperature: float) -> Tensor:
    """CoSENT with its scale as a temperature, like the other terms."""
    return cosent_loss(pred, gold, scale=1 / temperature)


def hard_negatives_nce(queries: Tensor, passages: Tensor, **options: Any) -> Tensor:
    """InfoNCE whose only candidates are the query's own positive and hard negatives.

    A query without hard negatives has 0, exactly, and is counted in the mean over the queries: its
    share of the batch leaves it out.

    Reference: the hard loss of F2LLM, Zhang et al. 2025, arXiv:2510.02294.
    """
    return info_nce(queries, passages, in_batch=False, **options)


def spread_queries_and_positives(
    all_queries: Tensor, passages: Tensor, *, num_positives: int, prefixes: Sequence[Prefix]
) -> Tensor:
    """The spread of queries [G, D] plus that of positives, the mean over the P slots."""
    total = torch.zeros((), device=passages.device)
    for prefix in prefixes:
        slots = [spread_out(cut(passages[:, slot], prefix)) for slot in range(num_positives)]
        spread = spread_out(cut(all_queries, prefix)) + torch.stack(slots).mean()
        total = total + prefix.weight * spread
    return total


def distilled(
    queries: Tensor,
    passages: Tensor,
    teacher: Tensor | None,
    *,
    num_positives: int,
    first_row: int,
    distance: Distance,
    prefixes: Sequence[Prefix],
) -> Tensor:
    """Distance of the own candidates' scores from a teacher's, the mean over the P slots.

    A slot's candidates are its positive and all N hard negatives. Rows without a teacher's scores
    are left out; a connected 0 where none has them.
    """
    own = passages[first_row : first_row + len(queries)]
    total = 0.0 * queries.sum()
    if teacher is None:
        return total
    rows = ~teacher.isnan().any(1)
    for prefix in prefixes:
        with torch.autocast(queries.device.type, enabled=False):
            # [B, P + N, d] . [B, d] -> [B, P + N]
            scores = (cut(own, prefix) @ cut(queries, prefix)[:, :, None]).squeeze(2)
        total = total + prefix.weight * _over_slots(
            scores[rows], teacher[rows], num_positives, distance
        )
    return total


def _over_slots(scores: Tensor, teacher: Tensor, num_positives: int, distance: Distance) -> Tensor:
    """Mean distance over positive slots, of scores and a teacher's [b, P + N]."""
    negatives = scores[:, num_positives:], teacher[:, num_positives:]
    slots = [
        distance(*(torch.cat([t[:, slot, None], n], 1)
                   for t, n in zip((scores, teacher), negatives, strict=True)))
        for slot in range(num_positives)
    ]  # fmt: skip
    return torch.stack(slots).mean()


def angle_at_temperature(
    first: Tensor, second: Tensor, gold: Tensor, *, temperature: float
) -> Tensor:
    """AnglE with its scale as a temperature, like the other terms."""
    return angle_loss(first, second, gold, scale=1 / temperature)


EMBEDDING_DISTILLATION = Term(
    name="embedding_distillation",
    function=embedding_loss,
    reads=("taught", "teacher_vectors"),
    share="texts",
    parts="whole",
)
"""A term of every task."""

_OPTIONS = (
    "num_positives", "temperature", "mask", "absent", "margin", "margin_of", "guide",
    "first_row",     "hardness", "hardness_of", "all_queries", "prefixes",
)  # fmt: skip

RETRIEVAL_TERMS = table(
    Term(
        name="infonce",
        function=info_nce,
        reads=("queries", "passages"),
        options=(*_OPTIONS, "directions", "in_batch"),
        parts="summed",
    ),
    Term(
        name="hard_negatives",
        function=hard_negatives_nce,
        reads=("queries", "passages"),
        options=_OPTIONS,
        share="contrasted",
        parts="summed",
    ),
    Term(
        name="spread_out",
        function=spread_queries_and_positives,
        reads=("all_queries", "passages"),
        options=("num_positives", "prefixes"),
        share="batch",
        parts="summed",
    ),
    Term(
        name="distillation",
        function=distilled,
        reads=("queries", "passages", "teacher"),
        options=("num_positives", "first_row", "distance", "prefixes"),
        share="taught",
        parts="summed",
    ),
    EMBEDDING_DISTILLATION,
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
        name="angle",
        function=angle_at_temperature,
        reads=("first", "second", "gold"),
        options=("temperature",),
    ),
    Term(
        name="infonce",
        function=paired_info_nce,
        reads=("first", "second", "is_positive"),
        options=("temperature",),
    ),
    EMBEDDING_DISTILLATION,
)
"""Terms of `SimilarityInputs`."""

SUPERVISED_TERMS = table(
    # with the other objectives it is retrieval's term, and here it never has a weight
    RETRIEVAL_TERMS["infonce"],
    Term(
        name="supcon",
        function=supcon,
        reads=("texts", "all_texts", "positive"),
        options=("temperature", "first_row", "prefixes"),
        parts="summed",
    ),
    EMBEDDING_DISTILLATION,
)
"""Terms of `SupervisedInputs`."""


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
