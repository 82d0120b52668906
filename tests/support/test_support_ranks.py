"""The launcher of ranks reports results, failures and hangs, and leaves no process behind."""

import os
import time
from pathlib import Path

import pytest
import torch
from torch import distributed as dist

from tests.support.ranks import RankFailure, run_ranks

pytestmark = pytest.mark.dist


def sum_of_ranks(rank: int, world_size: int, offset: float) -> tuple[int, float]:
    value = torch.tensor(rank + offset)
    dist.all_reduce(value)
    return world_size, value.item()


def fail_on_one(rank: int, world_size: int) -> None:
    if rank == 1:
        raise ValueError("rank one has had enough")
    dist.barrier()


def die_on_one(rank: int, world_size: int) -> None:
    if rank == 1:
        os._exit(7)
    time.sleep(60)


def hang_on_one(rank: int, world_size: int, pids: str) -> None:
    Path(pids, str(rank)).write_text(str(os.getpid()))
    if rank == 0:
        dist.barrier()
    time.sleep(600)


def test_results_come_by_rank() -> None:
    assert run_ranks(sum_of_ranks, 2, 0.5) == [(2, 2.0), (2, 2.0)]


def test_traceback_of_the_failing_rank_is_raised() -> None:
    with pytest.raises(RankFailure, match="rank one has had enough"):
        run_ranks(fail_on_one, 2)


def test_silent_death_is_raised_at_once() -> None:
    with pytest.raises(RankFailure, match="rank 1 died with exit code 7"):
        run_ranks(die_on_one, 2)


def test_hang_is_killed_with_stacks(tmp_path: Path) -> None:
    with pytest.raises(RankFailure, match=r"(?s)did not finish in time.*hang_on_one"):
        run_ranks(hang_on_one, 2, str(tmp_path), timeout_sec=6)
    pids = [int(file.read_text()) for file in tmp_path.iterdir()]
    assert len(pids) == 2
    assert not any(Path(f"/proc/{pid}").exists() for pid in pids)
