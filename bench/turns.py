"""Run variants in processes of their own that take their steps in turns.

Each variant has fresh processes, so peaks of memory do not mix; while one steps the others sleep,
so all meet the same weather on the machine and the ratio of two times is steadier than the times.
"""

import multiprocessing as mp
import os
import re
import socket
import statistics
import sys
import time
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any, Literal

from bench import memory as memory
from bench.jobs import Job

Start = Literal["forkserver", "spawn"]
"""How a process comes to be."""
PRELOADED = ["sentence_transformers", "trainer.engine.build", "trainer.engine.step"]
"""Imported once and shared by all variants, so that none counts them as its own memory."""
BUILD_SEC = 900
"""Longest time to load a model; DeepSpeed compiles an extension on first use."""
STEP_SEC = 1200
"""Longest step."""
END_SEC = 20
"""Longest time that a process may take to end by itself."""


@dataclass(frozen=True, kw_only=True)
class Variant:
    """One thing to measure."""

    name: str
    """Unique; key of its outcome."""
    job: Job
    """How to make it."""
    num_ranks: int = 1
    """Its processes."""


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What was measured of a variant."""

    losses: list[float]
    """Of every step."""
    seconds: list[float]
    """Of every step but the first, which warms up; wall clock of the slowest rank."""
    cpu_seconds: list[float]
    """The same on the processor: what others on the machine do adds little to it."""
    step_bytes: int
    """Peak above what was there before the first step, of the largest rank."""
    total_bytes: int
    """Peak above what was there before the model was loaded, of the largest rank."""
    facts: dict[str, float]
    """From the contestant."""

    @property
    def median_sec(self) -> float:
        """Median time of a step."""
        return statistics.median(self.seconds)

    @property
    def median_cpu_sec(self) -> float:
        """Median processor time of a step."""
        return statistics.median(self.cpu_seconds)


def ratio(above: Outcome, below: Outcome) -> float:
    """Median over the rounds of the quotient of two variants' step times."""
    pairs = zip(above.seconds, below.seconds, strict=True)
    return statistics.median(a / b for a, b in pairs)


def take_turns(
    variants: Sequence[Variant], *, num_steps: int, logs: Path, start: Start = "forkserver"
) -> dict[str, Outcome]:
    """Start all variants, step each in turn, and end them.

    Args:
        variants: alive at the same time.
        num_steps: rounds, at least 2; the first warms up.
        logs: folder for what the processes print.
        start: `forkserver` imports once for all processes; `spawn` is for GPUs, which do not work
            in a fork.

    Raises:
        SystemExit: with the traceback of a process that failed, or the name of one that hangs.
    """
    outcomes: dict[str, list[list[Reply]]] = {variant.name: [] for variant in variants}
    with started(variants, logs, start) as groups:
        for index in range(num_steps):
            order = groups if index % 2 == 0 else groups[::-1]
            for group in order:
                group.send(index)
                replies = group.receive(STEP_SEC)
                outcomes[group.name].append(replies)
                took = max(reply.seconds for reply in replies)
                progress(f"round {index + 1} of {num_steps}: {group.name}, {took:.2f} s")
    return {name: _summary(replies) for name, replies in outcomes.items()}


def progress(text: str) -> None:
    """One line for who waits; not on stdout, where the table goes."""
    sys.stderr.write(text + "\n")


@dataclass(frozen=True)
class Reply:
    """What a process reports after a step."""

    loss: float
    seconds: float
    cpu_seconds: float
    step_bytes: int
    total_bytes: int
    facts: dict[str, float]


@dataclass(frozen=True)
class Failure:
    """What a process reports when it fails."""

    text: str


def _summary(rounds: list[list[Reply]]) -> Outcome:
    """Join the replies [step][rank]."""
    return Outcome(
        losses=[replies[0].loss for replies in rounds],
        seconds=[max(reply.seconds for reply in replies) for replies in rounds[1:]],
        cpu_seconds=[max(reply.cpu_seconds for reply in replies) for replies in rounds[1:]],
        step_bytes=max(reply.step_bytes for reply in rounds[-1]),
        total_bytes=max(reply.total_bytes for reply in rounds[-1]),
        facts=rounds[-1][0].facts,
    )


