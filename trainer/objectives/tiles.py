"""The tiles of InfoNCE: blocks of similarities, summed and pulled back without holding a block.

It must not call a collective, nor check arguments.

Letters: G queries of the global batch, B of them in this call, P positive slots, N negatives per
query, D embedding size, K prefixes, M pairs; b and t rows and columns of one tile.

The dot products of a prefix are those of the one before it and what its further dimensions add, so
that all prefixes together need the products of the longest alone, forward and back.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise, repeat
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from trainer.objectives.arguments import compute_dtype
from trainer.objectives.blocks import (
    GUIDE_TOLERANCE,
    Block,
    Job,
    Tables,
    blocks,
    rounding,
    tables_of,
)
from trainer.objectives.prefixes import WHOLE, ascending, is_smallest

TILE_BYTES = 16 * 2**20
"""Largest tile of logits, of queries and of passages, bytes each.

They come on top of the graphs that the first pass keeps; larger ones are no faster.
"""
LIVE_TILES = 4
"""How many live at once; each further prefix has one more, and all are so much smaller."""


class TiledInfoNCE(torch.autograd.Function):
    """Cross-entropies [B, P], summed over prefixes, of queries [B, D] and passages [G, P + N, D].

    `others` are the queries of all ranks [G, D]; None where the own ones are all.
    """

    @staticmethod
    def forward(
        ctx: Any, queries: Tensor, others: Tensor | None, passages: Tensor, job: Job
    ) -> Tensor:
        """See the class."""
        ctx.job = job
        with torch.autocast(queries.device.type, enabled=False):
            scan = _Scan(job, (queries, others, passages))
            totals, targets = scan.run()
        ctx.save_for_backward(queries, others, passages, totals)
        # [K, B, P] and one weight for each of the K
        return ((totals - targets) * scan.weights).sum(0)

    @staticmethod
    @once_differentiable
    def backward(
        ctx: Any, grad: Tensor
    ) -> tuple[Tensor | None, Tensor | None, Tensor | None, None]:
        """Gradients to the three tables."""
        *inputs, totals = ctx.saved_tensors
        grads = [
            None
            if given is None
            else torch.zeros(given.shape, dtype=grad.dtype, device=given.device)
            for given in inputs
        ]
        with torch.autocast(inputs[0].device.type, enabled=False):
            scan = _Scan(ctx.job, inputs, grads)
            scan.pull_back(totals, grad * scan.weights)
        first, second, third = (
            found if found is None else found.to(given.dtype)
            for found, given in zip(grads, inputs, strict=True)
        )
        return first, second, third, None


@dataclass(frozen=True, kw_only=True)
class _Tile:
    """Some left vectors of a block against some groups."""

    block: Block
    rows: slice
    groups: slice
    left: Tensor
    """[b, d], with d the longest prefix, as given."""
    right: Tensor
    """[t, d]."""
    masks: Sequence[Tensor]
    """What is left out, bool, each [b, t] or [t]."""
    pairs: Tensor | None
    """(row, column) of known pairs, counted from the tile's corner [M, 2]."""

    def scales(self, at: int) -> tuple[Tensor, Tensor] | None:
        """1 / norm of a prefix, of the left [b] and of the right [t]; None: as given."""
        left = self.block.left.scale(at, self.rows)
        right = self.block.right.scale(at, self.groups)
        return None if left is None or right is None else (left, right)


