"""Tensors that are read slice by slice from where they lie; it must not know file formats.

Every reader of checkpoints gives its tensors in one of these shapes, so that what works on them
(merging, comparing, converting) never holds more than a block.
"""

import math
from bisect import bisect_right
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Protocol

import torch
from torch import Tensor

ReadInto = Callable[[int, Tensor], None]
"""`read(start, out)` fills 1-D `out`, of any float dtype, from element `start` on."""

NORM_ELEMENTS = 1 << 20
"""Elements that are read at once for the norms of a matrix's columns."""


class SlicedTensor(Protocol):
    """A tensor of known shape whose elements are read in slices, in row-major order."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Sizes of the whole tensor."""

    @property
    def dtype(self) -> torch.dtype:
        """Dtype in which it is stored, or in which it would be if it were."""

    @property
    def resident_bytes(self) -> int:
        """Memory that an open reader holds besides the caller's `out`, bytes."""

    def open(self) -> ReadInto:
        """A reader; what it holds is freed with it."""


def numel(shape: Sequence[int]) -> int:
    """Number of elements of a shape."""
    return math.prod(shape)


@dataclass(frozen=True)
class StoredTensor:
    """A tensor whose elements lie in one or several pieces, each mapped from a file."""

    shape: tuple[int, ...]
    """Sizes of the whole tensor."""
    pieces: tuple[Tensor, ...]
    """1-D tensors of one dtype; in this order they hold exactly the elements, no padding."""

    @property
    def dtype(self) -> torch.dtype:
        """Dtype on disk."""
        return self.pieces[0].dtype

    @property
    def resident_bytes(self) -> int:
        """Nothing: pages of mapped files belong to the system."""
        return 0

    def open(self) -> ReadInto:
        """A reader that copies, and converts where `out` has another dtype."""
        ends = list(accumulate(piece.numel() for piece in self.pieces))

        def read(start: int, out: Tensor) -> None:
            filled, index = 0, bisect_right(ends, start)
            while filled < out.numel():
                piece = self.pieces[index]
                offset = start + filled - (ends[index] - piece.numel())
                count = min(out.numel() - filled, piece.numel() - offset)
                out[filled : filled + count].copy_(piece[offset : offset + count])
                filled, index = filled + count, index + 1

        return read

    def mapped(self, start: int, stop: int) -> Tensor | None:
        """These elements where they lie, uncopied; null where they are in several pieces."""
        for piece in self.pieces:
            if start < piece.numel():
                return piece[start:stop] if stop <= piece.numel() else None
            start, stop = start - piece.numel(), stop - piece.numel()
        return None


@dataclass(frozen=True)
class LowRankTensor:
    """A weight plus a low-rank update: `W + scale * left @ right`, computed row by row.

    With `magnitude` m (DoRA, Liu et al. 2024, arXiv:2402.09353, eq. 5) each row is then scaled to
    norm m_row; where W is stored transposed, as embeddings and GPT-2's modules are, each column to
    m_column, whose norms take one more reading of W. Sums run in float64, so that the result is
    that of one rounding.
    """

    weight: SlicedTensor
    """W [rows, columns]."""
    left: SlicedTensor
    """[rows, rank], or [rank, rows] when `transposed`."""
    right: SlicedTensor
    """[rank, columns], or [columns, rank] when `transposed`."""
    scale: float
    """Factor of the update, no unit."""
    transposed: bool = False
    """Both factors are stored transposed."""
    magnitude: SlicedTensor | None = None
    """[rows], or [columns] when `transposed`, or any shape with as many elements."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Sizes of W."""
        return self.weight.shape

    @property
    def dtype(self) -> torch.dtype:
        """Dtype of W."""
        return self.weight.dtype

    @property
    def resident_bytes(self) -> int:
        """Both factors in float64, and one row."""
        return 8 * (numel(self.left.shape) + numel(self.right.shape) + self.shape[1])

    def open(self) -> ReadInto:
        """A reader that computes the rows a slice touches."""
        columns = self.shape[1]
        left, right = read_whole(self.left), read_whole(self.right)
        if self.transposed:
            left, right = left.t(), right.t()
        magnitude = None if self.magnitude is None else read_whole(self.magnitude).view(-1)
        read_weight = self.weight.open()

        def summed(first: int, last: int) -> Tensor:
            block = torch.empty(last - first, columns, dtype=torch.float64)
            read_weight(first * columns, block.view(-1))
            return block.addmm_(left[first:last], right, alpha=self.scale)

        factor = None
        if magnitude is not None and self.transposed:
            factor = magnitude / _column_norms(summed, self.shape)

        def read(start: int, out: Tensor) -> None:
            first, last = start // columns, -(-(start + out.numel()) // columns)
            block = summed(first, last)
            if factor is not None:
                block.mul_(factor)
            elif magnitude is not None:
                norm = torch.linalg.vector_norm(block, dim=1, keepdim=True)
                block.mul_(magnitude[first:last, None] / norm)
            skip = start - first * columns
            out.copy_(block.view(-1)[skip : skip + out.numel()])

        return read


