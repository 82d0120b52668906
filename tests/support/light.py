"""`trainer/run.py` in forks of a server that has imported it, and nothing heavy, beforehand.

A mistake ends the command within a second, most of which an interpreter and numpy take to start.
Run as a script, this module is the server: a job in JSON on each line of stdin, an exit code on
each line of stdout.
"""

import json
import os
import runpy
import signal
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, NoReturn

ROOT = Path(__file__).resolve().parents[2]
RUN = ROOT / "trainer" / "run.py"
LIMIT_SEC = 600
"""No test waits longer for a command."""


@dataclass(frozen=True)
class LightEnd:
    """What a command left."""

    code: int
    out: str
    err: str
    modules: frozenset[str]
    """Top-level names of all modules that it or its server had imported."""


def finish_light(cwd: Path, arguments: Sequence[str], variables: Mapping[str, str]) -> LightEnd:
    """Run the command to its end in a folder, with these variables alone."""
    with tempfile.TemporaryDirectory(prefix="light-") as folder:
        names = {name: f"{folder}/{name}" for name in ("out", "err", "modules")}
        job = {"cwd": str(cwd), "arguments": list(arguments), "variables": dict(variables)}
        server = _server()
        assert server.stdin is not None
        assert server.stdout is not None
        server.stdin.write(json.dumps(job | names) + "\n")
        server.stdin.flush()
        code = int(server.stdout.readline())
        out, err, modules = (Path(name).read_text(encoding="utf-8") for name in names.values())
    return LightEnd(code, out, err, frozenset(modules.split()))


@cache
def _server() -> "subprocess.Popen[str]":
    """It ends with this process, which holds its stdin."""
    pipe = subprocess.PIPE
    return subprocess.Popen([sys.executable, __file__], stdin=pipe, stdout=pipe, text=True)


def serve() -> None:
    """Answer jobs until stdin is closed."""
    import trainer.run  # noqa: F401 - for the forks

    for line in sys.stdin:
        job = json.loads(line)
        process = os.fork()
        if process == 0:
            _be(job)
        _, status = os.waitpid(process, 0)
        sys.stdout.write(f"{os.waitstatus_to_exitcode(status)}\n")
        sys.stdout.flush()


def _be(job: dict[str, Any]) -> NoReturn:
    """Be the interpreter that runs the command."""
    signal.alarm(LIMIT_SEC)
    os.environ.clear()
    os.environ |= job["variables"]
    os.chdir(job["cwd"])
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    for name, stream in (("out", sys.stdout), ("err", sys.stderr)):
        with open(job[name], "wb") as file:
            os.dup2(file.fileno(), stream.fileno())
    sys.argv = [str(RUN), *job["arguments"]]
    sys.path[0] = str(RUN.parent)
    code: object = 0
    try:
        runpy.run_path(str(RUN), run_name="__main__")
    except SystemExit as end:
        code = end.code or 0
    except BaseException:  # noqa: BLE001 - as the interpreter does
        sys.excepthook(*sys.exc_info())  # type: ignore[arg-type]
        code = 1
    sys.stdout.flush()
    sys.stderr.flush()
    modules = {name.partition(".")[0] for name in sys.modules}
    Path(job["modules"]).write_text("\n".join(modules), encoding="utf-8")
    os._exit(code if isinstance(code, int) else 1)


if __name__ == "__main__":
    serve()
