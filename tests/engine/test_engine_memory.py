"""The memory plan adds up: sharded by stage and ranks, moved by offloading, small for adapters."""

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModel

from tests.support.tiny import bert_config, qwen3_config
from trainer.engine.memory import (
    RESERVED_BYTES,
    MemoryPlan,
    ModelShape,
    device_memory,
    measure_model,
    plan_memory,
    step_tokens,
    usable,
)
from trainer.recipe.deepspeed_file import CONFIG_FOLDER
from trainer.recipe.load import load_recipe
from trainer.recipe.resolve import deepspeed_config
from trainer.recipe.schema import LoraRecipe

RECIPE = CONFIG_FOLDER.parent / "recipes" / "qwen7b.yaml"
SHAPE = ModelShape(
    num_parameters=7_000_000_000,
    num_trainable=7_000_000_000,
    layer_parameters=500_000_000,
    num_layers=28,
    hidden_size=3584,
    is_layered=True,
    layer_elements=110_000,
)


def plan(
    *overrides: str, world_size: int = 8, shape: ModelShape = SHAPE, **settings: Any
) -> MemoryPlan:
    recipe = load_recipe(RECIPE, overrides)
    config = deepspeed_config(recipe, world_size=world_size)
    return plan_memory(recipe, shape, deepspeed=config, world_size=world_size, **settings)


def test_counts_equal_those_of_the_real_model() -> None:
    config = qwen3_config()
    model = AutoModel.from_config(config)
    shape = measure_model(config, None)
    assert shape.num_parameters == sum(p.numel() for p in model.parameters())
    assert shape.num_trainable == shape.num_parameters
    assert shape.num_layers == config.num_hidden_layers
    layer = sum(p.numel() for p in model.layers[0].parameters())
    assert shape.layer_parameters == max(layer, model.embed_tokens.weight.numel())
    assert measure_model(bert_config(), None).num_layers == 2


@pytest.mark.parametrize("targets", ["all-linear", ("q_proj", "v_proj")])
@pytest.mark.parametrize("dora", [False, True])
def test_adapter_counts_equal_those_of_peft(targets: Any, dora: bool) -> None:
    from peft import LoraConfig, get_peft_model

    lora = LoraRecipe(rank=3, targets=targets, dora=dora)
    chosen = targets if isinstance(targets, str) else list(targets)
    config = qwen3_config()
    with torch.device("meta"):
        model = AutoModel.from_config(config)
    adapted = get_peft_model(model, LoraConfig(r=3, target_modules=chosen, use_dora=dora))
    shape = measure_model(config, lora)
    assert shape.num_trainable == sum(p.numel() for p in adapted.parameters() if p.requires_grad)
    assert shape.num_parameters == sum(p.numel() for p in adapted.parameters())


def test_stage_3_shards_everything() -> None:
    parts = plan(world_size=8).parts["chunk"]
    assert parts["parameters"] == 7_000_000_000 * 2 // 8
    assert parts["gradients"] == 7_000_000_000 * 4 // 8
    assert parts["optimizer state"] == 7_000_000_000 * 12 // 8


@pytest.mark.parametrize(
    ("name", "parameters", "gradients", "optimizer"),
    [("zero1_bf16", 2, 4, 1.5), ("zero2_bf16", 2, 0.5, 1.5), ("zero3_bf16", 0.25, 0.5, 1.5)],
)
def test_stages(name: str, parameters: float, gradients: float, optimizer: float) -> None:
    parts = plan(f"engine.deepspeed={name}.json", world_size=8).parts["step"]
    sizes = [parts[part] / 7e9 for part in ("parameters", "gradients", "optimizer state")]
    assert sizes == [parameters, gradients, optimizer]  # bytes per parameter on each of 8 ranks


def test_offloading_moves_bytes_to_the_host() -> None:
    held = plan()
    moved = plan("engine.deepspeed=zero3_offload_bf16.json")
    parts = ("parameters", "gradients", "optimizer state")
    assert moved.host_bytes == sum(held.parts["step"][part] for part in parts)
    assert not any(moved.parts["step"][part] for part in parts)


def test_adapters_need_little_besides_the_weights() -> None:
    shape = dataclasses.replace(SHAPE, num_trainable=80_000_000)
    parts = plan(shape=shape).parts["step"]
    assert parts["gathered parameters"] == 14_000_000_000
    assert parts["gradients"] + parts["optimizer state"] + parts["gathered gradients"] < 500e6


def test_checkpointing_saves_activations() -> None:
    without = plan("model.gradient_checkpointing=false").parts["step"]["activations"]
    assert plan().parts["step"]["activations"] < without / 5


def test_tokens_of_a_step() -> None:
    recipe = load_recipe(RECIPE, ["tasks.ir.negatives=2", "tasks.ir.positives=3"])
    assert step_tokens(recipe) == {"ir": 1024 * (128 + 5 * 512), "sts": 512 * 2 * 128}


def test_choice_is_the_fastest_that_fits() -> None:
    totals = {way: plan().total(way) for way in plan().parts}
    assert totals["interleaved"] < totals["chunk"] < totals["step"]
    for way, total in totals.items():
        assert plan(usable_bytes=total).gather == way
        assert plan(usable_bytes=total).fits
    tight = plan(usable_bytes=totals["interleaved"] - 1)
    assert tight.gather == "interleaved"
    assert not tight.fits
    assert plan(usable_bytes=None).gather == "step"
    assert plan(usable_bytes=None).fits


def test_slower_way_is_not_taken_where_it_needs_more() -> None:
    # adapters need no gradients of the whole, so states between layers can outweigh the weights
    adapters = dataclasses.replace(SHAPE, num_trainable=80_000_000)
    step = plan(shape=adapters).total("step")
    assert plan(shape=adapters).total("chunk") > step
    assert plan(shape=adapters, usable_bytes=step - 1).gather == "interleaved"


def test_encoders_do_not_run_layer_by_layer() -> None:
    shape = measure_model(bert_config(), None)
    assert list(plan(shape=shape).parts) == ["step", "interleaved"]
    assert "chunk" in plan(shape=measure_model(qwen3_config(), None)).parts


def test_memory_of_this_machine() -> None:
    assert usable(80 * 10**9) == 80 * 10**9 - RESERVED_BYTES
    whole, half = device_memory(1), device_memory(2)
    if not torch.cuda.is_available() and whole is not None and half is not None:
        assert half == pytest.approx(whole / 2, rel=0.2)  # others allocate between the two calls


def test_plan_reads_no_weights(tmp_path: Path) -> None:
    config = qwen3_config(hidden_size=8192, num_hidden_layers=80, intermediate_size=28672)
    shape = measure_model(config, None)
    assert shape.num_parameters > 50e9  # would be 200 GB in float32
