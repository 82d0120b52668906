"""Which way of gathering parameters a run takes, and the memory plan that it is chosen by."""

import logging
import os
from collections.abc import Mapping
from typing import Any

import torch
import torch.distributed as dist
from transformers import PretrainedConfig

from trainer.errors import TrainerError
from trainer.memory.estimate import MemoryPlan, device_memory, plan_memory
from trainer.memory.shapes import PlanError, measure_model
from trainer.memory.text import summary
from trainer.recipe.schema import Gather, Recipe

logger = logging.getLogger(__name__)


def choose_gather(
    recipe: Recipe, config: PretrainedConfig, deepspeed: Mapping[str, Any], *, world_size: int
) -> Gather:
    """The recipe's `engine.gather`, or the fastest that the memory plan allows; logs the plan.

    Below stage 3 nothing is gathered and `step` costs least. `layer` is only for Llama-style
    decoders; `chunk` serves any other backbone.

    Args:
        recipe: as loaded.
        config: of the backbone.
        deepspeed: the resolved dict.
        world_size: number of ranks.

    Returns:
        `step`, `layer` or `chunk`; the first rank's choice everywhere.

    Raises:
        TrainerError: the model cannot be measured as the recipe wants it, on every rank.
    Collective: yes.
    """
    # ranks may see different free memory; all must take the same way, or none
    choice: list[Any] = [None]
    if dist.get_rank() == 0:
        try:
            choice[0] = _choose(recipe, config, deepspeed, world_size)
        except TrainerError as error:
            choice[0] = error
    dist.broadcast_object_list(choice)
    if isinstance(choice[0], TrainerError):
        raise choice[0]
    chosen: Gather = choice[0]
    return chosen


def _choose(
    recipe: Recipe, config: PretrainedConfig, deepspeed: Mapping[str, Any], world_size: int
) -> Gather:
    """The first rank's part of `choose_gather`."""
    try:
        plan = _plan(recipe, config, deepspeed, world_size)
    except PlanError as error:
        logger.info("%s", error)
        return _unplanned(recipe, deepspeed)
    gather = chosen_gather(recipe, plan, deepspeed)
    logger.info("%s", _described(plan, gather, world_size))
    return gather


def _plan(
    recipe: Recipe, config: PretrainedConfig, deepspeed: Mapping[str, Any], world_size: int
) -> MemoryPlan:
    """The plan for this machine."""
    local_ranks = os.environ.get("LOCAL_WORLD_SIZE") or os.environ.get("LOCAL_SIZE")
    return plan_memory(
        recipe,
        measure_model(config, recipe),
        deepspeed=deepspeed,
        world_size=world_size,
        usable_bytes=device_memory(int(local_ranks or world_size)),
        on_gpu=torch.cuda.is_available(),
    )


def _unplanned(recipe: Recipe, deepspeed: Mapping[str, Any]) -> Gather:
    """What `auto` means without a plan: what needs least."""
    if recipe.engine.gather != "auto":
        return recipe.engine.gather
    return "step" if deepspeed["zero_optimization"]["stage"] < 3 else "chunk"


def chosen_gather(recipe: Recipe, plan: MemoryPlan, deepspeed: Mapping[str, Any]) -> Gather:
    """What `auto` means with a plan."""
    if recipe.engine.gather != "auto":
        return recipe.engine.gather
    return "step" if deepspeed["zero_optimization"]["stage"] < 3 else plan.gather


def _described(plan: MemoryPlan, gather: Gather, world_size: int) -> str:
    """The plan in one line; a way that does not suit the backbone is refused later."""
    if gather not in plan.phases:
        return f"memory plan: none, as gather: {gather} does not suit this backbone"
    text = summary(plan, gather, world_size=world_size)  # type: ignore[arg-type]
    if plan.fits_with(gather):  # type: ignore[arg-type]
        return text
    return f"{text}. It does not fit; --dry-run lists what does"
