"""When the loop saves and evaluates."""

from typing import Any

import pytest
import torch

from tests.support.ranks import run_ranks
from trainer.distributed.group import Ranks
from trainer.engine.loop import Hooks, Interrupt, SaveClock, Schedule, fit


def test_time_asks_for_a_save_and_a_clock_set_back_does_no_harm() -> None:
    now = [100.0]
    clock = SaveClock(0.5, lambda: now[0])
    assert not clock.is_due()
    now[0] = 129.9
    assert not clock.is_due()
    now[0] = 130.0
    assert clock.is_due()
    clock.restart()
    assert not clock.is_due()
    now[0] = 20.0
    assert not clock.is_due()
    assert not SaveClock(None, lambda: 1e9).is_due()


def calls_of(rank: int, world_size: int, **schedule: Any) -> list[str]:
    """What a loop of six steps calls, on one of several ranks."""
    calls: list[str] = []
    hooks = Hooks(
        step=lambda batch: batch,  # type: ignore[arg-type,return-value]
        report=lambda report: calls.append(f"step {report}"),
        evaluate=lambda done: bool(calls.append(f"evaluate {done}")),  # type: ignore[func-returns-value]
        save=lambda done: calls.append(f"save {done}"),
        try_save=lambda done: calls.append(f"try {done}"),
    )
    settings: dict[str, Any] = {"start": 0, "stop": 6, "eval_every": 3, "save_every": 2}
    ranks = Ranks(rank=rank, world_size=world_size, device=torch.device("cpu"))
    interrupt = Interrupt()
    interrupt.signal = schedule.pop("signal", None)
    num_batches = schedule.pop("num_batches", 6)
    fit(iter(range(num_batches)), Schedule(**(settings | schedule)), hooks, ranks, interrupt)  # type: ignore[arg-type]
    return [call for call in calls if not call.startswith("step")]


def by_rank(rank: int, world_size: int) -> list[list[str]]:
    # only the first rank's clock counts, so that all ranks save at the same steps
    minutes = 1e-9 if rank == 0 else 1e9
    return [
        calls_of(rank, world_size),
        calls_of(rank, world_size, save_every=None, save_every_minutes=minutes),
        calls_of(rank, world_size, signal=15 if rank == 1 else None),
        # a signal came while negatives were mined, after a step or before the first one
        calls_of(rank, world_size, num_batches=3),
        calls_of(rank, world_size, num_batches=0, start=2),
    ]


@pytest.mark.dist
def test_all_ranks_save_at_the_same_steps() -> None:
    first, second = run_ranks(by_rank, 2)
    assert first == second
    by_steps, by_time, interrupted, ended, ended_at_once = first
    assert by_steps == ["evaluate 0", "try 2", "evaluate 3", "try 4", "save 6", "evaluate 6"]
    assert by_time == ["evaluate 0", "try 1", "try 2", "try 3", "evaluate 3", "try 4", "try 5",
                       "save 6", "evaluate 6"]  # fmt: skip
    assert interrupted == ["evaluate 0", "save 1"]
    assert ended == ["evaluate 0", "try 2", "evaluate 3", "save 3"]
    assert ended_at_once == []
