"""What the batches of one rank cost, measured in a process of its own as workers are.

Started by `tools/bench/data.py`, which sends a job and a number of steps. It answers with one JSON
object.
"""

import json
import pickle
import sys
import time
from pathlib import Path

from trainer.data.batch import OwnIds
from trainer.data.processes import read_sent
from trainer.data.worker import Job

PASSES = 10
"""Over the same steps; the first is cold, the least of the others is warm."""


def main() -> None:
    """Make batches, and hand each over as a worker does: pickled, and unpickled again."""
    job, steps, settled = read_sent(sys.stdin.buffer)
    if settled:
        # what a process does once: imports, first calls
        _one_pass(job, range(steps, steps + 1))
    before = _anonymous_bytes()
    cold, tokens, peak = _one_pass(job, range(steps))
    warm = min(_one_pass(job, range(steps))[0] for _ in range(PASSES - 1)) if settled else cold
    found = {
        "cold_cpu_seconds": cold / steps,
        "warm_cpu_seconds": warm / steps,
        "own_tokens": tokens / steps,
        "anonymous_bytes": peak,
        "anonymous_bytes_before": before,
    }
    sys.stdout.write(json.dumps(found))


def _one_pass(job: Job, steps: range) -> tuple[float, int, int]:
    """CPU seconds, tokens of own texts, and the most anonymous memory after a step, in bytes."""
    began, tokens, peak = time.process_time(), 0, 0
    for step in steps:
        batch = pickle.loads(pickle.dumps(job.batch(step), protocol=pickle.HIGHEST_PROTOCOL))
        ids = batch.texts.token_ids
        tokens += len(ids.ids) if isinstance(ids, OwnIds) else int(batch.texts.lengths.sum())
        peak = max(peak, _anonymous_bytes())
    return time.process_time() - began, tokens, peak


def _anonymous_bytes() -> int:
    """Memory of this process that is no file's."""
    for line in Path("/proc/self/status").read_text(encoding="ascii").splitlines():
        if line.startswith("RssAnon:"):
            return int(line.split()[1]) * 1024
    raise SystemExit("/proc/self/status has no RssAnon: memory cannot be measured here")


if __name__ == "__main__":
    main()