class _Scan:
    """One pass over all tiles of all blocks, forward or back, for K prefixes at once."""

    def __init__(
        self,
        job: Job,
        inputs: Sequence[Any],
        grads: Sequence[Tensor | None] = (None, None, None),
    ) -> None:
        queries, others, passages = inputs
        self.job = job
        self.dtype = compute_dtype((queries, passages))
        self.device = queries.device
        self.num_rows, size = queries.shape
        self.num_groups = len(passages)
        prefixes = ascending(job.compared.prefixes, size)
        self.stops = [prefix.width(size) for prefix in prefixes]
        """Where each prefix ends."""
        self.segments = [slice(*ends) for ends in pairwise((0, *self.stops))]
        """What each has beyond the one before it."""
        weights = [prefix.weight for prefix in prefixes]
        self.weights = torch.tensor(weights, dtype=self.dtype, device=self.device)[:, None, None]
        """Of each prefix [K, 1, 1]."""
        self.tables = tables_of(queries, others, passages, job, prefixes, grads)
        self.width = max(size, 0 if job.guide is None else job.guide.queries.shape[1])
        """Of the largest vectors that a tile is made of."""
        self.ceilings = self._ceilings()
        self.guides, self.guide_ceiling = self._guides()

    def run(self) -> tuple[Tensor, Tensor]:
        """The log of each denominator and the logit of each target, both [K, B, P]."""
        shape = (len(self.stops), self.num_rows, self.job.num_positives)
        options: dict[str, Any] = {"dtype": self.dtype, "device": self.device}
        slots = torch.full(shape, -math.inf, **options)
        # what stands in all denominators is summed once
        shared = torch.full((*shape[:2], 1), -math.inf, **options)
        targets = torch.zeros(shape, **options)
        for tile in self._tiles():
            block, rows = tile.block, tile.rows
            for at, _, logits, own in self._logits(tile):
                if block.is_target(self.job):
                    targets[at, self._target_rows(rows, tile.groups), block.column] = own
                in_all = block.slot is None
                so_far = shared[at, rows, 0] if in_all else slots[at, rows, block.slot]
                so_far.copy_(torch.logaddexp(so_far, logits.logsumexp(1)))
        return torch.logaddexp(slots, shared), targets

    def pull_back(self, totals: Tensor, grad: Tensor) -> None:
        """Add the gradient of `(grad * (totals - targets)).sum()` to those of the sides."""
        pivot, scale = _shared_weights(totals, grad)
        for tile in self._tiles():
            block, rows = tile.block, tile.rows
            weights = []
            for at, dots, logits, own in self._logits(tile):
                in_all = block.slot is None
                pivots = pivot[at, rows] if in_all else totals[at, rows, block.slot, None]
                scales = scale[at, rows] if in_all else grad[at, rows, block.slot, None]
                # d logit / d cosine is 1 / temperature: hardness is a constant
                logits.sub_(pivots).exp_().mul_(scales / self.job.temperature)
                if block.is_target(self.job):
                    mine = self._target_rows(rows, tile.groups)
                    own.sub_(grad[at, mine, block.column] / self.job.temperature)
                self._through_norms(tile, at, logits, dots)
                weights.append(logits)
            self._add(tile, weights)

    def _through_norms(self, tile: _Tile, at: int, weights: Tensor, dots: Tensor) -> None:
        """From d loss / d cosine [b, t] to d loss / d dot product, in place.

        A cosine does not change along its vectors: what the dot products would change there is
        taken off the gradients.
        """
        scales = tile.scales(at)
        if scales is None:
            return
        weights.mul_(scales[0][:, None]).mul_(scales[1])
        along = weights * dots
        for side, rows, values, scale, sums in zip(
            (tile.block.left, tile.block.right), (tile.rows, tile.groups),
            (tile.left, tile.right), scales, (along.sum(1), along.sum(0)), strict=True,
        ):  # fmt: skip
            multiples = sums * scale.square() / self._factor(tile.block, is_own=False)
            multiples.masked_fill_(is_smallest(scale), 0.0)
            side.shorten(rows, self.stops[at], values, multiples)

    def _add(self, tile: _Tile, weights: list[Tensor]) -> None:
        """Add what the dot products of each prefix pull back: every dimension is read once."""
        longer = None
        for segment, own in zip(reversed(self.segments), reversed(weights), strict=True):
            # a dimension is in the prefix that brings it and in all longer ones
            longer = own if longer is None else own.add_(longer)
            tile.block.left.add(tile.rows, segment, longer, tile.right)
            tile.block.right.add(tile.groups, segment, longer.T, tile.left)

    def _tiles(self) -> Iterator[_Tile]:
        """All of them, block by block."""
        row_tiles, group_tiles = cut_tiles(
            self.num_rows, self.num_groups, self.width, self.dtype, len(self.stops)
        )
        guides = repeat(None) if self.guides is None else blocks(self.job, self.guides)
        for block, guide in zip(blocks(self.job, self.tables), guides, strict=False):
            for groups in group_tiles:
                right = block.right.tile(groups, self.dtype)
                pairs = _pairs_of_groups(block.pairs, groups)
                for rows in row_tiles:
                    if block.only_own and not self._has_own(rows, groups):
                        continue
                    yield _Tile(
                        block=block, rows=rows, groups=groups,
                        left=block.left.tile(rows, self.dtype), right=right,
                        masks=[*self._masks(block, guide, rows, groups)],
                        pairs=None if pairs is None else self._within(pairs, rows, groups),
                    )  # fmt: skip

    def _logits(self, tile: _Tile) -> Iterator[tuple[int, Tensor, Tensor, Tensor]]:
        """Of each prefix its place, dot products times a factor, logits and their diagonal.

        The logits [b, t] are -inf where a candidate is left out. The dot products of a prefix are
        those of the one before it and what it adds: they are to be read before the next comes.
        """
        factor = self._factor(tile.block, is_own=False)
        left, dots = tile.left * factor, None
        for at, segment in enumerate(self.segments):
            if dots is None:
                dots = left[:, segment] @ tile.right[:, segment].T
            else:
                dots.addmm_(left[:, segment], tile.right[:, segment].T)
            scales = tile.scales(at)
            if scales is not None:
                logits = (dots * scales[0][:, None]).mul_(scales[1])
            else:
                logits = dots if at == len(self.segments) - 1 else dots.clone()
            yield at, dots, logits, self._leave_out(tile, at, logits, factor)

    def _leave_out(self, tile: _Tile, at: int, logits: Tensor, factor: float) -> Tensor:
        """Put -inf where a candidate is left out; returns a view of the diagonal."""
        job, block, rows, groups = self.job, tile.block, tile.rows, tile.groups
        # row i of the tile is query first_row + rows.start + i; its own group is on this diagonal
        own = logits.diagonal(job.first_row + rows.start - groups.start)
        kept = own / (job.temperature * factor)
        if self.ceilings is not None:
            slot = 0 if block.slot is None else block.slot
            limit = self.ceilings[at, rows, slot, None] * factor
            logits.masked_fill_(logits > limit, -math.inf)
        if block.kind == "query_to_doc" and not block.is_target(job):
            own.mul_(self._factor(block, is_own=True) / factor)
        for mask in tile.masks:
            logits.masked_fill_(mask, -math.inf)
        if tile.pairs is not None:
            logits[tile.pairs[:, 0], tile.pairs[:, 1]] = -math.inf
        if block.only_own:
            kept = own.clone()
            logits.fill_(-math.inf)
            own.copy_(kept)
        elif block.is_target(job) or block.kind == "doc_to_query":
            own.copy_(kept)
        elif block.kind != "query_to_doc":
            own.fill_(-math.inf)
        return own

    def _factor(self, block: Block, *, is_own: bool) -> float:
        """Logit per unit of cosine, on the diagonal or off it."""
        if block.kind != "query_to_doc":
            return 1 / self.job.temperature
        return self.job.compared.factor(self.job.temperature, is_own=is_own)

    def _masks(
        self, block: Block, guide: Block | None, rows: slice, groups: slice
    ) -> Iterator[Tensor]:
        """What is left out of a tile, bool, each [b, t] or [t]."""
        if guide is not None and self.guide_ceiling is not None:
            left, right = guide.left.tile(rows, self.dtype), guide.right.tile(groups, self.dtype)
            yield left @ right.T > self.guide_ceiling[rows, None]
        if block.column is None:
            return
        if self.job.dense is not None:
            yield self.job.dense[rows, groups, block.column].to(self.device)
        if self.job.absent is not None:
            yield self.job.absent[groups, block.column].to(self.device)

    def _within(self, pairs: Tensor, rows: slice, groups: slice) -> Tensor:
        """Those of some rows, counted from the tile's corner."""
        here = (pairs[:, 0] >= rows.start) & (pairs[:, 0] < rows.stop)
        corner = pairs.new_tensor([rows.start, groups.start])
        return (pairs[here] - corner).to(self.device)

    def _ceilings(self) -> Tensor | None:
        """Highest cosine of a candidate that stays, per slot [K, B, P]; None without a margin."""
        if self.job.margin is None:
            return None
        scores = self._target_scores(self.tables, self.segments)
        if self.job.compared.margin_of == "best":
            scores = scores.amax(2, keepdim=True).expand(-1, -1, self.job.num_positives)
        return scores + self.job.margin + rounding(self.dtype)

    def _target_scores(self, tables: Tables, segments: Sequence[slice]) -> Tensor:
        """Cosines of queries with their positives, by prefix [K, B, P]."""
        rows = slice(0, self.num_rows)
        queries = tables.queries.tile(rows, self.dtype)
        slots = []
        for own in tables.own:
            products = queries * own.tile(rows, self.dtype)
            # [K, B]
            cosines = torch.stack([products[:, one].sum(1) for one in segments]).cumsum(0)
            for at, cosine in enumerate(cosines):
                for scale in (tables.queries.scale(at, rows), own.scale(at, rows)):
                    if scale is not None:
                        cosine.mul_(scale)
            slots.append(cosines)
        return torch.stack(slots, dim=2)

    def _guides(self) -> tuple[Tables | None, Tensor | None]:
        """A guide's vectors, and its cosine with the best positive of each query [B]."""
        guide = self.job.guide
        if guide is None:
            return None, None
        inputs = (guide.queries, guide.all_queries, guide.passages)
        tables = tables_of(*inputs, self.job, [WHOLE])
        best = self._target_scores(tables, [slice(None)])[0].amax(1)
        return tables, best + GUIDE_TOLERANCE

    def _has_own(self, rows: slice, groups: slice) -> bool:
        """Whether a tile has a part of the diagonal."""
        mine = self._target_rows(rows, groups)
        return mine.start < mine.stop

    def _target_rows(self, rows: slice, groups: slice) -> slice:
        """Which of the B rows have their own group in a tile."""
        start = max(rows.start, groups.start - self.job.first_row)
        return slice(start, max(start, min(rows.stop, groups.stop - self.job.first_row)))


