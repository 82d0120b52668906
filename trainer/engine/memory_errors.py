"""Which errors mean that memory has run out."""

import torch

CPU_WORDS = ("can't allocate memory", "not enough memory", "Cannot allocate memory", "bad_alloc")
"""How torch says on a CPU that there is no memory; it has no error class for it there."""


def is_out_of_memory(error: RuntimeError | MemoryError) -> bool:
    """Whether torch, CUDA or Python could not get memory."""
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    return any(words in str(error) for words in CPU_WORDS)
