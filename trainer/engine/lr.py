"""Learning rate as a pure function of the step."""

import math
from typing import Literal


def learning_rate(
    step: int,
    *,
    peak: float,
    num_steps: int,
    warmup_steps: int,
    shape: Literal["cosine", "linear", "constant"],
    min_ratio: float,
) -> float:
    """Rate of optimizer step `step`.

    Args:
        step: 0-based.
        peak: rate after warmup.
        num_steps: steps of the run.
        warmup_steps: steps of the linear rise; its first step already has peak / warmup_steps.
        shape: decay from the end of warmup on.
        min_ratio: where the decay would arrive after the last step, as a share of the peak.
    """
    if step < warmup_steps:
        return peak * (step + 1) / warmup_steps
    # 0 at the end of warmup; 1 would be one past the last step, so that no step is without effect
    done = min(1.0, (step - warmup_steps) / max(1, num_steps - warmup_steps))
    if shape == "constant":
        return peak
    share = 0.5 * (1 + math.cos(math.pi * done)) if shape == "cosine" else 1 - done
    return peak * (min_ratio + (1 - min_ratio) * share)
