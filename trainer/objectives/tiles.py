"""The tiles of InfoNCE: blocks of similarities, summed and pulled back without holding a block.

It must not call a collective, nor check arguments.

Letters: G queries of the global batch, B of them in this call, P positive slots, N negatives per
query, D embedding size, M pairs; b and t rows and columns of one tile.
"""

import math
from collections.abc import Iterator
from itertools import repeat
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from trainer.objectives.arguments import compute_dtype
from trainer.objectives.blocks import GUIDE_TOLERANCE, Block, Job, Tables, blocks, tables_of
from trainer.objectives.prefixes import WHOLE

TILE_BYTES = 16 * 2**20
"""Largest tile of logits, of queries and of passages, bytes each; about four live at once.

They come on top of the graphs that the first pass keeps; larger ones are no faster.
"""


class TiledInfoNCE(torch.autograd.Function):
    """Cross-entropies [B, P], summed over prefixes, of queries [B, D] and passages [G, P + N, D].

    `others` are the queries of all ranks [G, D]; None where the own ones are all.
    """

    @staticmethod
    def forward(
        ctx: Any, queries: Tensor, others: Tensor | None, passages: Tensor, job: Job
    ) -> Tensor:
        """See the class."""
        dtype = compute_dtype((queries, passages))
        losses = queries.new_zeros((len(queries), job.num_positives), dtype=dtype)
        totals = []
        with torch.autocast(queries.device.type, enabled=False):
            for prefix in job.compared.prefixes:
                tables = tables_of(queries, others, passages, job, prefix, None)
                total, target = _Scan(job, tables, dtype, _width(queries, job)).run()
                losses.add_(total - target, alpha=prefix.weight)
                totals.append(total)
        ctx.save_for_backward(queries, others, passages, *totals)
        ctx.job = job
        return losses

    @staticmethod
    @once_differentiable
    def backward(
        ctx: Any, grad: Tensor
    ) -> tuple[Tensor | None, Tensor | None, Tensor | None, None]:
        """Gradients to the three tables."""
        queries, others, passages, *totals = ctx.saved_tensors
        dtype = grad.dtype
        inputs = [queries, others, passages]
        grads = [
            None if given is None else torch.zeros(given.shape, dtype=dtype, device=given.device)
            for given in inputs
        ]
        with torch.autocast(queries.device.type, enabled=False):
            for prefix, total in zip(ctx.job.compared.prefixes, totals, strict=True):
                tables = tables_of(queries, others, passages, ctx.job, prefix, grads)
                scan = _Scan(ctx.job, tables, dtype, _width(queries, ctx.job))
                scan.pull_back(total, grad * prefix.weight)
        first, second, third = (
            found if found is None else found.to(given.dtype)
            for found, given in zip(grads, inputs, strict=True)
        )
        return first, second, third, None


