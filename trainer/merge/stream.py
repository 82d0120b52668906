"""Merge one tensor block by block; it must not know shards, threads or reports.

A block is read once where that is enough: always when weights are known beforehand or belong to
rows or scalars, and for tensors of one block. Only a weight per tensor of a larger one needs the
norms first, in a pass of its own; the second pass then finds the files in the page cache. Where all
changes are adapters' the factors give the norms, and one pass is enough. bfloat16 throughout is
summed in float32 wherever that gives the same result.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from trainer.checkpoint.tensors import ReadInto, SlicedTensor, StoredTensor, numel
from trainer.errors import CheckpointError
from trainer.merge.arithmetic import (
    MAX_GAIN,
    add_ties,
    add_weighted,
    blend,
    delta_weights,
    gain,
    group_norms,
    kth_largest,
    mend,
    squares,
)
from trainer.merge.low_rank import change_norms
from trainer.merge.settings import MergeSettings

Write = Callable[[Tensor], None]
"""Takes the next elements of the result, in order."""


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


@dataclass(frozen=True)
class Scratch:
    """Memory of one worker, reused for every block."""

    base_N: Tensor
    """[block], float64; for float32 half of it is used."""
    tuned_KN: Tensor
    """[K, block], float64; the same."""
    raw: Tensor
    """[8 * block] bytes, for results of any dtype."""

    @classmethod
    def allocate(cls, num_checkpoints: int, block: int) -> "Scratch":
        """Make buffers for blocks of `block` elements."""
        base_N = torch.empty(block, dtype=torch.float64)
        tuned_KN = torch.empty(num_checkpoints, block, dtype=torch.float64)
        return cls(base_N, tuned_KN, torch.empty(8 * block, dtype=torch.uint8))

    @property
    def block(self) -> int:
        """Elements that fit."""
        return self.base_N.numel()


def bytes_per_element(num_checkpoints: int, settings: MergeSettings) -> int:
    """Memory of one worker per element of a block, temporaries included, bytes."""
    temporaries = 4 * num_checkpoints if _has_elementwise_weights(settings) else 1
    return 8 * (1 + num_checkpoints) + 8 + 8 * temporaries


def _has_elementwise_weights(settings: MergeSettings) -> bool:
    return settings.method == "ties" or settings.granularity != "tensor"


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
    work = _Work(item, settings, scratch, write)
    if not item.dtype.is_floating_point:
        return work.copy_equal()
    if settings.method == "ties":
        return work.run_ties()
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
    readers: list[ReadInto] = field(init=False)
    square_K: Tensor = field(init=False)
    halves: list[Tensor] | None = field(init=False)
    """Base and checkpoints as they are stored, if float32 does for their sums."""

    def __post_init__(self) -> None:
        self.readers = [one.open() for one in (self.item.base, *self.item.tuned)]
        self.square_K = torch.zeros(len(self.item.tuned), dtype=torch.float64)
        self.halves = self._halves()

    def _halves(self) -> list[Tensor] | None:
        """The inputs if all are bfloat16 in one piece, and no weight is finer than the tensor."""
        settings, item = self.settings, self.item
        inputs = (item.base, *item.tuned)
        simple = not _has_elementwise_weights(settings) and item.dtype == torch.bfloat16
        if settings.method == "delta":
            # the weights sum to 1
            largest_gain = 1 + 2 * abs(settings.lambda_)
        else:
            largest_gain = gain(self._fixed_weights() * settings.lambda_)
        if not simple or largest_gain > MAX_GAIN:
            return None
        pieces = [one.pieces for one in inputs if isinstance(one, StoredTensor)]
        if len(pieces) < len(inputs) or any(
            len(parts) != 1 or parts[0].dtype != torch.bfloat16 for parts in pieces
        ):
            return None
        return [parts[0] for parts in pieces]

    def run_fixed(self) -> Outcome:
        """Weights known beforehand: one pass."""
        weight_K = self._fixed_weights()
        for start, stop in _spans(self.item.num_elements, self.scratch.block):
            base_N, delta_KN = self._load(start, stop)
            square_K = self._count(delta_KN, start)
            self._emit(start, base_N, delta_KN, weight_K[:, None], square_K)
        return self._outcome(weight_K)

    def run_by_norm(self) -> Outcome:
        """Weights from norms, of the tensor or of its rows or scalars."""
        total_K = torch.zeros_like(self.square_K)
        for start, stop, num_groups in self._groups():
            if stop - start <= self.scratch.block:
                total_K += self._merge_in_one(start, stop, num_groups)
            else:
                total_K += self._merge_in_two(start, stop)
        num_groups = max(1, self._num_groups())
        return self._outcome(total_K / num_groups)

    def run_ties(self) -> Outcome:
        """Thresholds first, then one pass; a weight is a share of elements."""
        size = self.item.num_elements
        spans = list(_spans(size, self.scratch.block))
        for start, stop in spans:
            self._count(self._load(start, stop)[1], start)
        rank = max(1, int(self.settings.density * size))
        threshold_K = kth_largest(
            lambda: (self._load(*span)[1] for span in spans), len(self.item.tuned), rank
        )
        used_K = torch.zeros(len(self.item.tuned), dtype=torch.int64)
        for start, stop in spans:
            base_N, delta_KN = self._load(start, stop)
            if bool((delta_KN == 0).all()):
                self._emit_bits(self.readers[0], start, stop)
            else:
                used_K += add_ties(base_N, delta_KN, threshold_K, self.settings.lambda_)
                self._emit_block(base_N)
        return self._outcome(used_K / max(1, size))

    def copy_equal(self) -> Outcome:
        """A tensor of integers or booleans: the same everywhere, or refused."""
        item = self.item
        for start, stop in _spans(item.num_elements, self.scratch.block):
            mine = torch.empty(stop - start, dtype=item.dtype)
            other = torch.empty_like(mine)
            self.readers[0](start, mine)
            for path, read in zip(item.paths[1:], self.readers[1:], strict=True):
                read(start, other)
                if not torch.equal(mine, other):
                    raise CheckpointError(
                        f"{path}: {item.name} = other integers than the base's; expected the same. "
                        "Such a tensor cannot be averaged; is this a checkpoint of another model?"
                    )
            self.write(mine)
        return Outcome((0.0,) * len(item.tuned), (0.0,) * len(item.tuned))

    def _merge_in_one(self, start: int, stop: int, num_groups: int) -> Tensor:
        """Groups that lie in one block; gives the sum of their weights [K]."""
        base_N, delta_KN = self._load(start, stop)
        square_K = self._count(delta_KN, start)
        norm_KR = square_K.sqrt()[:, None]
        if num_groups > 1:
            finite_KN = delta_KN.nan_to_num(0.0, 0.0, 0.0) if self.settings.allow_nan else delta_KN
            norm_KR = group_norms(finite_KN, num_groups)
        weight_KR = delta_weights(norm_KR, self.settings.alpha)
        self._emit(start, base_N, delta_KN, weight_KR, square_K)
        return weight_KR.sum(1)

    def _merge_in_two(self, start: int, stop: int) -> Tensor:
        """A group larger than a block: its norms first, from factors where adapters give them."""
        spans = [(start + a, start + b) for a, b in _spans(stop - start, self.scratch.block)]
        whole = stop - start == self.item.num_elements
        known_K = change_norms(self.item.tuned, self.item.base) if whole else None
        norm_K = self._measured_norms(spans) if known_K is None else known_K
        weight_K = delta_weights(norm_K[:, None], self.settings.alpha)[:, 0]
        for first, last in spans:
            if known_K is not None:
                base_N, delta_KN = self._load(first, last)
                self._count(delta_KN, first)
                self._emit(first, base_N, delta_KN, weight_K[:, None], norm_K)
            elif not self._emit_unchanged(first, last, norm_K):
                base_N, tuned_KN = self._read(first, last)
                factor_K = weight_K * self.settings.lambda_
                blend(base_N, tuned_KN, factor_K)
                self._emit_sum(base_N, first, factor_K)
        return weight_K

    def _measured_norms(self, spans: Sequence[tuple[int, int]]) -> Tensor:
        """Norms of the changes over some blocks [K], in a pass of their own."""
        square_K = torch.zeros_like(self.square_K)
        for first, last in spans:
            square_K += self._count(self._load(first, last)[1], first)
        return square_K.sqrt()

    def _read(self, start: int, stop: int) -> tuple[Tensor, Tensor]:
        """theta0 [n] and theta_k [K, n] of a block, float64 or float32."""
        dtype = torch.float64 if self.halves is None else torch.float32
        base_N = self.scratch.base_N.view(dtype)[: stop - start]
        tuned_KN = self.scratch.tuned_KN.view(dtype)[:, : stop - start]
        for values_N, read in zip((base_N, *tuned_KN), self.readers, strict=True):
            read(start, values_N)
        return base_N, tuned_KN

    def _load(self, start: int, stop: int) -> tuple[Tensor, Tensor]:
        """theta0 [n] and the changes [K, n] of a block, float64 or float32."""
        base_N, tuned_KN = self._read(start, stop)
        return base_N, tuned_KN.sub_(base_N)

    def _count(self, delta_KN: Tensor, start: int) -> Tensor:
        """Add the squares of a block's changes to the tensor's; gives the block's [K]."""
        square_K = squares(delta_KN)
        if not bool(square_K.isfinite().all()):
            self._refuse_non_finite(start, delta_KN.shape[1])
            finite_KN = delta_KN.nan_to_num(nan=0.0, posinf=0.0, neginf=0.0)
            square_K = squares(finite_KN)
        self.square_K += square_K
        return square_K

    def _refuse_non_finite(self, start: int, count: int) -> None:
        if self.settings.allow_nan:
            return
        for path, read in zip(self.item.paths, self.readers, strict=True):
            values = torch.empty(count, dtype=torch.float64)
            read(start, values)
            bad = (~values.isfinite()).nonzero()
            if bad.numel():
                index = int(bad[0])
                raise CheckpointError(
                    f"{path}: {self.item.name}, element {start + index} = {float(values[index])}; "
                    "expected finite numbers. Use an older checkpoint, or --allow-nan to go on."
                )

    def _emit(
        self,
        start: int,
        base_N: Tensor,
        delta_KN: Tensor,
        weight_KR: Tensor,
        square_K: Tensor,
    ) -> None:
        """Write a block of weighted changes."""
        if not self._emit_unchanged(start, start + base_N.numel(), square_K):
            factor_KR = weight_KR * self.settings.lambda_
            add_weighted(base_N, delta_KN, factor_KR)
            self._emit_sum(base_N, start, factor_KR[:, 0])

    def _emit_unchanged(self, start: int, stop: int, square_K: Tensor) -> bool:
        """Write bits as they are where nothing is to be computed; says whether it did."""
        if self._is_the_checkpoint():
            self._emit_bits(self.readers[1], start, stop)
            return True
        if not bool(square_K.any()) and not self.settings.allow_nan:
            self._emit_bits(self.readers[0], start, stop)
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

    def _emit_sum(self, merged_N: Tensor, start: int, factor_K: Tensor) -> None:
        """Write a block of sums; those of float32 are mended."""
        out_N = self._out(merged_N.numel()).copy_(merged_N)
        if self.halves is not None:
            base_N, *tuned = (one[start : start + merged_N.numel()] for one in self.halves)
            mend(out_N, base_N, tuned, factor_K)
        self.write(out_N)

    def _emit_block(self, merged_N: Tensor) -> None:
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
        for first, last in _spans(num_groups, per_block):
            yield first * size, last * size, last - first

    def _outcome(self, weight_K: Tensor) -> Outcome:
        norm_K = self.square_K.sqrt()
        return Outcome(tuple(norm_K.tolist()), tuple(weight_K.double().tolist()))


def _spans(count: int, width: int) -> Iterator[tuple[int, int]]:
    for start in range(0, count, width):
        yield start, min(start + width, count)
