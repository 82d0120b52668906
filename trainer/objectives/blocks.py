"""The blocks of InfoNCE: which vectors meet which, and what is left out between them.

A block is one set of left vectors against one candidate of every query. It must not compute a
similarity: `trainer.objectives.tiles` does, tile by tile.

Letters: G queries of the global batch, B of them in this call, P positive slots, N negatives per
query, D embedding size, T that of a guide, M pairs.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from trainer.objectives.arguments import compute_dtype
from trainer.objectives.prefixes import WHOLE, Prefix, inverse_norms

Direction = Literal["query_to_doc", "query_to_query", "doc_to_query", "doc_to_doc"]
"""What stands on the left and on the right of a similarity, as sentence-transformers names it."""
HardnessOf = Literal["all", "in_batch", "hard"]
"""Which negatives are made harder: all, those of other queries, or a query's own."""


GUIDE_TOLERANCE = 1e-5
"""Cosine by which a guide must find a candidate nearer than the best positive to leave it out: the
positive's own text in another place is as near, but for rounding."""


def rounding(dtype: torch.dtype) -> float:
    """Cosine by which equal texts may differ, as their products are summed in another order.

    A candidate that is as near as a margin allows stays, whatever the order.
    """
    return 8 * torch.finfo(dtype).eps


InBatch = bool | Literal["positives", "positives_only"]
"""What other queries lend as candidates: all their passages, their positives, or nothing."""


@dataclass(frozen=True, kw_only=True)
class Compared:
    """What is compared, and how it counts: further keywords of `info_nce`."""

    directions: Sequence[Direction] = ("query_to_doc",)
    """`query_to_doc` is always among them."""
    in_batch: InBatch = True
    """What other queries lend: True: all their passages; `positives`: no hard negatives; False:
    nothing. Own hard negatives are candidates, but under `positives_only`, where none are."""
    margin_of: Literal["own", "best"] = "best"
    """The positive that a margin is measured from: the slot's own, or the query's best."""
    hardness: float = 0.0
    """alpha, at least 0: a negative of `query_to_doc` has the logit
    `score / temperature + alpha * score`, the second part a constant for the gradient."""
    hardness_of: HardnessOf = "all"
    """Which negatives that is: all, those of other queries, or a query's own hard negatives."""
    prefixes: Sequence[Prefix] = (WHOLE,)
    """Leading dimensions whose losses are summed with their weights."""

    def factor(self, temperature: float, *, is_own: bool) -> float:
        """Logit per unit of score of a negative of `query_to_doc`."""
        harder = self.hardness_of in ("all", "hard" if is_own else "in_batch")
        return 1 / temperature + (self.hardness if harder else 0.0)


@dataclass(frozen=True, kw_only=True)
class Guide:
    """What another model makes of the same texts: unit vectors, constants of the loss."""

    queries: Tensor
    """Of these queries [B, T]."""
    passages: Tensor
    """Of the passages of all queries [G, P + N, T]."""
    all_queries: Tensor | None = None
    """Of all queries [G, T], where the loss is given these."""


@dataclass(frozen=True, kw_only=True)
class Job:
    """What the tiles need besides the embeddings."""

    num_positives: int
    temperature: float
    first_row: int = 0
    dense: Tensor | None = None
    """Known pairs where `query_to_doc` alone is compared [B, G, P + N], bool."""
    pairs: Tensor | None = None
    """Known (query of all G, group, slot) [M, 3], int64."""
    absent: Tensor | None = None
    """[G, P + N], bool."""
    margin: float | None = None
    """Candidates whose score is above a positive's by more than this are left out."""
    guide: Guide | None = None
    """Candidates that it finds nearer than the best positive are left out."""
    compared: Compared = Compared()
    """The rest."""


class Side:
    """Vectors on one side of a block: a column of a table, and where gradients go."""

    def __init__(
        self, values: Tensor, scales: Sequence[Tensor | None], grad: Tensor | None
    ) -> None:
        self.values = values  # [n, d] with d the longest prefix, any strides
        self.scales = scales  # of each prefix 1 / norm [n]; None: as given
        self.grad = grad  # like values, in the dtype of the computation; None: forward only

    def tile(self, rows: slice, dtype: torch.dtype) -> Tensor:
        """Some rows as they are given."""
        return self.values[rows].to(dtype)

    def scale(self, at: int, rows: slice) -> Tensor | None:
        """1 / norm of a prefix of some rows [rows]; None: as given."""
        scale = self.scales[at]
        return None if scale is None else scale[rows]

    def add(self, rows: slice, segment: slice, weights: Tensor, other: Tensor) -> None:
        """Add `weights @ other` to some dimensions of the gradient."""
        assert self.grad is not None
        self.grad[rows, segment].addmm_(weights, other[:, segment])

    def shorten(self, rows: slice, size: int, tile: Tensor, along: Tensor) -> None:
        """Take multiples `along` [rows] of the vectors off the first `size` of their gradients."""
        assert self.grad is not None
        self.grad[rows, :size].addcmul_(tile[:, :size], along[:, None], value=-1)