def _column_norms(rows: Callable[[int, int], Tensor], shape: tuple[int, ...]) -> Tensor:
    """L2 norm of each column of a matrix that is read some rows at a time [columns], float64."""
    num_rows, columns = shape
    square = torch.zeros(columns, dtype=torch.float64)
    at_once = max(1, NORM_ELEMENTS // columns)
    for first in range(0, num_rows, at_once):
        square += rows(first, min(num_rows, first + at_once)).square_().sum(0)
    return square.sqrt_()


@dataclass(frozen=True)
class ShiftedTensor:
    """`base + scale * shift`, element by element; the sum runs in float64."""

    base: SlicedTensor
    """Of any shape."""
    shift: SlicedTensor
    """Of the same number of elements."""
    scale: float
    """Factor of the shift, no unit."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Sizes of the base."""
        return self.base.shape

    @property
    def dtype(self) -> torch.dtype:
        """Dtype of the base."""
        return self.base.dtype

    @property
    def resident_bytes(self) -> int:
        """Nothing beside blocks."""
        return 0

    def open(self) -> ReadInto:
        """A reader that computes a slice."""
        read_base, read_shift = self.base.open(), self.shift.open()

        def read(start: int, out: Tensor) -> None:
            block, moved = torch.empty(2, out.numel(), dtype=torch.float64)
            read_base(start, block)
            read_shift(start, moved)
            out.copy_(block.add_(moved, alpha=self.scale))

        return read


@dataclass(frozen=True)
class ScaledTensor:
    """A weight whose rows, or whose columns, are each multiplied by a factor, in float64."""

    weight: SlicedTensor
    """[rows, columns], or [rows]."""
    factor: SlicedTensor
    """As many elements as rows, or as columns."""
    by_row: bool
    """Whether rows have the factors."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Sizes of the weight."""
        return self.weight.shape

    @property
    def dtype(self) -> torch.dtype:
        """Dtype of the weight."""
        return self.weight.dtype

    @property
    def resident_bytes(self) -> int:
        """The factors in float64."""
        return 8 * numel(self.factor.shape)

    def open(self) -> ReadInto:
        """A reader that computes a slice."""
        columns = numel(self.shape[1:])
        factor = read_whole(self.factor).view(-1)
        read_weight = self.weight.open()

        def read(start: int, out: Tensor) -> None:
            block = torch.empty(out.numel(), dtype=torch.float64)
            read_weight(start, block)
            place = torch.arange(start, start + out.numel())
            index = place // columns if self.by_row else place % columns
            out.copy_(block.mul_(factor[index]))

        return read


@dataclass(frozen=True)
class ReplacedRows:
    """A weight some of whose rows are others, as trained tokens of an embedding are."""

    weight: SlicedTensor
    """[rows, columns]."""
    rows: tuple[int, ...]
    """Which are replaced, each once."""
    values: SlicedTensor
    """Their values [len(rows), columns]."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Sizes of the weight."""
        return self.weight.shape

    @property
    def dtype(self) -> torch.dtype:
        """Dtype of the weight."""
        return self.weight.dtype

    @property
    def resident_bytes(self) -> int:
        """Nothing: rows are read where they lie."""
        return self.weight.resident_bytes

    def open(self) -> ReadInto:
        """A reader that looks for the rows which a slice touches."""
        columns = self.shape[1]
        read_weight, read_values = self.weight.open(), self.values.open()

        def read(start: int, out: Tensor) -> None:
            read_weight(start, out)
            stop = start + out.numel()
            for number, row in enumerate(self.rows):
                first, last = max(start, row * columns), min(stop, (row + 1) * columns)
                if first < last:
                    skipped = first - row * columns
                    read_values(number * columns + skipped, out[first - start : last - start])

        return read


def read_whole(tensor: SlicedTensor) -> Tensor:
    """All elements in memory, in the tensor's shape, float64."""
    flat = torch.empty(numel(tensor.shape), dtype=torch.float64)
    tensor.open()(0, flat)
    return flat.view(tensor.shape)
