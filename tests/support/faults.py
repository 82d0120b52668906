"""`trainer/run.py` with one fault planted; started as a script with PLANT set in its environment.

PLANT is `KIND:STEP:RANK`. Kinds: `nan` spoils the gradient of a step on one rank, `memory` makes
the rank's forward fail as torch does where memory runs out, `error` raises an ordinary exception.
`limit` lets the rank have no more memory than it holds, and the step's number in MB, from the
memory probe on.
"""

import os
import resource
import sys
from pathlib import Path
from typing import Any

import torch

from trainer.cli import ending_with_code
from trainer.data.batch import Batch
from trainer.engine import step
from trainer.engine.out_of_memory import probe_memory
from trainer.run import main
from trainer.session.train import train as session

KIND, STEP, RANK = os.environ["PLANT"].split(":")
step_loss = step.step_loss


def planted(batch: Batch, *arguments: Any) -> Any:
    """The loss of a batch, wrong where the plan says so."""
    pull = step_loss(batch, *arguments)
    if batch.plan.step != int(STEP) or os.environ["RANK"] != RANK:
        return pull
    if KIND == "error":
        raise ValueError("only here")
    if KIND == "memory":
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")

    def malformed(vectors: Any) -> Any:
        gradients, terms = pull(vectors)
        gradients[0][0, 0] = torch.nan
        return gradients, terms

    return malformed


def limited(*arguments: Any) -> None:
    """The memory probe in a process that can get little more memory."""
    if KIND == "limit" and os.environ["RANK"] == RANK:
        held = int(Path("/proc/self/statm").read_text().split()[0]) * os.sysconf("SC_PAGE_SIZE")
        most = held + int(STEP) * 10**6
        resource.setrlimit(resource.RLIMIT_AS, (most, most))
    probe_memory(*arguments)


if __name__ == "__main__":
    step.step_loss = planted  # type: ignore[assignment]
    session.probe_memory = limited  # type: ignore[assignment]
    sys.exit(ending_with_code(main))
