"""Work of the first rank that all ranks stand or fall by; it must not know files."""

from collections.abc import Callable
from typing import Any, TypeVar

import torch.distributed as dist

from trainer.engine.ranks import Ranks
from trainer.errors import TrainerError

T = TypeVar("T")


def on_first_rank(work: Callable[[], T], ranks: Ranks) -> T:
    """Call `work` on the first rank and give its result to all.

    Args:
        work: what one rank does for all; its result travels by pickle.
        ranks: this process.

    Returns:
        What `work` returned there.

    Raises:
        TrainerError: what `work` raised there, on every rank.
    Collective: yes.
    """
    outcome: list[Any] = [None, None]
    if ranks.is_first:
        try:
            outcome[0] = work()
        except TrainerError as error:
            outcome[1] = error
    dist.broadcast_object_list(outcome)
    if outcome[1] is not None:
        raise outcome[1]
    result: T = outcome[0]
    return result