def _pairs_of_groups(pairs: Tensor | None, groups: slice) -> Tensor | None:
    """Those on the right of a tile; None where there are none."""
    if pairs is None:
        return None
    right = pairs[:, 1]
    here = pairs[(right >= groups.start) & (right < groups.stop)]
    return here if len(here) else None


def _shared_weights(totals: Tensor, grad: Tensor) -> tuple[Tensor, Tensor]:
    """Numbers u, v [K, B, 1]: d loss / d logit of a shared candidate is `exp(logit - u) v`.

    It stands in all P denominators:
    `sum_j grad_j exp(logit - total_j) = exp(logit - u) * sum_j grad_j exp(u - total_j)` with u the
    smallest total, which no shared candidate exceeds, so nothing overflows.
    """
    lowest = totals.amin(2, keepdim=True)
    return lowest, (grad * (lowest - totals).exp()).sum(2, keepdim=True)


def cut_tiles(
    num_rows: int, num_groups: int, width: int, dtype: torch.dtype, num_prefixes: int = 1
) -> tuple[list[slice], list[slice]]:
    """Cuts of B rows and of G groups of vectors [width] under which no tile exceeds TILE_BYTES.

    With more prefixes tiles are smaller, as more live at once.
    """
    entries = max(1, TILE_BYTES * LIVE_TILES // (LIVE_TILES - 1 + num_prefixes) // dtype.itemsize)
    longest = max(1, entries // max(1, width))
    rows = min(math.isqrt(entries), longest, max(1, num_rows))
    groups = min(max(1, entries // rows), longest)
    return list(_cuts(num_rows, rows)), list(_cuts(num_groups, groups))


def _cuts(total: int, size: int) -> Iterator[slice]:
    for start in range(0, total, size):
        yield slice(start, min(total, start + size))