class _Scan:
    """One pass over all tiles of all blocks, forward or back."""

    def __init__(self, job: Job, tables: Tables, dtype: torch.dtype, width: int) -> None:
        self.job = job
        self.tables = tables
        self.dtype = dtype
        self.num_rows = len(tables.queries.values)
        self.num_groups = len(tables.passages[0].values)
        self.width = width
        self.device = tables.queries.values.device
        self.ceilings = self._ceilings()
        self.guides, self.guide_ceiling = self._guides()

    def run(self) -> tuple[Tensor, Tensor]:
        """The log of each denominator and the logit of each target, both [B, P]."""
        num_rows, num_positives = self.num_rows, self.job.num_positives
        options: dict[str, Any] = {"dtype": self.dtype, "device": self.device}
        slots = torch.full((num_rows, num_positives), -math.inf, **options)
        # what stands in all denominators is summed once
        shared = torch.full((num_rows, 1), -math.inf, **options)
        targets = torch.zeros((num_rows, num_positives), **options)
        for block, groups, rows, logits, own, _, _ in self._tiles():
            if block.is_target(self.job):
                targets[self._target_rows(rows, groups), block.column] = own
            so_far = shared[rows, 0] if block.slot is None else slots[rows, block.slot]
            so_far.copy_(torch.logaddexp(so_far, logits.logsumexp(1)))
        return torch.logaddexp(slots, shared), targets

    def pull_back(self, totals: Tensor, grad: Tensor) -> None:
        """Add the gradient of `(grad * (totals - targets)).sum()` to those of the sides."""
        pivot, scale = _shared_weights(totals, grad)
        for block, groups, rows, logits, own, left, right in self._tiles():
            in_all = block.slot is None
            pivots = pivot[rows] if in_all else totals[rows, block.slot, None]
            scales = scale[rows] if in_all else grad[rows, block.slot, None]
            # d logit / d cosine is 1 / temperature: hardness is a constant
            weights = logits.sub_(pivots).exp_().mul_(scales / self.job.temperature)
            if block.is_target(self.job):
                mine = self._target_rows(rows, groups)
                own.sub_(grad[mine, block.column] / self.job.temperature)
            block.left.add(rows, weights, right, left)
            block.right.add(groups, weights.T, left, right)

    def _tiles(
        self,
    ) -> Iterator[tuple[Block, slice, slice, Tensor, Tensor, Tensor, Tensor]]:
        """(block, groups, rows, logits [b, t], their diagonal, left tile, right tile)."""
        row_tiles, group_tiles = cut_tiles(self.num_rows, self.num_groups, self.width, self.dtype)
        guides = repeat(None) if self.guides is None else blocks(self.job, self.guides)
        for block, guide in zip(blocks(self.job, self.tables), guides, strict=False):
            for groups in group_tiles:
                right = block.right.tile(groups, self.dtype)
                pairs = _pairs_of_groups(block.pairs, groups)
                for rows in row_tiles:
                    if block.only_own and not self._has_own(rows, groups):
                        continue
                    left = block.left.tile(rows, self.dtype)
                    likely = self._likely(guide, rows, groups)
                    logits, own = self._logits(block, left, right, rows, groups, pairs, likely)
                    yield block, groups, rows, logits, own, left, right

    def _logits(
        self,
        block: Block,
        left: Tensor,
        right: Tensor,
        rows: slice,
        groups: slice,
        pairs: Tensor | None,
        likely: Tensor | None,
    ) -> tuple[Tensor, Tensor]:
        """One tile of logits [b, t], -inf where left out, and a view of its diagonal."""
        job = self.job
        plain, factor = 1 / job.temperature, self._factor(block, is_own=False)
        logits = (left * factor) @ right.T
        # row i of the tile is query first_row + rows.start + i; its own group is on this diagonal
        own = logits.diagonal(job.first_row + rows.start - groups.start)
        kept = own * (plain / factor)
        ceiling = self.ceilings
        if ceiling is not None:
            limit = ceiling[rows, 0 if block.slot is None else block.slot, None] * factor
            logits.masked_fill_(logits > limit, -math.inf)
        if likely is not None:
            logits.masked_fill_(likely, -math.inf)
        if block.kind == "query_to_doc" and not block.is_target(job):
            own.mul_(self._factor(block, is_own=True) / factor)
        if job.dense is not None and block.column is not None:
            logits.masked_fill_(job.dense[rows, groups, block.column].to(self.device), -math.inf)
        if job.absent is not None and block.column is not None:
            # [t], the same for every row
            logits.masked_fill_(job.absent[groups, block.column].to(self.device), -math.inf)
        if pairs is not None:
            row = pairs[:, 0]
            here = pairs[(row >= rows.start) & (row < rows.stop)].to(self.device)
            logits[here[:, 0] - rows.start, here[:, 1] - groups.start] = -math.inf
        if block.only_own:
            kept = own.clone()
            logits.fill_(-math.inf)
            own.copy_(kept)
        elif block.is_target(job) or block.kind == "doc_to_query":
            own.copy_(kept)
        elif block.kind != "query_to_doc":
            own.fill_(-math.inf)
        return logits, own

    def _factor(self, block: Block, *, is_own: bool) -> float:
        """Logit per unit of cosine, on the diagonal or off it."""
        if block.kind != "query_to_doc":
            return 1 / self.job.temperature
        return self.job.compared.factor(self.job.temperature, is_own=is_own)

    def _ceilings(self) -> Tensor | None:
        """Highest cosine of a candidate that stays, per slot [B, P]; None without a margin."""
        if self.job.margin is None:
            return None
        scores = self._target_scores(self.tables)
        if self.job.compared.margin_of == "best":
            scores = scores.amax(1, keepdim=True).expand(-1, self.job.num_positives)
        return scores + self.job.margin

    def _target_scores(self, tables: Tables) -> Tensor:
        """Cosines of queries with their positives [B, P]."""
        rows = slice(0, self.num_rows)
        queries = tables.queries.tile(rows, self.dtype)
        return torch.stack(
            [(queries * own.tile(rows, self.dtype)).sum(1) for own in tables.own], dim=1
        )

    def _guides(self) -> tuple[Tables | None, Tensor | None]:
        """A guide's vectors, and its cosine with the best positive of each query [B]."""
        guide = self.job.guide
        if guide is None:
            return None, None
        inputs = (guide.queries, guide.all_queries, guide.passages)
        tables = tables_of(*inputs, self.job, WHOLE, None)
        return tables, self._target_scores(tables).amax(1) + GUIDE_TOLERANCE

    def _likely(self, guide: Block | None, rows: slice, groups: slice) -> Tensor | None:
        """What a guide finds nearer than the best positive [b, t], bool."""
        if guide is None or self.guide_ceiling is None:
            return None
        left, right = guide.left.tile(rows, self.dtype), guide.right.tile(groups, self.dtype)
        return left @ right.T > self.guide_ceiling[rows, None]

    def _has_own(self, rows: slice, groups: slice) -> bool:
        """Whether a tile has a part of the diagonal."""
        mine = self._target_rows(rows, groups)
        return mine.start < mine.stop

    def _target_rows(self, rows: slice, groups: slice) -> slice:
        """Which of the B rows have their own group in a tile."""
        start = max(rows.start, groups.start - self.job.first_row)
        return slice(start, max(start, min(rows.stop, groups.stop - self.job.first_row)))


