"""The process that makes batches ahead of time, and the pipe to it; imports neither torch nor run.

Started as `python -m trainer.data.worker`. It reads one job from its input and writes one frame
for each of its steps to its output: 8 bytes of length, then the pickled batch, or the error that
making it raised. It ends when its steps are done or its output is closed.
"""

import io
import os
import pickle
import signal
import struct
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, NamedTuple

import numpy as np

from trainer.data.batch import Batch
from trainer.data.collate import make_batch
from trainer.data.plan import DataPlan
from trainer.data.sources import Source
from trainer.data.tokens import TextEncoder
from trainer.errors import TrainerError
from trainer.recipe.schema import Recipe

HEADER = struct.Struct("<Q")


@dataclass(frozen=True, kw_only=True)
class Job:
    """All that is needed to make batches, in any process."""

    plan: DataPlan
    """Which rows each step takes."""
    sources: Mapping[str, Source]
    """By name."""
    encoder: TextEncoder
    """Texts to token ids."""
    recipe: Recipe
    """The run."""

    def owner(self, step: int, num_workers: int) -> int:
        """Which of some workers makes a step: a source's steps go round, as their costs differ."""
        name, turn = self.plan.turn(step)
        return (turn + list(self.sources).index(name)) % num_workers

    def batch(self, step: int) -> Batch:
        """The global batch of a step.

        Raises:
            DataError: if a data file or a row changed on disk, or a text has no tokens.
        """
        plan = self.plan.at(step)
        self.sources[plan.source].check_files()
        return make_batch(plan, self.sources[plan.source], self.encoder, self.recipe)


class Share(NamedTuple):
    """One worker's part of a job."""

    steps: range
    """Steps of all workers."""
    number: int
    """Of this worker, from 0."""
    num_workers: int
    """All workers."""


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


def send_job(pipe: IO[bytes], job: Job, share: Share) -> None:
    """Writes a job and the part of it that one worker has."""
    content = io.BytesIO()
    _Pickler(content, protocol=pickle.HIGHEST_PROTOCOL).dump((job, share))
    pipe.write(content.getbuffer())
    pipe.close()


def receive(pipe: IO[bytes]) -> Batch | TrainerError | None:
    """The next frame of a worker, or None if it ended before the frame did."""
    header = pipe.read(HEADER.size)
    if len(header) < HEADER.size:
        return None
    (size,) = HEADER.unpack(header)
    content = pipe.read(size)
    return pickle.loads(content) if len(content) == size else None


def work(job: Job, share: Share, pipe: IO[bytes]) -> None:
    """Makes a worker's batches and writes them; stops at the first of our errors."""
    for step in share.steps:
        if job.owner(step, share.num_workers) != share.number:
            continue
        frame: Batch | TrainerError
        try:
            frame = job.batch(step)
        except TrainerError as error:
            frame = error
        content = pickle.dumps(frame, protocol=pickle.HIGHEST_PROTOCOL)
        pipe.write(HEADER.pack(len(content)))
        pipe.write(content)
        pipe.flush()
        if isinstance(frame, TrainerError):
            return


def main() -> None:
    """Reads the job, keeps the pipe for frames alone, and works until done or not wanted."""
    for number in (signal.SIGINT, signal.SIGTERM):
        # The training process saves on these and needs its batches until it closes the pipe.
        signal.signal(number, signal.SIG_IGN)
    pipe = os.fdopen(os.dup(sys.stdout.fileno()), "wb")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    job, share = _Unpickler(sys.stdin.buffer).load()
    try:
        work(job, share, pipe)
        pipe.close()
    except BrokenPipeError:
        os._exit(0)


if __name__ == "__main__":
    main()
