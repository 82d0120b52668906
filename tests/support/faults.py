"""`trainer/run.py` with one fault planted; started as a script with PLANT set in its environment.

PLANT is `KIND:STEP:RANK`. Kinds: `nan` spoils the gradient of a step on one rank, `memory` makes
the rank's forward fail as torch does where memory runs out, `error` raises an ordinary exception.
"""

import os
import sys
from typing import Any

import torch

from trainer.cli import ending_with_code
from trainer.data.batch import Batch
from trainer.engine import step
from trainer.run import main

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

    def spoiled(vectors: Any) -> Any:
        gradients, terms = pull(vectors)
        gradients[0][0, 0] = torch.nan
        return gradients, terms

    return spoiled


if __name__ == "__main__":
    step.step_loss = planted  # type: ignore[assignment]
    sys.exit(ending_with_code(main))
