"""Which way of gathering parameters a run takes when the recipe says `auto`."""

import os
from collections.abc import Mapping
from typing import Any

import torch.distributed as dist
from transformers import PretrainedConfig

from trainer.engine.memory import device_memory, measure_model, plan_memory
from trainer.recipe.schema import Gather, Recipe


def choose_gather(
    recipe: Recipe, config: PretrainedConfig, deepspeed: Mapping[str, Any], *, world_size: int
) -> Gather:
    """The recipe's `engine.gather`, or the fastest that the memory plan allows.

    Below stage 3 nothing is gathered and `step` costs least. `chunk` is only for Llama-style
    decoders; `interleaved` serves any other backbone.

    Args:
        recipe: as loaded.
        config: of the backbone.
        deepspeed: the resolved dict.
        world_size: number of ranks.

    Returns:
        `step`, `chunk` or `interleaved`; the first rank's choice everywhere.
    Collective: yes.
    """
    if recipe.engine.gather != "auto":
        return recipe.engine.gather
    if deepspeed["zero_optimization"]["stage"] < 3:
        return "step"
    local_ranks = os.environ.get("LOCAL_WORLD_SIZE") or os.environ.get("LOCAL_SIZE") or world_size
    plan = plan_memory(
        recipe,
        measure_model(config, recipe.model.lora),
        deepspeed=deepspeed,
        world_size=world_size,
        usable_bytes=device_memory(int(local_ranks)),
    )
    # ranks may see different free memory; all must take the same way
    choice: list[Any] = [plan.gather]
    dist.broadcast_object_list(choice)
    chosen: Gather = choice[0]
    return chosen
