"""Vectors of chunks, joined and cut, and what stands in for a chunk without texts.

It must not run a model.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from trainer.engine.losses.task_loss import Vectors
from trainer.model.embedder import Chunk


def concatenate(outputs: Sequence[Vectors]) -> Vectors:
    """Join the vectors of chunks in order."""
    return tuple(torch.cat(parts) for parts in zip(*outputs, strict=True))


def split_like(chunks: Sequence[Chunk], gradients: Vectors) -> list[Vectors]:
    """Cut gradients of all texts into those of each chunk."""
    sizes = [chunk.num_texts for chunk in chunks]
    return list(zip(*(g.split(sizes) for g in gradients), strict=True))


def filled(chunks: Sequence[Chunk], device: torch.device) -> list[Chunk]:
    """The chunks with a one-token text in each empty one: hooked forwards must agree in number."""
    return [chunk if chunk.num_texts else Chunk.placeholder(device) for chunk in chunks]


def real_rows(chunks: Sequence[Chunk]) -> Tensor:
    """Mask over the rows of the filled chunks: False for placeholders [n], bool, CPU."""
    return torch.tensor([bool(c.num_texts) for c in chunks for _ in range(max(1, c.num_texts))])


def scattered(gradient: Tensor, rows: Tensor, size: int) -> Tensor:
    """Put gradient rows where `rows` is True and zeros elsewhere [size, H]."""
    full = gradient.new_zeros(size, gradient.shape[1])
    full[rows] = gradient
    return full
