"""What the batches of one rank cost, measured in a process of its own as workers are.

Started by `tools/bench/data.py`, which sends a job and a number of steps. It answers with one JSON
object.
"""

import json
import pickle
import sys
import time
from dataclasses import replace

from bench.memory import anonymous_bytes
from trainer.data.batch import OwnIds
from trainer.data.host_share import SharedFrame
from trainer.data.processes import read_sent
from trainer.data.worker import Job

PASSES = 10
"""Over the same steps; the first is cold, the least of the others is warm."""


def main() -> None:
    """Make batches, and hand each over as a worker does: pickled, and opened again."""
    job, steps, settled = read_sent(sys.stdin.buffer)
    if settled:
        # what a process does once: imports, first calls
        _one_pass(_of_pass(job, "first"), range(steps, steps + 1))
    before = anonymous_bytes()
    cold, tokens, peak = _one_pass(_of_pass(job, "cold"), range(steps))
    warm = cold
    if settled:
        jobs = [_of_pass(job, str(number)) for number in range(PASSES - 1)]
        warm = min(_one_pass(one, range(steps))[0] for one in jobs)
    found = {
        "cold_cpu_seconds": cold / steps,
        "warm_cpu_seconds": warm / steps,
        "own_tokens": tokens / steps,
        "anonymous_bytes": peak,
        "anonymous_bytes_before": before,
    }
    sys.stdout.write(json.dumps(found))


def _of_pass(job: Job, name: str) -> Job:
    """A job that shares its steps with the same pass of the other ranks of its host."""
    if job.ahead is None or job.ahead.host is None:
        return job
    folder = job.ahead.host.folder / name
    folder.mkdir(exist_ok=True)
    host = replace(job.ahead.host, folder=folder)
    return replace(job, ahead=replace(job.ahead, host=host))


def _one_pass(job: Job, steps: range) -> tuple[float, int, int]:
    """CPU seconds, tokens of own texts, and the most anonymous memory after a step, in bytes."""
    began, tokens, peak = time.process_time(), 0, 0
    for step in steps:
        content = pickle.dumps(job.frame(step, 1), protocol=pickle.HIGHEST_PROTOCOL)
        frame = pickle.loads(content)
        batch = frame.open() if isinstance(frame, SharedFrame) else frame
        ids = batch.texts.token_ids
        tokens += len(ids.ids) if isinstance(ids, OwnIds) else int(batch.texts.lengths.sum())
        peak = max(peak, anonymous_bytes())
    return time.process_time() - began, tokens, peak


if __name__ == "__main__":
    main()
