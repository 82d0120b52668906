"""Merge one tensor block by block; it must not know shards, threads or reports.

A block is read once where that is enough: when weights are known beforehand or belong to rows or
scalars of which a block holds several. One weight for all of a tensor, or for a row that fills a
block, needs the norms first, in a pass of its own; the second pass then finds the files in the page
cache. Where all changes are adapters' the factors give the norms, and one pass is enough.
"""

import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from trainer.checkpoint.tensors import ReadInto, SlicedTensor, numel
from trainer.errors import CheckpointError
from trainer.merge.arithmetic import (
    add_ties,
    add_weighted,
    delta_weights,
    group_norms,
    kth_largest,
    squares,
)
from trainer.merge.blocks import COMPILED, BlockReader, Scratch, as_array, spans
from trainer.merge.kernels import (
    combination,
    inner_products,
    sum_of_finite_squares,
    sum_of_squares,
    weighted_sum,
)
from trainer.merge.low_rank import change_norms
from trainer.merge.output_file import BLOCK_BYTES
from trainer.merge.settings import MergeSettings
from trainer.merge.spherical import SPHERICAL, NoMeanError, spherical_factors

Write = Callable[[Tensor], None]
"""Takes the next elements of the result, in order."""
Block = tuple[NDArray[Any], tuple[NDArray[Any], ...]]
"""theta0 [n] and theta_k [n] each, in dtypes that the compiled loops read."""


@dataclass(frozen=True, kw_only=True)
class MergeItem:
    """One tensor of the result and where it comes from."""

    name: str
    """Its name in the result."""
    base: SlicedTensor
    """theta0."""
    tuned: tuple[SlicedTensor, ...]
    """theta_k, one per checkpoint."""
    dtype: torch.dtype
    """Dtype of the result."""
    paths: tuple[Path, ...]
    """Base and checkpoints, for messages."""
    is_averaged: bool = False
    """Whether the base has no such tensor: then `base` is zeros, and the result is the mean of the
    checkpoints, as how far each moved from its random start is not known."""

    @property
    def num_elements(self) -> int:
        """Elements of the tensor."""
        return numel(self.base.shape)

    @property
    def num_bytes(self) -> int:
        """Bytes of the result."""
        return self.num_elements * self.dtype.itemsize

    @property
    def input_bytes(self) -> int:
        """Bytes of all inputs as stored."""
        return sum(self.num_elements * one.dtype.itemsize for one in (self.base, *self.tuned))


@dataclass(frozen=True)
class Outcome:
    """What became of a tensor."""

    norms: tuple[float, ...]
    """L2 norm of each checkpoint's change."""
    weights: tuple[float, ...]
    """Weight of each checkpoint; its mean where there is one per row or scalar. Under `ties` the
    share of elements it took part in."""


def bytes_per_element(num_checkpoints: int, settings: MergeSettings) -> int:
    """Memory of one worker per element of a block, temporaries included, bytes."""
    temporaries = 1 if is_compiled(settings) else 4 * num_checkpoints
    return 8 * (1 + num_checkpoints) + 8 + 8 * temporaries


def is_compiled(settings: MergeSettings) -> bool:
    """Whether compiled loops do the arithmetic: where a weight belongs to a whole tensor."""
    return settings.method != "ties" and settings.granularity == "tensor"


def merge_tensor(
    item: MergeItem, settings: MergeSettings, scratch: Scratch, write: Write
) -> Outcome:
    """Compute one tensor of the result and hand it on block by block.

    Args:
        item: the tensor.
        settings: the method.
        scratch: this worker's memory.
        write: gets the result in order; its tensor is overwritten afterwards.

    Raises:
        CheckpointError: at NaN or infinity unless allowed, and if a tensor that is not of floats
            differs between base and checkpoints.
    """
    if item.is_averaged:
        settings = replace(settings, method="uniform", granularity="tensor", lambda_=1.0)
    work = _Work(item, settings, scratch, write)
    if not item.dtype.is_floating_point:
        return work.copy_equal()
    if settings.method == "ties":
        return work.run_ties()
    if settings.method in SPHERICAL:
        return work.run_spherical()
    if settings.method == "delta" and settings.alpha != 0:
        return work.run_by_norm()
    return work.run_fixed()


