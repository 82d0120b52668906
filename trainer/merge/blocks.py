"""Blocks of a tensor's inputs: arrays for compiled loops, or changes for torch's operations."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from numpy.typing import NDArray
from torch import Tensor

from trainer.checkpoint.tensors import ReadInto, SlicedTensor, StoredTensor
from trainer.merge.output_file import aligned_bytes

COMPILED = (torch.bfloat16, torch.float32, torch.float64)
"""Dtypes that the compiled loops read and write."""


@dataclass(frozen=True)
class Scratch:
    """Memory of one worker, reused for every block."""

    base_N: Tensor
    """[block], float64; narrower dtypes use a part of it."""
    tuned_KN: Tensor
    """[K, block], float64; the same."""
    raw: Tensor
    """[8 * block] bytes, for results of any dtype, where they can be written directly from."""

    @classmethod
    def allocate(cls, num_checkpoints: int, block: int) -> "Scratch":
        """Make buffers for blocks of `block` elements."""
        base_N = torch.empty(block, dtype=torch.float64)
        tuned_KN = torch.empty(num_checkpoints, block, dtype=torch.float64)
        return cls(base_N, tuned_KN, torch.from_numpy(aligned_bytes(8 * block)))

    @property
    def block(self) -> int:
        """Elements that fit."""
        return self.base_N.numel()


@dataclass
class BlockReader:
    """Reads blocks of a base and its checkpoints; a block lasts until the next is read."""

    base: SlicedTensor
    """theta0."""
    tuned: tuple[SlicedTensor, ...]
    """theta_k."""
    scratch: Scratch
    """Where a block goes that does not lie in one piece, in such a dtype, in a mapped file."""
    readers: list[ReadInto] = field(init=False)
    """Of base and checkpoints."""

    def __post_init__(self) -> None:
        self.readers = [one.open() for one in (self.base, *self.tuned)]
        found = {_compiled_dtype(one) for one in self.tuned}
        # compiled loops take checkpoints of one dtype
        self._tuned_dtype = found.pop() if len(found) == 1 else torch.float64

    def arrays(self, start: int, stop: int) -> tuple[NDArray[Any], tuple[NDArray[Any], ...]]:
        """theta0 [n] and theta_k [n] each, as they are stored where that is possible."""
        base = self._array(0, start, stop, _compiled_dtype(self.base))
        count = len(self.tuned)
        return base, tuple(self._array(k + 1, start, stop, self._tuned_dtype) for k in range(count))

    def changes(self, start: int, stop: int) -> tuple[Tensor, Tensor]:
        """theta0 [n] and the changes [K, n], float64."""
        base_N = self.scratch.base_N[: stop - start]
        tuned_KN = self.scratch.tuned_KN[:, : stop - start]
        for values_N, read in zip((base_N, *tuned_KN), self.readers, strict=True):
            read(start, values_N)
        return base_N, tuned_KN.sub_(base_N)

    def _array(self, index: int, start: int, stop: int, dtype: torch.dtype) -> NDArray[Any]:
        stored = (self.base, *self.tuned)[index]
        if isinstance(stored, StoredTensor) and stored.dtype == dtype:
            mapped_N = stored.mapped(start, stop)
            if mapped_N is not None:
                return as_array(mapped_N)
        buffer_N = self.scratch.base_N if index == 0 else self.scratch.tuned_KN[index - 1]
        values_N = buffer_N.view(dtype)[: stop - start]
        self.readers[index](start, values_N)
        return as_array(values_N)


def as_array(values_N: Tensor) -> NDArray[Any]:
    """The same memory as an array; bfloat16 as its bits, uint16."""
    bits = values_N.view(torch.uint16) if values_N.dtype == torch.bfloat16 else values_N
    return bits.numpy()


def spans(count: int, width: int) -> Iterator[tuple[int, int]]:
    """Consecutive ranges (start, stop) of at most `width` that cover `count`."""
    for start in range(0, count, width):
        yield start, min(start + width, count)


def _compiled_dtype(stored: SlicedTensor) -> torch.dtype:
    """Dtype in which compiled loops read a tensor without losing a bit."""
    # what is computed as it is read must not be rounded on the way
    as_it_lies = isinstance(stored, StoredTensor) and stored.dtype in COMPILED
    return stored.dtype if as_it_lies else torch.float64
