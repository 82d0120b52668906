"""Bytes that one rank sends to others, of any number; it must not know what they mean."""

from collections.abc import Callable
from functools import partial

import torch
import torch.distributed as dist

from trainer.distributed.agree import attempt, on_all_ranks
from trainer.distributed.group import Ranks
from trainer.errors import TrainerError

BLOCK_BYTES = 1 << 24
"""Bytes that are sent at a time."""
Read = Callable[[int], bytes]
"""Gives the next so many bytes."""
Write = Callable[[memoryview], object]
"""Takes the next bytes."""


def send_blocks(
    num_bytes: int, *, read: Read, write: Write | None, source: int, ranks: Ranks
) -> None:
    """Send bytes of one rank to others, a block at a time.

    A rank whose disk fails takes part until all are sent, so that no other waits for it.

    Args:
        num_bytes: how many, the same on all ranks.
        read: called on `source` alone.
        write: called on the other ranks; None: this rank needs no bytes.
        source: the rank that has them, the same on all ranks.
        ranks: this process.

    Raises:
        TrainerError: what `read` or `write` raised on the lowest rank where they did, on every
            rank.
    Collective: yes.
    """
    fault: TrainerError | None = None
    for start in range(0, num_bytes, BLOCK_BYTES):
        size = min(BLOCK_BYTES, num_bytes - start)
        block = torch.zeros(size, dtype=torch.uint8)
        if ranks.rank == source and fault is None:
            content, fault = attempt(partial(read, size))
            if content is not None:
                block = torch.frombuffer(bytearray(content), dtype=torch.uint8)
        block = block.to(ranks.device)
        dist.broadcast(block, source)
        if ranks.rank != source and write is not None and fault is None:
            _, fault = attempt(partial(write, block.cpu().numpy().data))
    for found in on_all_ranks(lambda: fault, ranks):
        if found is not None:
            raise found