@dataclass
class _Work:
    """One tensor on its way."""

    item: MergeItem
    settings: MergeSettings
    scratch: Scratch
    write: Write
    blocks: BlockReader = field(init=False)
    square_K: Tensor = field(init=False)

    def __post_init__(self) -> None:
        self.blocks = BlockReader(self.item.base, self.item.tuned, self.scratch)
        self.square_K = torch.zeros(len(self.item.tuned), dtype=torch.float64)

    def run_fixed(self) -> Outcome:
        """Weights known beforehand: one pass, which gives the norms as well."""
        weight_K = self._fixed_weights()
        for start, stop in spans(self.item.num_elements, self.scratch.block):
            block = self.blocks.arrays(start, stop)
            merged_N, square_K = self._weighted_sum(block, weight_K)
            square_K = self._count(square_K, block, start)
            if not self._emit_unchanged(start, stop, square_K):
                self.write(merged_N)
        return self._outcome(weight_K)

    def run_by_norm(self) -> Outcome:
        """Weights from norms, of the tensor or of its rows or scalars."""
        total_K = torch.zeros_like(self.square_K)
        for start, stop, num_groups in self._groups():
            if num_groups == 1:
                total_K += self._merge_group(start, stop)
            else:
                total_K += self._merge_groups(start, stop, num_groups)
        num_groups = max(1, self._num_groups())
        return self._outcome(total_K / num_groups)

    def run_spherical(self) -> Outcome:
        """Inner products first, whose factors a second pass needs."""
        count = len(self.item.tuned)
        ranges = list(spans(self.item.num_elements, self.scratch.block))
        inner_KK = np.zeros((count, count))
        for start, stop in ranges:
            inner_KK += inner_products(self._count_block(start, stop)[1][1])
        factor_K = self._spherical_factors(inner_KK)
        for start, stop in ranges:
            if not self._emit_unchanged(start, stop, self.square_K):
                self.write(self._combination(self.blocks.arrays(start, stop)[1], factor_K))
        return self._outcome(torch.from_numpy(factor_K))

    def run_ties(self) -> Outcome:
        """Thresholds first, then one pass; a weight is a share of elements."""
        size = self.item.num_elements
        ranges = list(spans(size, self.scratch.block))
        for start, stop in ranges:
            self._count_changes(self.blocks.changes(start, stop)[1], start)
        rank = max(1, int(self.settings.density * size))
        threshold_K = kth_largest(
            lambda: (self.blocks.changes(*one)[1] for one in ranges), len(self.item.tuned), rank
        )
        used_K = torch.zeros(len(self.item.tuned), dtype=torch.int64)
        for start, stop in ranges:
            base_N, delta_KN = self.blocks.changes(start, stop)
            if bool((delta_KN == 0).all()):
                self._emit_bits(self.blocks.readers[0], start, stop)
            else:
                used_K += add_ties(base_N, delta_KN, threshold_K, self.settings.lambda_)
                self._emit_sum(base_N)
        return self._outcome(used_K / max(1, size))

    def copy_equal(self) -> Outcome:
        """A tensor of integers or booleans: the same everywhere, or refused."""
        item = self.item
        for start, stop in spans(item.num_elements, self.scratch.block):
            mine = torch.empty(stop - start, dtype=item.dtype)
            other = torch.empty_like(mine)
            self.blocks.readers[0](start, mine)
            for path, read in zip(item.paths[1:], self.blocks.readers[1:], strict=True):
                read(start, other)
                if not torch.equal(mine, other):
                    raise CheckpointError(
                        f"{path}: {item.name} = other integers than the base's; expected the same. "
                        "Such a tensor cannot be averaged; is this a checkpoint of another model?"
                    )
            self.write(mine)
        return Outcome((0.0,) * len(item.tuned), (0.0,) * len(item.tuned))

    def _merge_group(self, start: int, stop: int) -> Tensor:
        """A tensor or row with one weight per checkpoint; gives these [K]."""
        ranges = [(start + a, start + b) for a, b in spans(stop - start, self.scratch.block)]
        whole = stop - start == self.item.num_elements
        # factors of adapters show beforehand
        known_K = change_norms(self.item.tuned, self.item.base) if whole else None
        if known_K is None:
            square_K = torch.stack([self._count_block(*one)[0] for one in ranges]).sum(0)
            norm_K = square_K.sqrt()
        else:
            norm_K = known_K
        weight_K = delta_weights(norm_K[:, None], self.settings.alpha)[:, 0]
        for first, last in ranges:
            block = None if known_K is None else self._count_block(first, last)[1]
            self._emit_weighted(first, last, weight_K, norm_K, block)
        return weight_K

    def _merge_groups(self, start: int, stop: int, num_groups: int) -> Tensor:
        """Rows or scalars of one block; gives the sum of their weights [K]."""
        base_N, delta_KN = self.blocks.changes(start, stop)
        square_K = self._count_changes(delta_KN, start)
        finite_KN = delta_KN.nan_to_num(0.0, 0.0, 0.0) if self.settings.allow_nan else delta_KN
        weight_KR = delta_weights(group_norms(finite_KN, num_groups), self.settings.alpha)
        if not self._emit_unchanged(start, stop, square_K):
            add_weighted(base_N, delta_KN, weight_KR * self.settings.lambda_)
            self._emit_sum(base_N)
        return weight_KR.sum(1)

    def _spherical_factors(self, inner_KK: NDArray[np.float64]) -> NDArray[np.float64]:
        """What each checkpoint is multiplied by [K]."""
        settings = self.settings
        try:
            return spherical_factors(settings.method, inner_KK, settings.weights, settings.t)
        except NoMeanError as fault:
            raise CheckpointError(
                f"merge: {self.item.name} = {fault}; expected tensors that have a mean under "
                f"{settings.method}. Use another method or other weights."
            ) from fault

    def _count_block(self, start: int, stop: int) -> tuple[Tensor, Block]:
        """Add a block's squared changes to the tensor's; gives the block's [K], and the block."""
        block = base, tuned = self.blocks.arrays(start, stop)
        square_K = _tensor(sum_of_squares(base, one) for one in tuned)
        return self._count(square_K, block, start), block

    def _count(self, square_K: Tensor, block: Block, start: int) -> Tensor:
        """Add a block's squared changes [K] to the tensor's, without those that are not finite."""
        base, tuned = block
        if not bool(square_K.isfinite().all()):
            self._refuse_non_finite(start, len(base))
            square_K = _tensor(sum_of_finite_squares(base, one) for one in tuned)
        self.square_K += square_K
        return square_K

    def _count_changes(self, delta_KN: Tensor, start: int) -> Tensor:
        """The same of changes in float64."""
        square_K = squares(delta_KN)
        if not bool(square_K.isfinite().all()):
            self._refuse_non_finite(start, delta_KN.shape[1])
            square_K = squares(delta_KN.nan_to_num(nan=0.0, posinf=0.0, neginf=0.0))
        self.square_K += square_K
        return square_K

    def _refuse_non_finite(self, start: int, count: int) -> None:
        if self.settings.allow_nan:
            return
        for path, read in zip(self.item.paths, self.blocks.readers, strict=True):
            values = torch.empty(count, dtype=torch.float64)
            read(start, values)
            bad = (~values.isfinite()).nonzero()
            if bad.numel():
                index = int(bad[0])
                raise CheckpointError(
                    f"{path}: {self.item.name}, element {start + index} = {float(values[index])}; "
                    "expected finite numbers. Use an older checkpoint, or --allow-nan to go on."
                )

    def _emit_weighted(
        self, start: int, stop: int, weight_K: Tensor, square_K: Tensor, block: Block | None
    ) -> None:
        """Write a block of weighted changes; it is read here if it was not before."""
        if self._emit_unchanged(start, stop, square_K):
            return
        merged_N, _ = self._weighted_sum(block or self.blocks.arrays(start, stop), weight_K)
        self.write(merged_N)

    def _weighted_sum(self, block: Block, weight_K: Tensor) -> tuple[Tensor, Tensor]:
        """The result of a block [n], until the next is computed, and its squared changes [K]."""
        base, tuned = block
        factor_K, square_K = weight_K * self.settings.lambda_, torch.empty_like(self.square_K)
        sum_N = self._sum_buffer(len(base))
        weighted_sum(base, tuned, factor_K.numpy(), as_array(sum_N), square_K.numpy())
        return self._rounded(sum_N), square_K

    def _combination(
        self, tuned: tuple[NDArray[Any], ...], factor_K: NDArray[np.float64]
    ) -> Tensor:
        """A sum of checkpoints [n], until the next is computed."""
        sum_N = self._sum_buffer(len(tuned[0]))
        combination(tuned, factor_K, as_array(sum_N))
        return self._rounded(sum_N)

    def _sum_buffer(self, count: int) -> Tensor:
        """Where a compiled loop puts its result: in float64 where it cannot round to the dtype."""
        if self.item.dtype in COMPILED:
            return self._out(count)
        return torch.empty(count, dtype=torch.float64)

    def _rounded(self, sum_N: Tensor) -> Tensor:
        return sum_N if self.item.dtype in COMPILED else self._out(len(sum_N)).copy_(sum_N)

    def _emit_unchanged(self, start: int, stop: int, square_K: Tensor) -> bool:
        """Write bits as they are where nothing is to be computed; says whether it did."""
        if self._is_the_checkpoint():
            self._emit_bits(self.blocks.readers[1], start, stop)
            return True
        if not bool(square_K.any()) and not self.settings.allow_nan:
            self._emit_bits(self.blocks.readers[0], start, stop)
            return True
        return False

    def _is_the_checkpoint(self) -> bool:
        """One checkpoint with factor 1: the result is that checkpoint, bit for bit."""
        own_weight = self.settings.method == "delta" or self._fixed_weights().tolist() == [1.0]
        return len(self.item.tuned) == 1 and own_weight and self.settings.lambda_ == 1

    def _emit_bits(self, read: ReadInto, start: int, stop: int) -> None:
        out_N = self._out(stop - start)
        read(start, out_N)
        self.write(out_N)

    def _emit_sum(self, merged_N: Tensor) -> None:
        self.write(self._out(merged_N.numel()).copy_(merged_N))

    def _out(self, count: int) -> Tensor:
        return self.scratch.raw[: count * self.item.dtype.itemsize].view(self.item.dtype)

    def _fixed_weights(self) -> Tensor:
        count = len(self.item.tuned)
        weights = self.settings.weights
        if self.settings.method == "task_arithmetic":
            return torch.tensor(weights or (1.0,) * count, dtype=torch.float64)
        return torch.full((count,), 1 / count, dtype=torch.float64)

    def _num_groups(self) -> int:
        shape = self.item.base.shape
        if self.settings.granularity == "element":
            return self.item.num_elements
        if self.settings.granularity == "row" and shape:
            return shape[0]
        return 1

    def _groups(self) -> Iterator[tuple[int, int, int]]:
        """Ranges of whole groups that fit a block (start, stop, groups), or single larger ones."""
        num_groups = self._num_groups()
        if num_groups == 0 or self.item.num_elements == 0:
            return
        size = self.item.num_elements // num_groups
        per_block = max(1, self.scratch.block // size)
        # whole blocks of the disk, if a few groups make one
        aligned = BLOCK_BYTES // math.gcd(BLOCK_BYTES, size * self.item.dtype.itemsize)
        per_block = per_block // aligned * aligned or per_block
        for first, last in spans(num_groups, per_block):
            yield first * size, last * size, last - first

    def _outcome(self, weight_K: Tensor) -> Outcome:
        norm_K = self.square_K.sqrt()
        return Outcome(tuple(norm_K.tolist()), tuple(weight_K.double().tolist()))


def _tensor(numbers: Iterable[float]) -> Tensor:
    return torch.tensor(list(numbers), dtype=torch.float64)
