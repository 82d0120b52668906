"""Child processes that import neither torch nor the launching script, and what is sent to them."""

import fcntl
import io
import os
import pickle
import signal
import struct
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from threading import Thread
from typing import IO, Any

import numpy as np

Worker = subprocess.Popen[bytes]
HEADER = struct.Struct("<Q")
"""Length of a frame in bytes, before its pickled content."""
ENVIRONMENT = {
    "TOKENIZERS_PARALLELISM": "false",
    "OMP_NUM_THREADS": "1",
    # memory that was freed is used again: fresh pages cost more than most arrays of a batch
    "MALLOC_MMAP_THRESHOLD_": str(1 << 28),
    "MALLOC_TRIM_THRESHOLD_": str(1 << 29),
}
"""Of every child: one core each, and glibc's heap kept."""
PIPE_BYTES = 1 << 20
"""A frame that fits is handed over without waiting."""
POLL_SEC = 0.2
"""Between two looks of a child at whether its parent is there."""


class _Pickler(pickle.Pickler):
    """Sends the name of a memory-mapped array in place of its content."""

    def persistent_id(self, value: Any) -> Path | None:
        if not isinstance(value, np.memmap) or value.filename is None:
            return None
        path = Path(value.filename)
        is_whole = path.suffix == ".npy" and np.load(path, mmap_mode="r").shape == value.shape
        return path if is_whole else None


class _Unpickler(pickle.Unpickler):
    def persistent_load(self, path: Path) -> np.ndarray:
        return np.load(path, mmap_mode="r")


def send(pipe: IO[bytes], value: Any, *, more: bool = False) -> None:
    """Writes a value and closes the pipe, unless there is more to come.

    A process that has ended already tells so by what can be read from it, which is nothing.
    """
    content = io.BytesIO()
    _Pickler(content, protocol=pickle.HIGHEST_PROTOCOL).dump(value)
    with suppress(BrokenPipeError):
        pipe.write(content.getbuffer())
        pipe.flush()
    if not more:
        with suppress(BrokenPipeError):
            pipe.close()


def read_sent(pipe: IO[bytes]) -> Any:
    """What `send` wrote."""
    return _Unpickler(pipe).load()


def receive(pipe: IO[bytes]) -> Any:
    """The next frame of a process, or None if it ended before the frame did."""
    header = pipe.read(HEADER.size)
    if len(header) < HEADER.size:
        return None
    (size,) = HEADER.unpack(header)
    content = pipe.read(size)
    return pickle.loads(content) if len(content) == size else None


def send_frame(pipe: IO[bytes], value: Any) -> None:
    """Writes what `receive` reads."""
    content = pickle.dumps(value, protocol=pickle.HIGHEST_PROTOCOL)
    pipe.write(HEADER.pack(len(content)) + content)
    pipe.flush()


def as_child() -> IO[bytes]:
    """Be a process of another one: end with it, leave Ctrl-C to it; gives the pipe to it.

    What is printed goes to where errors go.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the process that started this one ends it
    Thread(target=_end_with, args=(os.getppid(),), daemon=True).start()
    pipe = os.fdopen(os.dup(sys.stdout.fileno()), "wb")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    return pipe


def _end_with(parent: int) -> None:
    """End this process, wherever it is, once the one that started it has vanished."""
    while os.getppid() == parent:
        time.sleep(POLL_SEC)
    os._exit(1)


@contextmanager
def started(module: str) -> Iterator[Worker]:
    """A process that runs a module of this project, ended on leaving."""
    package_root = str(Path(__file__).resolve().parents[2])
    paths = [package_root, *filter(None, [os.environ.get("PYTHONPATH")])]
    with subprocess.Popen(
        [sys.executable, "-P", "-m", module],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env=os.environ | ENVIRONMENT | {"PYTHONPATH": os.pathsep.join(paths)},
    ) as worker:
        assert worker.stdout is not None
        fcntl.fcntl(worker.stdout.fileno(), fcntl.F_SETPIPE_SZ, PIPE_BYTES)
        try:
            yield worker
        finally:
            worker.kill()
