"""What the batches of one rank cost, measured in a process of its own as workers are.

Started by `tools/bench/data.py`, which sends a job and then lines: the name of a pass and a step.
To each it answers with one line, a JSON object, once the step is made.
"""

import json
import pickle
import sys
import time
from dataclasses import replace
from functools import cache

import numpy as np

from bench.memory import anonymous_bytes
from trainer.data.batch import OwnIds
from trainer.data.host_share import SharedFrame
from trainer.data.processes import read_sent
from trainer.data.worker import Job

OTHERS = np.ones(8 << 20)
"""Numbers that are read between steps, 64 MiB: as in a run, a step finds no cache of the processor
filled by the one before."""


def main() -> None:
    """Make batches, and hand each over as a worker does: pickled, and opened again."""
    job = read_sent(sys.stdin.buffer)
    of_pass = cache(lambda name: _of_pass(job, name))
    for line in sys.stdin.buffer:
        name, step = line.decode("ascii").split()
        found = _one_step(of_pass(name), int(step))
        sys.stdout.write(json.dumps(found) + "\n")
        sys.stdout.flush()


def _of_pass(job: Job, name: str) -> Job:
    """A job that shares its steps with the same pass of the other ranks of its host."""
    if job.ahead is None or job.ahead.host is None:
        return job
    folder = job.ahead.host.folder / name
    folder.mkdir(exist_ok=True)
    host = replace(job.ahead.host, folder=folder)
    return replace(job, ahead=replace(job.ahead, host=host))


def _one_step(job: Job, step: int) -> dict[str, float]:
    """CPU seconds, tokens of own texts, and anonymous memory after the step, in bytes."""
    OTHERS.sum()
    began = time.process_time()
    content = pickle.dumps(job.frame(step, 1), protocol=pickle.HIGHEST_PROTOCOL)
    frame = pickle.loads(content)
    batch = frame.open() if isinstance(frame, SharedFrame) else frame
    seconds = time.process_time() - began
    ids = batch.texts.token_ids
    tokens = len(ids.ids) if isinstance(ids, OwnIds) else int(batch.texts.lengths.sum())
    memory = anonymous_bytes() - OTHERS.nbytes
    return {"cpu_seconds": seconds, "tokens": tokens, "anonymous_bytes": memory}


if __name__ == "__main__":
    main()
