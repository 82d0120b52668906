"""The process group: who am I, where do I compute, and did any of us fail."""

import os
import socket
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from datetime import timedelta

import deepspeed
import torch
import torch.distributed as dist

from trainer.distributed.peers import PeerMonitor, connect


@dataclass(frozen=True)
class Ranks:
    """One process among all of a run."""

    rank: int
    """Global rank."""
    world_size: int
    """Number of ranks."""
    device: torch.device
    """Where this rank computes."""
    monitor: PeerMonitor | None = None
    """Tells at once which rank died; None for a single rank."""

    @property
    def is_first(self) -> bool:
        """Whether this is global rank 0, which writes files and logs."""
        return self.rank == 0

    def enter(self, place: str) -> None:
        """Note where the run is, such as `in step 7`, for the message about a rank that died."""
        if self.monitor is not None:
            self.monitor.place = place


@contextmanager
def joined(timeout_minutes: float) -> Iterator[Ranks]:
    """The group during a block, in which the death of a rank ends all of them with one message.

    Args:
        timeout_minutes: as for `join`.

    Collective: yes.
    """
    ranks = join(timeout_minutes)
    if ranks.world_size > 1:
        ranks = replace(ranks, monitor=connect(ranks.rank, ranks.world_size))
    with ranks.monitor.guarding() if ranks.monitor else nullcontext():
        yield ranks
    # after an error the group is left as it is: to leave it would wait for ranks that are gone
    leave()


def join(timeout_minutes: float) -> Ranks:
    """Join the group that the launcher describes, or make one of a single process.

    Args:
        timeout_minutes: how long a collective waits for the other ranks.

    Collective: yes.
    """
    if "RANK" not in os.environ:
        os.environ.update(RANK="0", WORLD_SIZE="1", LOCAL_RANK="0")
        os.environ.setdefault("MASTER_ADDR", "127.0.0.1")
        os.environ.setdefault("MASTER_PORT", str(_free_port()))
    local_rank = int(os.environ["LOCAL_RANK"])
    device = torch.device("cpu")
    if torch.cuda.is_available():
        device = torch.device("cuda", local_rank)
        torch.cuda.set_device(device)
    else:
        _share_cores()
        # else DeepSpeed compiles an all-reduce of its own, a minute in each new environment
        deepspeed.ops.__compatible_ops__ = {}
    # DeepSpeed calls collectives by names that torch is renaming; nothing a user could fix
    warnings.filterwarnings("ignore", "`torch.distributed", FutureWarning)
    deepspeed.init_distributed(
        dist_backend="nccl" if device.type == "cuda" else "gloo",
        timeout=timedelta(minutes=timeout_minutes),
        verbose=False,
    )
    return Ranks(rank=dist.get_rank(), world_size=dist.get_world_size(), device=device)


def _share_cores() -> None:
    """Ranks of one host split its cores; two that both take all slow each other down."""
    if "OMP_NUM_THREADS" not in os.environ:
        local_ranks = int(os.environ.get("LOCAL_WORLD_SIZE") or os.environ.get("LOCAL_SIZE", "1"))
        torch.set_num_threads(max(1, len(os.sched_getaffinity(0)) // local_ranks))


def leave() -> None:
    """Destroy the group, if there is one."""
    if dist.is_initialized():
        dist.destroy_process_group()


def any_rank(flag: bool, ranks: Ranks) -> bool:
    """Whether the flag is set on any rank. Collective: yes."""
    return any_rank_each([flag], ranks)[0]


def any_rank_each(flags: Sequence[bool], ranks: Ranks) -> list[bool]:
    """Whether each of the flags is set on any rank. Collective: yes."""
    values = torch.tensor([int(flag) for flag in flags], device=ranks.device)
    dist.all_reduce(values, op=dist.ReduceOp.MAX)
    return [bool(value) for value in values.tolist()]


def _free_port() -> int:
    """A TCP port that was free a moment ago on the loopback address."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])
