"""Batches of a run in order, made ahead of time by worker processes; it holds no rules of its own.

A worker makes whole steps, each a function of (seed, step), so the number of workers changes
nothing but speed. Workers are plain child processes: they import neither torch nor the launching
script, and end by themselves if the training process vanishes.
"""

from collections.abc import Generator, Iterator, Sequence
from contextlib import ExitStack

from trainer.data.batch import Batch
from trainer.data.host_share import SharedFrame, shared_folder
from trainer.data.mixed_source import with_mixes
from trainer.data.plan import DataPlan
from trainer.data.processes import Worker, receive, send, started
from trainer.data.sources import StepSource
from trainer.data.tokens import TextEncoder
from trainer.data.worker import Ahead, Job, Share
from trainer.errors import StepError, TrainerError
from trainer.recipe.schema import Recipe

MODULE = "trainer.data.worker"


def batches(
    plan: DataPlan,
    sources: Sequence[StepSource],
    encoder: TextEncoder,
    recipe: Recipe,
    start: int,
    stop: int,
    *,
    ahead: Ahead | None = None,
) -> Generator[Batch]:
    """The global batches of steps start..stop-1, in order; close the iterator to stop early.

    Args:
        plan: which rows each step takes.
        sources: those of the plan, with what was mined for them.
        encoder: texts to token ids.
        recipe: the run.
        start: first step.
        stop: one past the last step.
        ahead: sources that were tokenised; of their texts a rank gets ids of its own only.

    Raises:
        DataError: if a row changed on disk, a text has no tokens, or stored tokens are damaged.
        StepError: if a worker process died.
    """
    job = Job(
        plan=plan,
        sources=with_mixes(recipe.data, sources),
        encoder=encoder,
        recipe=recipe,
        ahead=ahead,
    )
    steps = range(start, stop)
    num_workers = min(recipe.data.workers, len(steps))
    yield from _worked(job, steps, num_workers) if num_workers else map(job.batch, steps)


def _worked(job: Job, steps: range, num_workers: int) -> Iterator[Batch]:
    """Deals steps to workers and takes their batches in order."""
    with ExitStack() as running:
        if job.ahead is not None and job.ahead.host is not None:
            running.enter_context(shared_folder(job.ahead.host))
        workers = [running.enter_context(started(MODULE)) for _ in range(num_workers)]
        for number, worker in enumerate(workers):
            assert worker.stdin is not None
            send(worker.stdin, (job, Share(steps, number, num_workers)))
        for step in steps:
            number = job.owner(step, num_workers)
            frame = _next_frame(workers[number], number, step, job)
            if isinstance(frame, SharedFrame):
                try:
                    frame = frame.open()
                except OSError:  # a service that clears shared memory was faster
                    frame = job.batch(step)
            yield frame


def _next_frame(worker: Worker, number: int, step: int, job: Job) -> Batch | SharedFrame:
    assert worker.stdout is not None
    # batches that a dead worker left in the pipe are not used up first: the news cannot wait
    frame = None if worker.poll() else receive(worker.stdout)
    if isinstance(frame, TrainerError):
        raise frame
    if frame is None:
        # the system ends a process that reads a file which became shorter
        for source in job.sources.values():
            source.check_files()
        raise StepError(
            f"data worker {number} (process {worker.pid}): exit code = {worker.wait()}; expected "
            f"the batch of step {step}. See its traceback above and the machine's memory, or set "
            "data.workers=0 to make batches in the training process."
        )
    found: Batch | SharedFrame = frame
    return found
