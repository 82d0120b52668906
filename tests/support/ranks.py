"""Run a function on several gloo ranks and get its results or the failing rank's traceback.

Ranks are forked from a server that has imported the heavy libraries and nothing else, which saves
each of them ten seconds of a core. They meet in a file, so no port is fixed and launches do not
collide.
Nothing outlives `run_ranks`: a rank that fails ends the others, and a launch that hangs is killed
and fails with the stack of every rank.
"""

import contextlib
import faulthandler
import multiprocessing as mp
import os
import pickle
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from datetime import timedelta
from multiprocessing.connection import wait
from multiprocessing.context import ForkServerContext
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import torch

PRELOADED = (
    "torch",
    "transformers",
    "peft",
    "deepspeed",
    "trainer.session.train",
    # what an engine imports when it is made, torch's compiler among it: 3 seconds of a core
    "deepspeed.module_inject.auto_ep_layer",
    "deepspeed.runtime.zero.muon.muon_optimizer",
    "deepspeed.runtime.superoffload.superoffload_stage3",
    "torch.utils.tensorboard",
    "transformers.models.qwen3.modeling_qwen3",
    "tests.support.frozen",
)
"""What ranks need, imported once for all of them; no import starts a thread."""
STACK_DUMP_SEC = 1.0
"""How long hung ranks get to write their stacks before they are killed."""


class RankFailure(RuntimeError):  # noqa: N818 - it reports a failure, it is not a kind of mistake
    """A rank raised, died or did not finish in time; the message holds its traceback."""


def run_ranks(
    fn: Callable[..., Any], world_size: int, *args: Any, timeout_sec: float = 60.0
) -> list[Any]:
    """Call `fn(rank, world_size, *args)` on each of `world_size` gloo ranks, one thread each.

    Args:
        fn: a function at the top level of a module; it and `args` travel by pickle.
        world_size: number of processes, at least 1.
        *args: handed to every rank.
        timeout_sec: wall-clock limit of the whole launch, imports included.

    Returns:
        What each rank returned, by rank; it travels by pickle (tensors on the CPU do).

    Raises:
        RankFailure: if a rank raised or died, or if the time limit passed.
    """
    with tempfile.TemporaryDirectory(prefix="ranks-") as folder:
        room = Path(folder)
        context = fork_context()
        # the server has the environment of its own start
        job = (fn, world_size, args, timeout_sec, room, dict(os.environ))
        ranks: list[BaseProcess] = [
            context.Process(target=_rank_main, args=(r, *job)) for r in range(world_size)
        ]
        started: list[BaseProcess] = []
        try:
            for process in ranks:
                process.start()
                started.append(process)
            _await_all(started, room, time.monotonic() + timeout_sec)
            return [pickle.loads(_result_file(room, r).read_bytes()) for r in range(world_size)]
        finally:
            for process in started:
                _end(process)


def fork_context() -> ForkServerContext:
    """Starts processes that have imported what a run needs."""
    context = mp.get_context("forkserver")
    context.set_forkserver_preload(list(PRELOADED))
    return context


def _await_all(ranks: list[BaseProcess], room: Path, deadline: float) -> None:
    """Return when all ranks ended well; raise at the first that did not, or at the deadline."""
    running = dict(enumerate(ranks))
    while running:
        sentinels = [process.sentinel for process in running.values()]
        if not wait(sentinels, timeout=max(0.0, deadline - time.monotonic())):
            raise RankFailure(_hang_report(running, room))
        for rank in [r for r, process in running.items() if process.exitcode is not None]:
            process = running.pop(rank)
            if process.exitcode != 0:
                raise RankFailure(_failure_report(rank, process, running, room))


def _failure_report(
    rank: int, process: BaseProcess, running: dict[int, BaseProcess], room: Path
) -> str:
    # A rank that loses its peer fails too; give the one that failed first the time to say why.
    wait([other.sentinel for other in running.values()], timeout=STACK_DUMP_SEC)
    files = sorted(room.glob("*.traceback"), key=lambda file: file.stat().st_mtime_ns)
    texts = [f"{file.stem}:\n{file.read_text(encoding='utf-8')}" for file in files]
    return "\n".join(texts) or f"rank {rank} died with exit code {process.exitcode}"


def _hang_report(running: dict[int, BaseProcess], room: Path) -> str:
    for process in running.values():
        with contextlib.suppress(ProcessLookupError):
            os.kill(process.pid or 0, signal.SIGUSR1)
    time.sleep(STACK_DUMP_SEC)
    stacks = [f"{file.stem}:\n{file.read_text()}" for file in sorted(room.glob("*.stack"))]
    return f"ranks {sorted(running)} did not finish in time\n" + "\n".join(stacks)


def _end(process: BaseProcess) -> None:
    """Kill what the rank left running: its own process group, or itself before it has one."""
    process.join(timeout=0)
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid or 0, signal.SIGKILL)
    if process.is_alive():
        process.kill()
    process.join()
    process.close()


def _result_file(room: Path, rank: int) -> Path:
    return room / f"rank {rank}.result"


def _rank_main(
    rank: int,
    fn: Callable[..., Any],
    world_size: int,
    args: tuple[Any, ...],
    timeout_sec: float,
    room: Path,
    environment: dict[str, str],
) -> None:
    """Body of a rank: join the group, call, write the result or the traceback."""
    os.environ.clear()
    os.environ |= environment
    os.setsid()  # a process group of its own, so that what the rank starts can be ended with it
    torch.set_num_threads(1)
    with (room / f"rank {rank}.stack").open("w") as stack:
        faulthandler.register(signal.SIGUSR1, file=stack, all_threads=True)
        try:
            _join_group(rank, world_size, timeout_sec, room)
            result = fn(rank, world_size, *args)
            _result_file(room, rank).write_bytes(pickle.dumps(result))
            sys.stdout.flush()
            sys.stderr.flush()
            # under load, taking a group of gloo down has aborted a process that was done
            os._exit(0)
        except BaseException:
            text = traceback.format_exc()
            (room / f"rank {rank}.traceback").write_text(text, encoding="utf-8")
            raise
        finally:
            if torch.distributed.is_initialized():
                torch.distributed.destroy_process_group()
            faulthandler.unregister(signal.SIGUSR1)


def _join_group(rank: int, world_size: int, timeout_sec: float, room: Path) -> None:
    os.environ |= {
        "CUDA_VISIBLE_DEVICES": "",  # gloo ranks compute on the CPU, also where there is a GPU
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "WORLD_SIZE": str(world_size),
        "LOCAL_WORLD_SIZE": str(world_size),
        "GLOO_SOCKET_IFNAME": "lo",  # a host name need not resolve to an address of this host
    }
    torch.distributed.init_process_group(
        "gloo",
        init_method=f"file://{room / 'rendezvous'}",
        rank=rank,
        world_size=world_size,
        timeout=timedelta(seconds=timeout_sec),
    )
