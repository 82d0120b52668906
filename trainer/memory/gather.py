"""How the passes of a step run: gathering and kept graphs, by the memory plan."""

import logging
import os
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.distributed as dist
from transformers import PretrainedConfig

from trainer.errors import TrainerError
from trainer.memory.choices import Machine
from trainer.memory.estimate import MemoryPlan, plan_memory
from trainer.memory.machine import device_memory
from trainer.memory.shapes import ModelShape, PlanError, measure_model
from trainer.memory.text import kept_graphs, summary
from trainer.recipe.schema import AUTO, Gather, Recipe

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Passes:
    """How the two passes of a step run."""

    gather: Gather
    """`step`, `layer` or `chunk`."""
    keep_graph_tokens: int | None = None
    """Padded tokens whose graph is kept; None: what costs no memory."""
    whole_graphs: bool = False
    """Whether layers keep all activations with `step` although the recipe recomputes them."""


def choose_passes(
    recipe: Recipe,
    config: PretrainedConfig,
    deepspeed: Mapping[str, Any],
    *,
    world_size: int,
    teacher_size: int | None = None,
) -> Passes:
    """The recipe's `engine.gather`, or the fastest that the memory plan allows; logs the plan.

    Below stage 3 nothing is gathered and `step` costs least. `layer` is only for Llama-style
    decoders; `chunk` serves any other backbone.

    Args:
        recipe: as loaded.
        config: of the backbone.
        deepspeed: the resolved dict.
        world_size: number of ranks.
        teacher_size: see `measure_model`.

    Returns:
        The first rank's choice everywhere.

    Raises:
        TrainerError: the model cannot be measured as the recipe wants it, on every rank.
    Collective: yes.
    """
    # ranks may see different free memory; all must take the same way, or none
    choice: list[Any] = [None]
    if dist.get_rank() == 0:
        try:
            choice[0] = _choose(recipe, config, deepspeed, world_size, teacher_size)
        except TrainerError as error:
            choice[0] = error
    dist.broadcast_object_list(choice)
    if isinstance(choice[0], TrainerError):
        raise choice[0]
    chosen: Passes = choice[0]
    return chosen


def _choose(
    recipe: Recipe,
    config: PretrainedConfig,
    deepspeed: Mapping[str, Any],
    world_size: int,
    teacher_size: int | None,
) -> Passes:
    """The first rank's part of `choose_passes`."""
    local_ranks = os.environ.get("LOCAL_WORLD_SIZE") or os.environ.get("LOCAL_SIZE")
    machine = Machine(
        world_size=world_size,
        ranks_per_host=int(local_ranks or world_size),
        usable_bytes=device_memory(int(local_ranks or world_size)),
        on_gpu=torch.cuda.is_available(),
    )
    try:
        shape = measure_model(config, recipe, teacher_size=teacher_size)
        plan, passes = plan_passes(recipe, shape, config, deepspeed, machine)
    except PlanError as error:
        logger.info("%s", error)
        return Passes(gather=_unplanned(recipe, deepspeed))
    logger.info("%s", _described(recipe, plan, passes, world_size))
    return passes


def plan_passes(
    recipe: Recipe,
    shape: ModelShape,
    config: PretrainedConfig,
    deepspeed: Mapping[str, Any],
    machine: Machine,
) -> tuple[MemoryPlan, Passes]:
    """The memory plan, and how the passes run by it.

    Where whole graphs fit, recomputing layers would only cost time: they are kept instead.

    Args:
        recipe: as loaded.
        shape: from `measure_model` of the config and the recipe.
        config: of the backbone.
        deepspeed: the resolved dict.
        machine: what is planned for.
    """

    def planned(shape: ModelShape) -> MemoryPlan:
        return plan_memory(
            recipe,
            shape,
            deepspeed=deepspeed,
            world_size=machine.world_size,
            usable_bytes=machine.usable_bytes,
            on_gpu=machine.on_gpu,
        )

    plan, model, whole_graphs = planned(shape), recipe.model, False
    gather = chosen_gather(recipe, plan, deepspeed)
    is_free = gather == "step" and recipe.engine.keep_graph_tokens == AUTO
    if is_free and model.gradient_checkpointing and machine.usable_bytes is not None:
        plain = replace(recipe, model=replace(model, gradient_checkpointing=False))
        whole = planned(measure_model(config, plain, teacher_size=shape.teacher_size))
        whole_graphs = whole.fits_in("step", recipe.engine.memory_fraction)
        plan = whole if whole_graphs else plan
    # none for a way that does not suit the backbone
    kept = plan.kept.get(gather)  # type: ignore[arg-type] # keys of the phases
    return plan, Passes(gather=gather, keep_graph_tokens=kept, whole_graphs=whole_graphs)


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


def _described(recipe: Recipe, plan: MemoryPlan, passes: Passes, world_size: int) -> str:
    """The plan in one line; a way that does not suit the backbone is refused later."""
    gather = passes.gather
    if gather not in plan.phases:
        return f"memory plan: none, as gather: {gather} does not suit this backbone"
    text = summary(plan, gather, world_size=world_size)  # type: ignore[arg-type]
    text += f"; {kept_graphs(plan, recipe, gather, whole_graphs=passes.whole_graphs)}"  # type: ignore[arg-type]
    if plan.fits_with(gather):  # type: ignore[arg-type]
        return text
    return f"{text}. It does not fit; --dry-run lists what does"
