"""Work that all ranks stand or fall by, whoever does it; it must not know what the work is.

A rank that raises while the others wait in a collective would hang them. Here every rank hears of
every mistake, and all raise the same one.
"""

from collections.abc import Callable
from typing import Any, TypeVar

import torch.distributed as dist

from trainer.distributed.group import Ranks
from trainer.errors import CheckpointError, TrainerError

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
    outcome: list[Any] = list(attempt(work)) if ranks.is_first else [None, None]
    dist.broadcast_object_list(outcome)
    if outcome[1] is not None:
        raise outcome[1]
    result: T = outcome[0]
    return result


def on_all_ranks(work: Callable[[], T], ranks: Ranks) -> list[T]:
    """Call `work` on every rank and give all results to all.

    Args:
        work: this rank's part, without collectives; its result travels by pickle.
        ranks: this process.

    Returns:
        What `work` returned, by rank.

    Raises:
        TrainerError: what `work` raised on the lowest rank where it did, on every rank.
    Collective: yes.
    """
    outcomes: list[Any] = [None] * ranks.world_size
    dist.all_gather_object(outcomes, attempt(work))
    for _, error in outcomes:
        if error is not None:
            raise error
    return [result for result, _ in outcomes]


def attempt(work: Callable[[], T]) -> tuple[T | None, TrainerError | None]:
    """Result, or the mistake to report to all; what the disk refuses is one of ours too."""
    try:
        return work(), None
    except TrainerError as error:
        return None, error
    except OSError as error:
        place = error.filename or "disk"
        return None, CheckpointError(
            f"{place}: {error.strerror or error}; expected to read and write there. Look at the "
            f"folder's permissions and its disk."
        )
