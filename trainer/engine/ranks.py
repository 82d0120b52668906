"""The process group: who am I, where do I compute, and did any of us fail."""

import os
import socket
import warnings
from dataclasses import dataclass
from datetime import timedelta

import deepspeed
import torch
import torch.distributed as dist


@dataclass(frozen=True)
class Ranks:
    """One process among all of a run."""

    rank: int
    """Global rank."""
    world_size: int
    """Number of ranks."""
    device: torch.device
    """Where this rank computes."""

    @property
    def is_first(self) -> bool:
        """Whether this is global rank 0, which writes files and logs."""
        return self.rank == 0


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
    # DeepSpeed calls collectives by names that torch is renaming; nothing a user could mend
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
    value = torch.tensor(int(flag), device=ranks.device)
    dist.all_reduce(value, op=dist.ReduceOp.MAX)
    return bool(value.item())


def _free_port() -> int:
    """A TCP port that was free a moment ago on the loopback address."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])
