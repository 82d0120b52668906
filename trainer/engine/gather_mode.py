"""Which way of gathering parameters a run takes when the recipe says `auto`."""

import os
from collections.abc import Mapping
from typing import Any

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
        `step`, `chunk` or `interleaved`; the same on ranks with equal memory.
    """
    if recipe.engine.gather != "auto":
        return recipe.engine.gather
    if deepspeed["zero_optimization"]["stage"] < 3:
        return "step"
    plan = plan_memory(
        recipe,
        measure_model(config, recipe.model.lora),
        deepspeed=deepspeed,
        world_size=world_size,
        usable_bytes=device_memory(int(os.environ.get("LOCAL_WORLD_SIZE", world_size))),
    )
    return plan.gather
