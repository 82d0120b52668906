"""Values of unpickled states, checked before they are believed; it must not know their layout.

A file that opens may still hold anything: a number where a list is due, or a tensor whose shape
claims more elements than its file has. What is checked here is safe to slice and to copy.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from trainer.checkpoint.tensors import StoredTensor, numel
from trainer.errors import CheckpointError

ODD = (TypeError, ValueError, LookupError, AttributeError, ArithmeticError, RuntimeError)
"""What comes of taking a value for what it is not."""


@contextmanager
def states_of(folder: Path) -> Iterator[None]:
    """Whatever is odd about the states that are looked at inside is a fault of their files.

    Raises:
        CheckpointError: naming the folder and what was met.
    """
    try:
        yield
    except ODD as error:
        raise CheckpointError(
            f"{folder}: states = of another form ({type(error).__name__}: {str(error)[:200]}); "
            "expected files of DeepSpeed ZeRO stage 1, 2 or 3. They are damaged, or of another "
            "stage or tool; use another checkpoint."
        ) from error


def flat(tensor: Any) -> Tensor:
    """[n] without history: masters are saved as tensors that require gradients.

    Raises:
        TypeError: if it is no plain tensor in memory.
        ValueError: if it repeats its elements, so that a copy would be larger than its file.
    """
    if not isinstance(tensor, Tensor) or tensor.is_quantized or (
        tensor.layout is not torch.strided or tensor.device.type != "cpu"
    ):  # fmt: skip
        raise TypeError(f"{type(tensor).__name__} in the place of a plain tensor")
    if tensor.numel() * tensor.element_size() > tensor.untyped_storage().nbytes():
        raise ValueError(f"a tensor of {tensor.numel()} elements, more than its file holds")
    return tensor.detach().reshape(-1)


def shapes_of(group: Mapping[Any, Any]) -> dict[str, tuple[int, ...]]:
    """Shapes of parameters by name.

    Raises:
        TypeError: if a name is no text, or a size no integer.
        ValueError: if a size is negative.
    """
    shapes = {}
    for name, sizes in group.items():
        shape = tuple(sizes)
        if not isinstance(name, str) or not all(type(size) is int for size in shape):
            raise TypeError(f"shape of {name!r:.60} = {shape!r:.60}")
        if min((*shape, 0)) < 0:
            raise ValueError(f"shape of {name!r:.60} = {shape!r:.60}")
        shapes[name] = shape
    return shapes


def gaps_of(gaps: Sequence[Any]) -> list[int]:
    """Elements of padding behind parameters.

    Raises:
        ValueError: if one is no count.
    """
    if not all(type(gap) is int and gap >= 0 for gap in gaps):
        raise ValueError(f"paddings = {gaps!r:.60}")
    return list(gaps)


def stored(shape: Sequence[int], pieces: Sequence[Tensor]) -> StoredTensor:
    """A tensor of pieces that hold exactly its elements, all of one dtype.

    Raises:
        ValueError: if they do not.
    """
    found = sum(piece.numel() for piece in pieces)
    if found != numel(shape) or len({piece.dtype for piece in pieces}) != 1:
        dtypes = ", ".join(sorted({str(piece.dtype) for piece in pieces}))
        raise ValueError(f"{found} elements of {dtypes or 'no dtype'} for shape {tuple(shape)}")
    return StoredTensor(tuple(shape), tuple(pieces))
