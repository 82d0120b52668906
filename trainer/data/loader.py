"""Batches of a run in order, made ahead of time by worker processes; it holds no rules of its own.

A worker makes whole steps, each a function of (seed, step), so the number of workers changes
nothing but speed. Workers are plain child processes: they import neither torch nor the launching
script, and end by themselves if the training process vanishes.
"""

import fcntl
import os
import subprocess
import sys
from collections.abc import Generator, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

from trainer.data.batch import Batch
from trainer.data.plan import DataPlan
from trainer.data.sources import Source
from trainer.data.tokens import TextEncoder
from trainer.data.worker import Job, Share, receive, send_job
from trainer.errors import StepError, TrainerError
from trainer.recipe.schema import Recipe

Worker = subprocess.Popen[bytes]
PIPE_BYTES = 1 << 20
"""A batch that fits is handed over without waiting, so a worker is up to two steps ahead."""


def batches(
    plan: DataPlan,
    sources: Sequence[Source],
    encoder: TextEncoder,
    recipe: Recipe,
    start: int,
    stop: int,
) -> Generator[Batch]:
    """The global batches of steps start..stop-1, in order; close the iterator to stop early.

    Raises:
        DataError: if a row changed on disk or a text has no tokens.
        StepError: if a worker process died.
    """
    job = Job(
        plan=plan,
        sources={source.name: source for source in sources},
        encoder=encoder,
        recipe=recipe,
    )
    steps = range(start, stop)
    num_workers = min(recipe.data.workers, len(steps))
    yield from _worked(job, steps, num_workers) if num_workers else map(job.batch, steps)


def _worked(job: Job, steps: range, num_workers: int) -> Iterator[Batch]:
    """Deals steps to workers and takes their batches in order."""
    with ExitStack() as running:
        workers = [running.enter_context(_started()) for _ in range(num_workers)]
        for number, worker in enumerate(workers):
            assert worker.stdin is not None
            send_job(worker.stdin, job, Share(steps, number, num_workers))
        for step in steps:
            number = job.owner(step, num_workers)
            yield _next_batch(workers[number], number, step)


def _next_batch(worker: Worker, number: int, step: int) -> Batch:
    assert worker.stdout is not None
    # batches that a dead worker left in the pipe are not used up first: the news cannot wait
    frame = None if worker.poll() else receive(worker.stdout)
    if isinstance(frame, TrainerError):
        raise frame
    if frame is None:
        raise StepError(
            f"data worker {number} (process {worker.pid}): exit code = {worker.wait()}; expected "
            f"the batch of step {step}. See its traceback above and the machine's memory, or set "
            "data.workers=0 to make batches in the training process."
        )
    return frame


@contextmanager
def _started() -> Iterator[Worker]:
    """A worker process, ended on leaving."""
    package_root = str(Path(__file__).resolve().parents[2])
    paths = [package_root, *filter(None, [os.environ.get("PYTHONPATH")])]
    threads = {"TOKENIZERS_PARALLELISM": "false", "OMP_NUM_THREADS": "1"}
    with subprocess.Popen(
        [sys.executable, "-P", "-m", "trainer.data.worker"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env=os.environ | threads | {"PYTHONPATH": os.pathsep.join(paths)},
    ) as worker:
        assert worker.stdout is not None
        fcntl.fcntl(worker.stdout.fileno(), fcntl.F_SETPIPE_SZ, PIPE_BYTES)
        try:
            yield worker
        finally:
            worker.kill()
