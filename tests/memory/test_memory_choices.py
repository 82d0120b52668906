"""What fits a machine is listed fastest first, and where nothing does, a change that would."""

import dataclasses
from pathlib import Path

import pytest

from tests.support.tiny import make_recipe, qwen3_config
from trainer.memory.choices import Machine, choices, fastest, plan_for, smallest_changes
from trainer.memory.estimate import plan_memory
from trainer.memory.shapes import ModelShape, measure_model
from trainer.memory.text import choices_section, disk_section, memory_table
from trainer.recipe.resolve import deepspeed_config

CONFIG = qwen3_config(num_hidden_layers=8, hidden_size=256, intermediate_size=1024, head_dim=64)
RECIPE = make_recipe(Path("unused"))
WORLD = 2


@pytest.fixture(scope="module")
def shape() -> ModelShape:
    return measure_model(CONFIG, RECIPE)


def machine(usable_bytes: int) -> Machine:
    return Machine(world_size=WORLD, ranks_per_host=WORLD, usable_bytes=usable_bytes, on_gpu=False)


def test_every_file_and_way_is_looked_at(shape: ModelShape) -> None:
    found = choices(RECIPE, shape, machine(1))
    assert [(choice.file, choice.gather) for choice in found] == [
        ("zero1_fp32.json", "step"),
        ("zero2_fp32.json", "step"),
        *(("zero3_fp32.json", way) for way in ("step", "layer", "chunk")),
        *(("zero3_offload_fp32.json", way) for way in ("step", "layer", "chunk")),
    ]
    budget = RECIPE.engine.max_tokens_per_chunk
    assert all(list(choice.totals) == [budget, budget // 2, budget // 4] for choice in found)
    assert [bool(choice.host_bytes) for choice in found] == [False] * 5 + [True] * 3


def test_totals_are_those_of_the_plan(shape: ModelShape) -> None:
    first = choices(RECIPE, shape, machine(1))[0]
    plan = plan_for(RECIPE, shape, machine(1), first.file)
    assert first.totals[RECIPE.engine.max_tokens_per_chunk] == plan.total("step")


def test_the_first_that_fits_is_named(shape: ModelShape) -> None:
    found = choices(RECIPE, shape, machine(1))
    least = min(min(choice.totals.values()) for choice in found)
    assert fastest(found, least - 1) is None
    best = fastest(found, least)
    assert best is not None
    assert min(best[0].totals.values()) == least
    roomy = fastest(found, 10**12)
    assert roomy is not None
    assert roomy[0] is found[0]
    assert roomy[1] == RECIPE.engine.max_tokens_per_chunk
    text = choices_section(found, machine(10**12))
    assert "fastest that fits: engine.deepspeed=zero1_fp32.json engine.gather=step" in text
    assert "none of these fits" in choices_section(found, machine(1))


@pytest.mark.slow
def test_change_that_would_fit_does(shape: ModelShape) -> None:
    least = min(min(c.totals.values()) for c in choices(RECIPE, shape, machine(1)))
    small = machine(int(least * 0.9))
    changes = smallest_changes(RECIPE, CONFIG, small)
    assert changes
    assert all("engine.deepspeed=" in change for change in changes)
    assert smallest_changes(RECIPE, CONFIG, machine(1)) == []
    # checkpointing is the smallest, where it is enough
    model = dataclasses.replace(RECIPE.model, gradient_checkpointing=True)
    saving = dataclasses.replace(RECIPE, model=model)
    enough = fastest(choices(saving, measure_model(CONFIG, saving), small), small.usable_bytes or 0)
    assert (enough is not None) == changes[0].startswith("model.gradient_checkpointing=true")


def test_words(shape: ModelShape) -> None:
    config = deepspeed_config(RECIPE, world_size=WORLD)
    plan = plan_memory(RECIPE, shape, deepspeed=config, world_size=WORLD)
    table = memory_table(plan, list(plan.phases))
    assert table.splitlines()[0].count("gather: ") == len(plan.phases)
    assert table.splitlines()[-2].split()[0] == "peak"
    disk = disk_section(RECIPE, plan, ranks_per_host=2)
    assert f"{RECIPE.checkpoint.keep} checkpoints kept and one being written" in disk
