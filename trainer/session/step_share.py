"""How much of a step's time is no matrix product of the model: what `--selfcheck` says at its end.

Counted as products are the linear maps and fused attention, forward and backward; all else is
norms, activations, the loss, the optimizer, copies, collectives and Python.
"""

import time
from contextlib import closing

import torch
from torch.profiler import ProfilerActivity, profile

from trainer.data.loader import batches
from trainer.data.planned import plan_of
from trainer.engine.step import Stepper
from trainer.recipe.schema import Recipe
from trainer.session.open import Session

PRODUCTS = (
    "aten::mm", "aten::addmm", "aten::bmm", "aten::baddbmm", "aten::linear",
    "mkldnn::_linear_pointwise",
)  # fmt: skip
"""Operators of linear maps, and of attention where it is not fused."""
FUSED_ATTENTION = ("aten::_scaled_dot_product", "aten::_flash_attention", "aten::_efficient_att")
"""How operators of fused attention begin."""
WARM_UP, MEASURED = 1, 1
"""Steps; the first one makes the optimizer's state."""


def share_outside_products(session: Session, recipe: Recipe) -> tuple[float, str]:
    """Take steps of the recipe's own size and measure the last one; parameters are changed.

    Args:
        session: its engine is used.
        recipe: with batches as they are trained.

    Returns:
        Share of the wall time of this rank, 0..1, and the source of the step.
    Collective: yes.
    """
    steps = WARM_UP + MEASURED
    stepper = Stepper(recipe, session.built, session.ranks, num_steps=steps, warmup_steps=0)
    plan = plan_of(recipe, session.data.sources)
    on_gpu = session.ranks.device.type == "cuda"
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if on_gpu else [])]
    share, source = 0.0, ""
    with closing(batches(plan, session.data.sources, session.encoder, recipe, 0, steps)) as stream:
        for number, batch in enumerate(stream):
            if number < WARM_UP:
                stepper.run(batch)
                continue
            started = time.perf_counter()
            with profile(activities=activities) as measured:
                stepper.run(batch)
                if on_gpu:
                    torch.cuda.synchronize()
                seconds = time.perf_counter() - started
            share, source = 1 - _product_seconds(measured, on_gpu) / seconds, batch.plan.source
    return share, source


def _product_seconds(measured: profile, on_gpu: bool) -> float:
    """Seconds in matrix products, on the device that computes them."""
    return 1e-6 * sum(
        one.self_device_time_total if on_gpu else one.self_cpu_time_total
        for one in measured.key_averages()
        if one.key in PRODUCTS or one.key.startswith(FUSED_ATTENTION)
    )
