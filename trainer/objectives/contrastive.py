"""InfoNCE in tiles: the similarity matrix is never held whole; it must not call a collective.

Letters: G queries of the global batch, B of them in this call, P positive slots, N negatives per
query, D embedding size, n pairs; b and t rows and columns of one tile.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from trainer.objectives.arguments import compute_dtype, require, require_temperature, shape

TILE_BYTES = 16 * 2**20
"""Largest tile of logits, of queries and of passages, bytes each; about four live at once.

They come on top of the graphs that the first pass keeps; larger ones are no faster.
"""


def info_nce(
    queries: Tensor,
    passages: Tensor,
    *,
    num_positives: int,
    temperature: float,
    mask: Tensor | None = None,
    absent: Tensor | None = None,
    margin: float | None = None,
    first_row: int = 0,
) -> Tensor:
    """Multi-positive InfoNCE: one cross-entropy per query and positive slot.

    The candidates of slot j are the slot-j positives of all G queries and all G * N hard negatives.
    Computed in float32, or in float64 if an input is float64, whatever autocast says.
    Gradients to both inputs are exact and recomputed tile by tile; there is no second derivative.

    Args:
        queries: rows first_row .. first_row + B of the G queries [B, D]. Embeddings are taken as
            given: for cosine similarity the caller gives them unit norm.
        passages: passages of all G queries [G, P + N, D], the P positive slots first; any strides.
        num_positives: P, at least 1.
        temperature: divides the dot product; no unit, greater than 0.
        mask: candidates left out of a query's denominator: bool [B, G, P + N] or
            [B, G * (P + N)], True = left out; or int64 [M, 2] of pairs (row within these B, flat
            column of G * (P + N)), best kept on the CPU. A query's own positive slots stay in.
        absent: passages that do not exist, bool [G, P + N], left out for every query.
        margin: leave out candidates whose score is more than this above the query's best
            positive, as likely false negatives; a constant for the gradient. None: none.
        first_row: global row of the first query.

    Returns:
        Mean over the B queries and P slots, scalar [], in nats; a connected 0 if B = 0. The loss
        of the global batch is the mean of the ranks' values weighted by their B.

    Raises:
        ObjectiveError: if an argument does not fit the others.

    Collective: no.
    Reference: van den Oord et al. 2018, arXiv:1807.03748, eq. 4, with cosine in place of a bilinear
        score; the slots are those of CoDiEmb, arXiv:2508.11442.
    """
    _check(queries, passages, num_positives, first_row)
    require_temperature(temperature, "info_nce")
    dense, pairs = _read_mask(mask, queries.shape[0], passages.shape[0], passages.shape[1])
    if absent is not None:
        _check_absent(absent, passages)
    job = _Job(
        num_positives=num_positives,
        temperature=temperature,
        first_row=first_row,
        dense=dense,
        pairs=pairs,
        absent=absent,
    )
    if margin is not None:
        best = _best_positives(queries, passages, num_positives, first_row)
        job = replace(job, ceiling=(best + margin) / temperature)
    losses: Tensor = _TiledInfoNCE.apply(queries, passages, job)
    return losses.sum() / max(1, losses.numel())


def paired_info_nce(
    first: Tensor, second: Tensor, positive: Tensor, *, temperature: float
) -> Tensor:
    """InfoNCE within scored pairs: the first text of each positive pair against all second texts.

    One direction only, first to second, as a query meets passages in `info_nce`. The second texts
    of the other pairs are negatives, also where they repeat a text or belong to a positive pair.

    Args:
        first: embeddings of the first texts [n, D], unit norm for cosine similarity.
        second: embeddings of the second texts [n, D].
        positive: which pairs are positives [n], bool.
        temperature: divides the dot product; no unit, greater than 0.

    Returns:
        Mean over the positive pairs, scalar [], in nats, float32 (float64 if an input is); a
        connected 0 if no pair is positive or n < 2.

    Raises:
        ObjectiveError: if the shapes do not agree or the temperature is not above 0.

    Collective: no.
    Reference: the auxiliary term of CoDiEmb, arXiv:2508.11442.
    """
    advice = "Give both sides [n, D] and one flag per pair."
    got = [shape(first), shape(second), shape(positive)]
    holds = first.ndim == 2 and first.shape == second.shape and positive.shape == first.shape[:1]
    require(holds, "paired_info_nce: shapes", got, "[n, D], [n, D] and [n]", advice)
    require_temperature(temperature, "paired_info_nce")
    # [n, D] -> [n, 1, D]: one positive slot and no hard negatives
    job = _Job(num_positives=1, temperature=temperature)
    losses: Tensor = _TiledInfoNCE.apply(first, second.unsqueeze(1), job)
    chosen = positive.to(losses.dtype)
    return (losses[:, 0] * chosen).sum() / chosen.sum().clamp_min(1)


@dataclass(frozen=True, kw_only=True)
class _Job:
    """What the tiles need besides the embeddings."""

    num_positives: int
    temperature: float
    first_row: int = 0
    dense: Tensor | None = None
    """[B, G, P + N], bool."""
    pairs: Tensor | None = None
    """(row, group, slot) [M, 3], int64."""
    absent: Tensor | None = None
    """[G, P + N], bool."""
    ceiling: Tensor | None = None
    """Highest logit of a candidate that stays in [B]."""

    def slot(self, groups: slice, slot: int) -> "_Job":
        """The same job with only the pairs of this slot and these groups."""
        if self.pairs is None:
            return self
        group = self.pairs[:, 1]
        here = (self.pairs[:, 2] == slot) & (group >= groups.start) & (group < groups.stop)
        return replace(self, pairs=self.pairs[here])

    def logits(
        self, query: Tensor, passage: Tensor, rows: slice, groups: slice, slot: int
    ) -> tuple[Tensor, Tensor]:
        """One tile of logits with its mask applied.

        Args:
            query: queries divided by the temperature [b, D].
            passage: one slot of some groups [t, D].
            rows: which rows of the B queries these are.
            groups: which of the G groups these are.
            slot: which of the P + N slots this is.

        Returns:
            Logits [b, t], -inf where left out, and the targets as a view of their diagonal.
        """
        logits = query @ passage.T
        # Row i of the tile is query first_row + rows.start + i; its own group is on this diagonal.
        own = logits.diagonal(self.first_row + rows.start - groups.start)
        kept = own.clone() if slot < self.num_positives else None
        if self.dense is not None:
            left_out = self.dense[rows, groups, slot].to(logits.device)
            logits.masked_fill_(left_out, -math.inf)
        if self.absent is not None:
            # [t], the same for every row
            logits.masked_fill_(self.absent[groups, slot].to(logits.device), -math.inf)
        if self.ceiling is not None:
            logits.masked_fill_(logits > self.ceiling[rows, None], -math.inf)
        if self.pairs is not None:
            row = self.pairs[:, 0]
            here = self.pairs[(row >= rows.start) & (row < rows.stop)].to(logits.device)
            logits[here[:, 0] - rows.start, here[:, 1] - groups.start] = -math.inf
        if kept is not None:
            own.copy_(kept)
        return logits, own


class _TiledInfoNCE(torch.autograd.Function):
    """Cross-entropies [B, P] of queries [B, D] against passages [G, P + N, D], tile by tile."""

    @staticmethod
    def forward(ctx: Any, queries: Tensor, passages: Tensor, job: _Job) -> Tensor:
        with torch.autocast(queries.device.type, enabled=False):
            totals, targets = _scan(queries, passages, job)
        ctx.save_for_backward(queries, passages, totals)
        ctx.job = job
        return totals - targets

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
        queries, passages, totals = ctx.saved_tensors
        with torch.autocast(queries.device.type, enabled=False):
            grads = _pull_back(queries, passages, ctx.job, totals, grad)
        return *grads, None


def _scan(queries: Tensor, passages: Tensor, job: _Job) -> tuple[Tensor, Tensor]:
    """The log of each denominator and the logit of each target, both [B, P]."""
    dtype = compute_dtype((queries, passages))
    num_rows, num_slots, num_positives = len(queries), passages.shape[1], job.num_positives
    # Each slot is summed once; the negatives are then shared by all positive slots.
    slots = queries.new_full((num_rows, num_slots), -math.inf, dtype=dtype)
    targets = queries.new_zeros((num_rows, num_positives), dtype=dtype)
    row_tiles, group_tiles = _tiles(queries, passages, dtype)
    for groups in group_tiles:
        for slot in range(num_slots):
            passage = passages[groups, slot].to(dtype)
            slot_job = job.slot(groups, slot)
            for rows in row_tiles:
                query = queries[rows].to(dtype) / job.temperature
                logits, own = slot_job.logits(query, passage, rows, groups, slot)
                if slot < num_positives:
                    targets[_target_rows(rows, groups, job.first_row), slot] = own
                so_far = slots[rows, slot]
                so_far.copy_(torch.logaddexp(so_far, logits.logsumexp(1)))
    negatives = slots[:, num_positives:].logsumexp(1, keepdim=True)
    return torch.logaddexp(slots[:, :num_positives], negatives), targets


def _pull_back(
    queries: Tensor, passages: Tensor, job: _Job, totals: Tensor, grad: Tensor
) -> tuple[Tensor, Tensor]:
    """Gradients to queries and passages of `(grad * (totals - targets)).sum()`."""
    dtype = totals.dtype
    grad_queries = torch.zeros_like(queries, dtype=dtype)
    grad_passages = torch.empty_like(passages)
    pivots, scales = _slot_weights(totals, grad, passages.shape[1])
    row_tiles, group_tiles = _tiles(queries, passages, dtype)
    for groups in group_tiles:
        for slot in range(passages.shape[1]):
            passage = passages[groups, slot].to(dtype)
            grad_passage = torch.zeros_like(passage, memory_format=torch.contiguous_format)
            slot_job = job.slot(groups, slot)
            for rows in row_tiles:
                query = queries[rows].to(dtype) / job.temperature
                logits, own = slot_job.logits(query, passage, rows, groups, slot)
                weights = logits.sub_(pivots[rows, slot, None]).exp_()
                weights.mul_(scales[rows, slot, None])
                if slot < job.num_positives:
                    own.sub_(grad[_target_rows(rows, groups, job.first_row), slot])
                grad_queries[rows].addmm_(weights, passage)
                grad_passage.addmm_(weights.T, query)
            grad_passages[groups, slot] = grad_passage
    return grad_queries.div_(job.temperature).to(queries.dtype), grad_passages


def _best_positives(
    queries: Tensor, passages: Tensor, num_positives: int, first_row: int
) -> Tensor:
    """Highest score of a query with one of its own positives [B], without graph."""
    dtype = compute_dtype((queries, passages))
    own = passages[first_row : first_row + len(queries), :num_positives].detach().to(dtype)
    # [B, P, D] . [B, D] -> [B, P]
    scores = (own @ queries.detach().to(dtype)[:, :, None]).squeeze(2)
    return scores.amax(1)


def _slot_weights(totals: Tensor, grad: Tensor, num_slots: int) -> tuple[Tensor, Tensor]:
    """Numbers u, v [B, P + N] such that d loss / d logit of a slot is `exp(logit - u) * v`.

    A positive slot has its own denominator. A negative stands in all P of them:
    `sum_j grad_j exp(logit - total_j) = exp(logit - u) * sum_j grad_j exp(u - total_j)` with u the
    smallest total, which no negative exceeds, so nothing overflows.
    """
    num_negatives = num_slots - totals.shape[1]
    lowest = totals.amin(1, keepdim=True)
    shared = (grad * (lowest - totals).exp()).sum(1, keepdim=True)
    pivots = torch.cat([totals, lowest.expand(-1, num_negatives)], dim=1)
    return pivots, torch.cat([grad, shared.expand(-1, num_negatives)], dim=1)


def _target_rows(rows: slice, groups: slice, first_row: int) -> slice:
    """Which of the B rows have their own group in a tile."""
    start = max(rows.start, groups.start - first_row)
    return slice(start, max(start, min(rows.stop, groups.stop - first_row)))


def _tiles(
    queries: Tensor, passages: Tensor, dtype: torch.dtype
) -> tuple[list[slice], list[slice]]:
    """Cuts of the B queries and of the G groups under which no tile exceeds TILE_BYTES."""
    entries = max(1, TILE_BYTES // dtype.itemsize)
    longest = max(1, entries // max(1, queries.shape[1]))
    num_rows = min(math.isqrt(entries), longest, max(1, len(queries)))
    num_groups = min(max(1, entries // num_rows), longest)
    return list(_cuts(len(queries), num_rows)), list(_cuts(len(passages), num_groups))


def _cuts(total: int, size: int) -> Iterator[slice]:
    for start in range(0, total, size):
        yield slice(start, min(total, start + size))


def _check(queries: Tensor, passages: Tensor, num_positives: int, first_row: int) -> None:
    advice = "Give queries [B, D] and the passages of all G queries [G, P + N, D]."
    got = [shape(queries), shape(passages)]
    ranks = (queries.ndim, passages.ndim)
    require(ranks == (2, 3), "info_nce: queries, passages", got, "[B, D], [G, P + N, D]", advice)
    same_size = queries.shape[1] == passages.shape[2]
    require(same_size, "info_nce: embedding sizes", got, "equal D", advice)
    num_slots = passages.shape[1]
    advice = "Count the positive slots, which come first in passages."
    holds = 1 <= num_positives <= num_slots
    require(holds, "info_nce: num_positives", num_positives, f"1 to {num_slots}", advice)
    last = passages.shape[0] - queries.shape[0]
    advice = "The queries must be rows first_row .. first_row + B of the G."
    require(0 <= first_row <= last, "info_nce: first_row", first_row, f"0 to {last}", advice)


def _check_absent(absent: Tensor, passages: Tensor) -> None:
    fits = absent.dtype == torch.bool and absent.shape == passages.shape[:2]
    got, expected = [absent.dtype, shape(absent)], f"bool {shape(passages)[:2]}"
    require(fits, "info_nce: absent", got, expected, "Give one flag per passage.")


def _read_mask(
    mask: Tensor | None, num_rows: int, num_groups: int, num_slots: int
) -> tuple[Tensor | None, Tensor | None]:
    """The dense mask [B, G, P + N] or the triples (row, group, slot) [M, 3]; one is None."""
    if mask is None:
        return None, None
    num_columns = num_groups * num_slots
    if mask.dtype == torch.bool:
        fits = shape(mask) in ([num_rows, num_groups, num_slots], [num_rows, num_columns])
        expected = f"[{num_rows}, {num_groups}, {num_slots}] or [{num_rows}, {num_columns}]"
        advice = "Give one flag per query of this call and candidate."
        require(fits, "info_nce: bool mask", shape(mask), expected, advice)
        return mask.reshape(num_rows, num_groups, num_slots), None
    pairs = mask.dtype == torch.int64 and mask.ndim == 2 and mask.shape[1] == 2
    advice = "Give a bool mask, or int64 pairs (row, column)."
    require(pairs, "info_nce: mask", [mask.dtype, shape(mask)], "bool or int64 [M, 2]", advice)
    bound = mask.new_tensor([num_rows, num_columns])
    inside = bool(((mask >= 0) & (mask < bound)).all())
    advice = "Count rows within this call's queries and columns over all G * (P + N)."
    expected = f"rows below {num_rows}, columns below {num_columns}"
    require(inside, "info_nce: mask pairs", "a pair outside", expected, advice)
    row, column = mask.unbind(1)
    return None, torch.stack([row, column // num_slots, column % num_slots], dim=1)
