"""The real command as a process that a test can watch, disturb and wait for."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

ROOT = Path(__file__).resolve().parents[2]
BIN = Path(sys.executable).parent
LIMIT_SEC = 240
"""No test waits longer for a run."""


def environment(**changes: str) -> dict[str, str]:
    """That of a command which finds the tools of this one, no GPU and no launcher above it."""
    kept = {key: value for key, value in os.environ.items() if "RANK" not in key}
    path = f"{BIN}:{kept['PATH']}"
    # DeepSpeed looks at an optimizer that torch would compile: three seconds of imports for nothing
    quick = {"OMP_NUM_THREADS": "1", "TORCHDYNAMO_DISABLE": "1"}
    away = {"CUDA_VISIBLE_DEVICES": "", "HF_HUB_OFFLINE": "1"}
    return kept | {"PATH": path} | away | quick | changes


def by_deepspeed(script: str = "trainer/run.py", *, ranks: int = 2) -> list[str]:
    """The start of a command line."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = listener.getsockname()[1]
    return ["deepspeed", f"--master_port={port}", "--num_accelerators", str(ranks), script]


def by_python(script: str = "trainer/run.py") -> list[str]:
    """The start of a command line of one process."""
    return [sys.executable, script]


@dataclass(frozen=True)
class Ended:
    """What a run left."""

    code: int
    out: str
    err: str
    seconds: float
    """From the moment that somebody began to wait for it."""


class Running(Protocol):
    """A process, or several that end together."""

    def poll(self) -> int | None:
        """Exit code; None while it runs."""

    def wait(self, timeout: float) -> int:
        """Exit code, once it has ended."""


@dataclass
class Launched:
    """A running command."""

    process: Running
    out: Path
    err: Path

    def until(self, reached: Callable[[], bool]) -> None:
        """Wait for something that the run must bring about."""
        deadline = time.monotonic() + LIMIT_SEC
        while not reached():
            assert self.process.poll() is None, self.out.read_text() + self.err.read_text()
            assert time.monotonic() < deadline, "nothing happened"
            time.sleep(0.05)

    def wait(self, *, within_sec: float = LIMIT_SEC) -> Ended:
        """Its end."""
        started = time.monotonic()
        code = self.process.wait(timeout=within_sec)
        seconds = time.monotonic() - started
        return Ended(code, self.out.read_text(), self.err.read_text(), seconds)

    @property
    def _pids(self) -> list[int]:
        """What was started: a command, or ranks by their numbers."""
        return getattr(self.process, "pids", None) or [self.process.pid]  # type: ignore[attr-defined]

    def find(self, variable: str, value: str, part: str = "run.py") -> list[int]:
        """Process ids below this one by a variable of their environment and their command line."""
        found = []
        for process in (below for pid in self._pids for below in _descendants(pid)):
            try:
                variables = Path(f"/proc/{process}/environ").read_bytes().split(b"\0")
                command = Path(f"/proc/{process}/cmdline").read_bytes().decode()
            except OSError:
                continue
            if f"{variable}={value}".encode() in variables and part in command:
                found.append(process)
        return found

    def rank(self, rank: int, script: str = "run.py") -> int:
        """Process id of a rank."""
        if not isinstance(self.process, subprocess.Popen):
            return self._pids[rank]
        ranks = [pid for pid in self.find("RANK", str(rank), script) if not _launches(pid)]
        (process,) = ranks
        return process


@contextmanager
def launched(
    folder: Path, command: list[str], *arguments: str, **changes: str
) -> Iterator[Launched]:
    """Start a command in the project's root; what is left of it is killed on leaving."""
    out, err = folder / "out.txt", folder / "err.txt"
    with out.open("w") as stdout, err.open("w") as stderr:
        process = subprocess.Popen(
            [*command, *arguments],
            cwd=ROOT,
            stdout=stdout,
            stderr=stderr,
            text=True,
            env=environment(**changes),
            start_new_session=True,
        )
    try:
        yield Launched(process, out, err)
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def finish(folder: Path, command: list[str], *arguments: str, **changes: str) -> Ended:
    """Run a command to its end."""
    with launched(folder, command, *arguments, **changes) as run:
        return run.wait()


def num_steps(folder: Path) -> int:
    """Whole lines of a run's metrics."""
    path = folder / "metrics.jsonl"
    return path.read_text().count("\n") if path.exists() else 0


def lines(path: Path) -> list[dict[str, Any]]:
    """The objects of a JSONL file."""
    return [json.loads(line) for line in path.read_text().splitlines()]


def _descendants(process: int) -> list[int]:
    children = []
    for task in Path(f"/proc/{process}/task").glob("*/children"):
        try:
            children += [int(child) for child in task.read_text().split()]
        except OSError:
            continue
    return children + [below for child in children for below in _descendants(child)]


def _launches(process: int) -> bool:
    """Whether a process is a launcher that handed its environment down."""
    return "launch" in Path(f"/proc/{process}/cmdline").read_text().split("run.py")[0]
