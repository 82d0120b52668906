"""Which ways to shard, gather and cut chunks fit a machine, and which of them is fastest.

The order of speed is a judgement from what each way does more than the one before it, and from the
step benchmark: a reduction in pieces, gathers once a step, once a layer, for every chunk, and the
way to the host's memory last.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import partial

from transformers import PretrainedConfig

from trainer.memory.estimate import MemoryPlan, Way, plan_memory, with_budget
from trainer.memory.shapes import ModelShape, measure_model
from trainer.recipe.resolve import deepspeed_config
from trainer.recipe.schema import AUTO, LoraRecipe, Recipe

STAGES = ("zero1", "zero2", "zero3", "zero3_offload")
"""Shipped ds_configs without their precision, fastest first."""
SUFFIXES = {"bfloat16": "bf16", "float32": "fp32"}
"""How their names end."""
BUDGETS = 3
"""Chunk budgets that are looked at: the recipe's own, and halves of it."""
MORE = (2, 4, 8, 16, 32)
"""How many times the ranks are tried where nothing fits."""


@dataclass(frozen=True, kw_only=True)
class Machine:
    """What is planned for."""

    world_size: int
    """Ranks over all hosts."""
    ranks_per_host: int
    """Those of them that share a host's memory and disk."""
    usable_bytes: int | None
    """What tensors may take on each rank; None where not known."""
    on_gpu: bool
    """Whether the ranks compute on GPUs."""


@dataclass(frozen=True, kw_only=True)
class Choice:
    """One way to run a recipe."""

    file: str
    """ds_config."""
    gather: Way
    """`engine.gather`."""
    totals: Mapping[int, int]
    """Peak bytes of a rank by chunk budget, largest budget first."""
    host_bytes: int
    """Of each rank, offloaded."""

    def largest_fitting(self, usable_bytes: int) -> int | None:
        """The largest chunk budget that fits, tokens."""
        return next((b for b, total in self.totals.items() if total <= usable_bytes), None)

    def overrides(self, budget: int) -> str:
        """What to write after the launch command."""
        return (
            f"engine.deepspeed={self.file} engine.gather={self.gather} "
            f"engine.max_tokens_per_chunk={budget}"
        )


def plan_for(recipe: Recipe, shape: ModelShape, machine: Machine, file: str) -> MemoryPlan:
    """The least that a recipe needs with a ds_config of its precision."""
    engine = replace(recipe.engine, deepspeed=file)
    if engine.keep_graph_tokens == AUTO:
        engine = replace(engine, keep_graph_tokens=None)
    recipe = replace(recipe, engine=engine)
    return plan_memory(
        recipe,
        shape,
        deepspeed=deepspeed_config(recipe, world_size=machine.world_size),
        world_size=machine.world_size,
        usable_bytes=machine.usable_bytes,
        on_gpu=machine.on_gpu,
    )


def choices(recipe: Recipe, shape: ModelShape, machine: Machine) -> list[Choice]:
    """Every shipped ds_config of the recipe's precision with every way to gather, fastest first."""
    return list(_choices(recipe, shape, machine))


def _choices(recipe: Recipe, shape: ModelShape, machine: Machine) -> Iterator[Choice]:
    own = recipe.engine.max_tokens_per_chunk
    budgets = [max(1, own >> halvings) for halvings in range(BUDGETS)]
    for stage in STAGES:
        file = f"{stage}_{SUFFIXES[recipe.model.dtype]}.json"
        plans = {b: plan_for(with_budget(recipe, b), shape, machine, file) for b in budgets}
        sharded = stage.startswith("zero3")
        for way in plans[own].phases if sharded else ("step",):
            yield Choice(
                file=file,
                gather=way,  # type: ignore[arg-type] # keys of the phases
                totals={budget: plan.total(way) for budget, plan in plans.items()},  # type: ignore[arg-type]
                host_bytes=sum(plans[own].host.values()),
            )


def fastest(found: list[Choice], usable_bytes: int) -> tuple[Choice, int] | None:
    """The first choice that fits and its largest chunk budget; None where none does."""
    for choice in found:
        budget = choice.largest_fitting(usable_bytes)
        if budget is not None:
            return choice, budget
    return None


def smallest_changes(
    recipe: Recipe, config: PretrainedConfig, machine: Machine, *, teacher_size: int | None = None
) -> list[str]:
    """What would fit where no choice does: one phrase each, the smallest change first.

    Args:
        recipe: as loaded.
        config: of the backbone.
        machine: what is planned for.
        teacher_size: see `measure_model`.
    """
    measured = partial(measure_model, config, teacher_size=teacher_size)
    assert machine.usable_bytes is not None
    changes: list[str] = []
    model = replace(recipe.model, gradient_checkpointing=True)
    saving = replace(recipe, model=model)
    if not recipe.model.gradient_checkpointing:
        changes += _change("model.gradient_checkpointing=true", saving, measured, machine)
    shape = measured(saving)
    for times in MORE:
        more = replace(machine, world_size=times * machine.world_size)
        best = fastest(choices(saving, shape, more), machine.usable_bytes)
        if best is not None:
            changes.append(f"{more.world_size} ranks and {best[0].overrides(best[1])}")
            break
    if recipe.model.lora is None:
        adapters = replace(saving, model=replace(model, lora=LoraRecipe()))
        changes += _change("adapters, model.lora.rank=16", adapters, measured, machine)
    return changes


def _change(
    name: str, recipe: Recipe, measured: Callable[[Recipe], ModelShape], machine: Machine
) -> list[str]:
    """The change with the fastest way that fits with it, if any does."""
    assert machine.usable_bytes is not None
    best = fastest(choices(recipe, measured(recipe), machine), machine.usable_bytes)
    return [] if best is None else [f"{name} and {best[0].overrides(best[1])}"]