@dataclass(frozen=True, kw_only=True)
class Block:
    """Left vectors [B] against one candidate of each group [G]."""

    kind: Direction
    left: Side
    right: Side
    slot: int | None
    """The positive slot in whose denominator it stands; None: in all P."""
    column: int | None = None
    """Column of passages on the right; None: queries."""
    pairs: Tensor | None = None
    """(left, right) left out [M, 2], int64."""
    only_own: bool = False
    """Whether the diagonal alone counts."""

    def is_target(self, job: Job) -> bool:
        """Whether its diagonal holds the targets."""
        return self.kind == "query_to_doc" and (self.column or 0) < job.num_positives


@dataclass(frozen=True)
class Tables:
    """All vectors of a loss."""

    queries: Side
    """Own queries [B]."""
    others: Side
    """Queries of all groups [G]."""
    passages: tuple[Side, ...]
    """Each column [G]."""
    own: tuple[Side, ...]
    """Each positive column of the own groups [B]."""


def tables_of(
    queries: Tensor,
    others: Tensor | None,
    passages: Tensor,
    job: Job,
    prefixes: Sequence[Prefix],
    grads: Sequence[Tensor | None] = (None, None, None),
) -> Tables:
    """The vectors as sides under ascending prefixes, with their gradients where they are wanted."""
    dtype = compute_dtype((queries, passages))
    longest = slice(0, prefixes[-1].size)

    def of_table(table: Tensor, grad: Tensor | None) -> Callable[[Any], Side]:
        norms = [inverse_norms(table, prefix, dtype) for prefix in prefixes]
        return lambda index: Side(
            table[index][..., longest],
            [None if scale is None else scale[index] for scale in norms],
            None if grad is None else grad[index][..., longest],
        )

    everything = slice(None)
    own_queries = of_table(queries, grads[0])(everything)
    of_passages = of_table(passages, grads[2])
    mine = slice(job.first_row, job.first_row + len(queries))
    return Tables(
        queries=own_queries,
        others=own_queries if others is None else of_table(others, grads[1])(everything),
        passages=tuple(of_passages((everything, column)) for column in range(passages.shape[1])),
        own=tuple(of_passages((mine, slot)) for slot in range(job.num_positives)),
    )


def blocks(job: Job, tables: Tables) -> Iterator[Block]:
    """The blocks of a loss, with the known pairs that each leaves out."""
    directions, in_batch = job.compared.directions, job.compared.in_batch
    first, last = job.first_row, job.first_row + len(tables.queries.values)
    for column in range(
        job.num_positives if in_batch == "positives_only" else len(tables.passages)
    ):
        is_positive = column < job.num_positives
        pairs = None if job.pairs is None else _known_to(job.pairs, column, first, last)
        for slot in (column,) if is_positive else _shared_slots(job):
            yield Block(
                kind="query_to_doc", left=tables.queries, right=tables.passages[column],
                slot=slot, column=column, pairs=pairs,
                only_own=not is_positive and in_batch == "positives",
            )  # fmt: skip
        if "doc_to_doc" in directions and (is_positive or in_batch is True):
            for slot in (column,) if is_positive else range(job.num_positives):
                yield Block(
                    kind="doc_to_doc", left=tables.own[slot], right=tables.passages[column],
                    slot=slot, column=column, pairs=pairs,
                )  # fmt: skip
    if "query_to_query" in directions:
        pairs = None if job.pairs is None else _asking_alike(job, first, last)
        for shared in _shared_slots(job):
            yield Block(
                kind="query_to_query", left=tables.queries, right=tables.others,
                slot=shared, pairs=pairs,
            )  # fmt: skip
    if "doc_to_query" in directions:
        for slot in range(job.num_positives):
            pairs = None if job.pairs is None else _known_from(job.pairs, slot, first, last)
            yield Block(
                kind="doc_to_query", left=tables.own[slot], right=tables.others,
                slot=slot, pairs=pairs,
            )  # fmt: skip


def _shared_slots(job: Job) -> tuple[int | None, ...]:
    """Once for all denominators, unless what is left out differs between them."""
    differ = job.margin is not None and job.compared.margin_of == "own"
    return tuple(range(job.num_positives)) if differ else (None,)


def _known_to(pairs: Tensor, column: int, first: int, last: int) -> Tensor:
    """(own row, group) of known passages in a column [M, 2]."""
    query, group, slot = pairs.unbind(1)
    here = (slot == column) & (query >= first) & (query < last)
    return torch.stack([query[here] - first, group[here]], dim=1)


def _known_from(pairs: Tensor, slot: int, first: int, last: int) -> Tensor:
    """(own row, query) of queries that an own positive answers [M, 2]."""
    query, group, column = pairs.unbind(1)
    here = (column == slot) & (group >= first) & (group < last)
    return torch.stack([group[here] - first, query[here]], dim=1)


def _asking_alike(job: Job, first: int, last: int) -> Tensor:
    """(own row, query) of queries with a positive that answers the own one [M, 2]."""
    assert job.pairs is not None
    query, group, column = job.pairs.unbind(1)
    here = (column < job.num_positives) & (query >= first) & (query < last)
    return torch.stack([query[here] - first, group[here]], dim=1)
