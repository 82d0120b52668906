"""A script as ranks that are forked with their imports done, where the launcher is not the subject.

What a rank runs is the script itself, under its own arguments, environment, output and session.
What it leaves out is the interpreter's start and DeepSpeed's launcher: half a minute of a core for
two ranks.
"""

import atexit
import os
import runpy
import signal
import socket
import sys
import threading
import time
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from multiprocessing.process import BaseProcess
from pathlib import Path

import torch

from tests.support.launched import ROOT, Ended, Launched, environment
from tests.support.ranks import fork_context


@dataclass(frozen=True)
class ForkedRanks:
    """Ranks of one run, with the part of `subprocess.Popen` that `Launched` needs."""

    processes: Sequence[BaseProcess]

    @property
    def pids(self) -> list[int]:
        """Process ids by rank."""
        return [process.pid or 0 for process in self.processes]

    def poll(self) -> int | None:
        """The first exit code that is not 0 once all have ended; None before."""
        codes = [process.exitcode for process in self.processes]
        return None if None in codes else max(codes, key=lambda code: (code != 0, code))

    def wait(self, timeout: float) -> int:
        """Join all ranks.

        Raises:
            TimeoutError: if one is still running after so many seconds.
        """
        deadline = time.monotonic() + timeout
        for process in self.processes:
            process.join(max(0.0, deadline - time.monotonic()))
        code = self.poll()
        if code is None:
            raise TimeoutError(f"ranks still run after {timeout} s: {self.pids}")
        return code

    def kill(self) -> None:
        """End what is left of them, with what they started."""
        for process in self.processes:
            with suppress(ProcessLookupError):
                os.killpg(process.pid or 0, signal.SIGKILL)
            process.join()


@contextmanager
def forked(
    folder: Path,
    *arguments: str,
    script: str = "trainer/run.py",
    ranks: int = 1,
    cwd: Path = ROOT,
    **changes: str,
) -> Iterator[Launched]:
    """Start a script of this project on `ranks` ranks; what is left is killed on leaving."""
    out, err = folder / "out.txt", folder / "err.txt"
    for path in (out, err):
        path.write_bytes(b"")
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = str(listener.getsockname()[1])
    shared = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "WORLD_SIZE": str(ranks),
              "LOCAL_WORLD_SIZE": str(ranks)}  # fmt: skip
    if ranks == 1:
        shared = {}
    context, processes = fork_context(), []
    for rank in range(ranks):
        own = {"RANK": str(rank), "LOCAL_RANK": str(rank)} if ranks > 1 else {}
        variables = environment(**shared, **own, **changes)
        job = (script, arguments, cwd, variables, out, err)
        processes.append(context.Process(target=_run, args=job))
        processes[-1].start()
    run = ForkedRanks(processes)
    try:
        yield Launched(run, out, err)
    finally:
        run.kill()


def finish_forked(
    folder: Path,
    *arguments: str,
    script: str = "trainer/run.py",
    ranks: int = 1,
    cwd: Path = ROOT,
    **changes: str,
) -> Ended:
    """Run a script to its end."""
    with forked(folder, *arguments, script=script, ranks=ranks, cwd=cwd, **changes) as run:
        return run.wait()


def _run(
    script: str,
    arguments: Sequence[str],
    cwd: Path,
    variables: dict[str, str],
    out: Path,
    err: Path,
) -> None:
    """Be the interpreter that runs a script."""
    os.setsid()
    os.environ.clear()
    os.environ |= variables
    os.chdir(cwd)
    for path, stream in ((out, sys.stdout), (err, sys.stderr)):
        with path.open("ab") as file:
            os.dup2(file.fileno(), stream.fileno())
        stream.reconfigure(line_buffering=True)  # type: ignore[union-attr]
    torch.set_num_threads(int(variables["OMP_NUM_THREADS"]))
    sys.argv = [str(ROOT / script), *arguments]
    sys.path.insert(0, str((ROOT / script).parent))
    code: object = 1
    try:
        runpy.run_path(str(ROOT / script), run_name="__main__")
        code = 0
    except SystemExit as end:
        code = end.code or 0
    except BaseException:  # noqa: BLE001 - as the interpreter does
        traceback.print_exc()
    threading._shutdown()  # type: ignore[attr-defined]
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code if isinstance(code, int) else 1)