def _width(queries: Tensor, job: Job) -> int:
    """Size of the largest vectors that a tile is made of."""
    return max(queries.shape[1], 0 if job.guide is None else job.guide.queries.shape[1])


def _pairs_of_groups(pairs: Tensor | None, groups: slice) -> Tensor | None:
    """Those on the right of a tile; None where there are none."""
    if pairs is None:
        return None
    right = pairs[:, 1]
    here = pairs[(right >= groups.start) & (right < groups.stop)]
    return here if len(here) else None


def _shared_weights(totals: Tensor, grad: Tensor) -> tuple[Tensor, Tensor]:
    """Numbers u, v [B, 1] such that d loss / d logit of a shared candidate is `exp(logit - u) v`.

    It stands in all P denominators:
    `sum_j grad_j exp(logit - total_j) = exp(logit - u) * sum_j grad_j exp(u - total_j)` with u the
    smallest total, which no shared candidate exceeds, so nothing overflows.
    """
    lowest = totals.amin(1, keepdim=True)
    return lowest, (grad * (lowest - totals).exp()).sum(1, keepdim=True)


def cut_tiles(
    num_rows: int, num_groups: int, width: int, dtype: torch.dtype
) -> tuple[list[slice], list[slice]]:
    """Cuts of B rows and of G groups of vectors [width] under which no tile exceeds TILE_BYTES."""
    entries = max(1, TILE_BYTES // dtype.itemsize)
    longest = max(1, entries // max(1, width))
    rows = min(math.isqrt(entries), longest, max(1, num_rows))
    groups = min(max(1, entries // rows), longest)
    return list(_cuts(num_rows, rows)), list(_cuts(num_groups, groups))


def _cuts(total: int, size: int) -> Iterator[slice]:
    for start in range(0, total, size):
        yield slice(start, min(total, start + size))