@dataclass(frozen=True)
class Group:
    """The processes of one variant."""

    name: str
    processes: list[BaseProcess]
    pipes: list[Connection]

    def send(self, index: int) -> None:
        """Ask for a step."""
        for pipe in self.pipes:
            pipe.send(index)

    def receive(self, limit_sec: float) -> list[Reply]:
        """One reply of each rank.

        Raises:
            SystemExit: if a process failed or did not answer in time.
        """
        deadline = time.monotonic() + limit_sec
        replies: dict[Connection, Reply] = {}
        while len(replies) < len(self.pipes):
            silent = [pipe for pipe in self.pipes if pipe not in replies]
            ready = wait(silent, timeout=max(0.0, deadline - time.monotonic()))
            if not ready:
                raise SystemExit(f"{self.name}: no answer within {limit_sec:.0f} s")
            replies |= {pipe: self._read(pipe) for pipe in silent if pipe in ready}
        return [replies[pipe] for pipe in self.pipes]

    def _read(self, pipe: Connection) -> Reply:
        try:
            reply = pipe.recv()
        except EOFError as error:
            raise SystemExit(f"{self.name}: a process died, perhaps out of memory") from error
        if isinstance(reply, Failure):
            raise SystemExit(f"{self.name}: {reply.text}")
        assert isinstance(reply, Reply)
        return reply

    def end(self) -> None:
        """Hang up, which ends a process that listens, and kill one that does not."""
        for pipe in self.pipes:
            pipe.close()
        for process in self.processes:
            process.join(timeout=END_SEC)
            process.kill()
            process.join()


@contextmanager
def started(variants: Sequence[Variant], logs: Path, start: Start) -> Iterator[list[Group]]:
    """The processes of all variants, with their models loaded."""
    context = mp.get_context(start)
    if start == "forkserver":
        context.set_forkserver_preload(PRELOADED)
    groups: list[Group] = []
    try:
        for variant in variants:
            groups.append(_start(variant, context, logs))
        for group in groups:
            group.receive(BUILD_SEC)
        yield groups
    finally:
        for group in groups:
            group.end()


def _start(variant: Variant, context: Any, logs: Path) -> Group:
    """Start the ranks of a variant; they meet on a port that was free a moment ago."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = listener.getsockname()[1]
    group = Group(variant.name, [], [])
    stem = re.sub("[^a-z0-9]+", "-", variant.name.lower()).strip("-")
    for rank in range(variant.num_ranks):
        ours, theirs = context.Pipe()
        log = logs / f"{stem}.{rank}.log"
        process = context.Process(target=_child, args=(variant, rank, port, theirs, log))
        process.start()
        theirs.close()
        group.processes.append(process)
        group.pipes.append(ours)
    return group


def _child(variant: Variant, rank: int, port: int, pipe: Connection, log: Path) -> None:
    """Body of a process: load, then step whenever asked, until the other end is closed."""
    with log.open("w") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    os.environ |= {
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "WORLD_SIZE": str(variant.num_ranks),
        "LOCAL_WORLD_SIZE": str(variant.num_ranks),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "GLOO_SOCKET_IFNAME": "lo",
    }
    with suppress(EOFError):
        try:
            _serve(variant.job, pipe)
        except (Exception, SystemExit):  # noqa: BLE001 - reported in the parent, which ends the run
            pipe.send(Failure(traceback.format_exc()))


def _serve(job: Job, pipe: Connection) -> None:
    """Answer once when the model is loaded, and then after each step."""
    empty = memory.in_use()
    # heavy: only the measured process imports torch
    from bench.contestants import make

    contestant = make(job)
    pipe.send(Reply(loss=0.0, seconds=0.0, cpu_seconds=0.0, step_bytes=0, total_bytes=0, facts={}))
    idle = memory.reset_peak()
    while True:
        index = pipe.recv()
        contestant.prepare(index)
        started_at, cpu_at = time.perf_counter(), time.process_time()
        loss = contestant.step(index)
        seconds, cpu_seconds = time.perf_counter() - started_at, time.process_time() - cpu_at
        peak = memory.peak()
        pipe.send(
            Reply(
                loss=loss,
                seconds=seconds,
                cpu_seconds=cpu_seconds,
                step_bytes=peak - idle,
                total_bytes=peak - empty,
                facts=contestant.facts(),
            )
        )
