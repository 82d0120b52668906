"""The memory plan adds up: sharded by stage and ranks, moved by offloading, small for adapters."""

import dataclasses
from collections import Counter
from typing import Any

import pytest
import torch
from transformers import AutoModel, Qwen3MoeConfig

from tests.support.tiny import bert_config, make_recipe, qwen3_config
from trainer.engine.out_of_memory import largest_chunk
from trainer.memory.estimate import MemoryPlan, plan_memory
from trainer.memory.shapes import LinearBytes, ModelShape, PlanError, measure_model
from trainer.memory.workload import TEACHER_COPIES, VECTOR_COPIES, loss_bytes, step_tokens
from trainer.recipe.deepspeed_file import CONFIG_FOLDER
from trainer.recipe.embedding_distillation import EmbeddingDistillationRecipe
from trainer.recipe.ir import IrRecipe
from trainer.recipe.load import load_recipe
from trainer.recipe.resolve import deepspeed_config, uses_middle_layer
from trainer.recipe.schema import (
    DataRecipe,
    LoraRecipe,
    ModelRecipe,
    ProjectionRecipe,
    Recipe,
    SourceRecipe,
)
from trainer.recipe.sts import StsRecipe

RECIPE = CONFIG_FOLDER.parent / "recipes" / "qwen7b.yaml"
SHAPE = ModelShape(
    num_parameters=7_000_000_000,
    num_trainable=7_000_000_000,
    numels=Counter({7_000_000: 1000}),
    layer_parameters=230_000_000,
    layer_trainable=230_000_000,
    embedding_parameters=500_000_000,
    embedding_trained=True,
    num_layers=28,
    hidden_size=3584,
    vector_size=3584,
    is_layered=True,
    graph=LinearBytes(fixed=0, per_token=200_000),
    backward=LinearBytes(fixed=400_000_000, per_token=200_000),
    layer=LinearBytes(fixed=400_000_000, per_token=220_000),
    layer_graph=LinearBytes(fixed=0, per_token=170_000),
)
ADAPTERS = dataclasses.replace(
    SHAPE, num_trainable=80_000_000, layer_trainable=2_500_000, embedding_trained=False
)
WORLD = 8


def plan(*overrides: str, shape: ModelShape = SHAPE, **settings: Any) -> MemoryPlan:
    recipe = load_recipe(RECIPE, overrides)
    config = deepspeed_config(recipe, world_size=WORLD)
    return plan_memory(recipe, shape, deepspeed=config, world_size=WORLD, **settings)


def tiny_recipe(model: ModelRecipe) -> Recipe:
    return make_recipe(CONFIG_FOLDER, model=model)


def test_counts_equal_those_of_the_real_model() -> None:
    config = qwen3_config()
    model = AutoModel.from_config(config)
    shape = measure_model(config, tiny_recipe(ModelRecipe(path="x")))
    assert shape.num_parameters == sum(p.numel() for p in model.parameters())
    assert shape.num_trainable == shape.num_parameters
    assert shape.num_layers == config.num_hidden_layers
    assert shape.layer_parameters == sum(p.numel() for p in model.layers[0].parameters())
    assert shape.embedding_parameters == model.embed_tokens.weight.numel()
    assert sum(size * n for size, n in shape.numels.items()) == shape.num_parameters


@pytest.mark.parametrize("lora", [None, LoraRecipe(rank=3)])
def test_a_projection_is_counted_as_trained(lora: LoraRecipe | None) -> None:
    config, model = qwen3_config(), ModelRecipe(path="x", lora=lora)
    plain = measure_model(config, tiny_recipe(model))
    projection = ProjectionRecipe(size=24, bias=True)
    found = measure_model(config, tiny_recipe(dataclasses.replace(model, projection=projection)))
    more = 24 * config.hidden_size + 24
    assert found.num_parameters == plain.num_parameters + more
    assert found.num_trainable == plain.num_trainable + more
    assert found.numels[24] == plain.numels.get(24, 0) + 1
    assert (plain.vector_size, found.vector_size) == (config.hidden_size, 24)


@pytest.mark.parametrize("projection", [None, ProjectionRecipe(size=24)])
def test_a_layer_to_a_teachers_size_is_trained_and_not_exported(
    projection: ProjectionRecipe | None,
) -> None:
    config = qwen3_config()
    recipe = tiny_recipe(ModelRecipe(path="x", projection=projection))
    taught = EmbeddingDistillationRecipe(projection=True)
    section: Any = dataclasses.replace(recipe.tasks["ir"], embedding_distillation=taught)  # type: ignore[type-var]
    sources = tuple(
        dataclasses.replace(one, teacher_embeddings="t" if one.task == "ir" else None)
        for one in recipe.data.sources
    )
    data = dataclasses.replace(recipe.data, sources=sources)
    layered = dataclasses.replace(recipe, data=data, tasks={**recipe.tasks, "ir": section})
    plain = measure_model(config, recipe)
    found = measure_model(config, layered, teacher_size=40)
    more = 40 * plain.vector_size
    assert found.num_parameters == plain.num_parameters + more
    assert found.num_trainable == plain.num_trainable + more
    assert found.numels[more] == plain.numels.get(more, 0) + 1
    deepspeed = deepspeed_config(recipe, world_size=2)
    plans = [
        plan_memory(one, shape, deepspeed=deepspeed, world_size=2)
        for one, shape in ((recipe, plain), (layered, found))
    ]
    assert plans[0].export_bytes == plans[1].export_bytes
    # SGD: master weights alone, and at stage 3 no others
    assert plans[1].checkpoint_bytes == plans[0].checkpoint_bytes + 4 * more
    # 8 queries with 2 positives and a negative each
    texts = 8 * 4
    vectors = VECTOR_COPIES * 4 * texts * 40 + TEACHER_COPIES * 4 * texts // 2 * 40
    without = {"ir": recipe.tasks["ir"]}, {"ir": section}
    totals = [
        loss_bytes(dataclasses.replace(layered, data=only_ir(data), tasks=tasks), found,
                   world_size=2)
        for tasks in without
    ]  # fmt: skip
    assert totals[1] - totals[0] == vectors


def only_ir(data: DataRecipe) -> DataRecipe:
    sources = tuple(one for one in data.sources if one.task == "ir")
    return dataclasses.replace(data, sources=sources)


@pytest.mark.parametrize("targets", ["all-linear", ("q_proj", "v_proj")])
def test_adapters_are_counted(targets: Any) -> None:
    lora = LoraRecipe(rank=3, targets=targets)
    config = qwen3_config()
    with torch.device("meta"):
        model = AutoModel.from_config(config)
    linears = {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, torch.nn.Linear)
        and (targets == "all-linear" or name.rsplit(".", 1)[-1] in targets)
    }
    trained = sum(3 * (linear.in_features + linear.out_features) for linear in linears.values())
    shape = measure_model(config, tiny_recipe(ModelRecipe(path="x", lora=lora)))
    assert shape.num_trainable == trained
    assert not shape.embedding_trained


def test_graph_of_a_chunk_grows_with_layers_and_tokens() -> None:
    recipe = tiny_recipe(ModelRecipe(path="x"))
    four, eight = (
        measure_model(qwen3_config(num_hidden_layers=n), recipe).graph.per_token for n in (4, 8)
    )
    # embeddings, final norm and pooling do not repeat
    assert 1.8 < eight / four < 2.4


def test_checkpointing_keeps_a_state_for_each_layer() -> None:
    config = qwen3_config(num_hidden_layers=8, hidden_size=64, intermediate_size=256)
    plain = measure_model(config, tiny_recipe(ModelRecipe(path="x")))
    saved = measure_model(config, tiny_recipe(ModelRecipe(path="x", gradient_checkpointing=True)))
    assert saved.graph.per_token < plain.graph.per_token / 5
    assert saved.graph.per_token >= 8 * 64 * 4
    # what is not kept is computed again, a layer at a time
    assert saved.backward.per_token > plain.backward.per_token
    assert saved.layer == plain.layer


def test_encoders_do_not_run_layer_by_layer() -> None:
    shape = measure_model(
        bert_config(), tiny_recipe(ModelRecipe(path="x", pooling="mean", attention="bidirectional"))
    )
    assert shape.graph.per_token > 0
    assert list(plan(shape=shape).phases) == ["step", "chunk"]
    assert "layer" in plan().phases


def test_backbone_that_needs_numbers_is_told() -> None:
    experts = Qwen3MoeConfig(
        hidden_size=32,
        intermediate_size=48,
        moe_intermediate_size=16,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        vocab_size=97,
        num_experts=4,
    )
    with pytest.raises(PlanError, match="model type = qwen3_moe; expected one that runs on"):
        measure_model(experts, tiny_recipe(ModelRecipe(path="x")))


def test_stage_3_shards_everything() -> None:
    parts = plan().parts("layer")
    assert parts["parameters"] == 7_000_000_000 * 2 // WORLD
    for part in ("gradients", "masters"):
        assert parts[part] == 7_000_000_000 * 4 // WORLD
    assert parts["optimizer state"] == 7_000_000_000 * 8 // WORLD


@pytest.mark.parametrize(("stage", "share"), [("zero1", 1), ("zero2", 1), ("zero3", 1 / WORLD)])
def test_stages(stage: str, share: float) -> None:
    parts = plan(f"engine.deepspeed={stage}_bf16.json").parts("step")
    assert parts["parameters"] == 7e9 * 2 * share
    assert parts["masters"] + parts["optimizer state"] == 7e9 * 12 / WORLD
    assert parts["step's gradients"] == 7e9 * 4
    assert parts["gathered parameters"] == (7e9 * 2 if stage == "zero3" else 0)


def test_offloading_moves_bytes_to_the_host() -> None:
    held = plan().parts("layer")
    moved = plan("engine.deepspeed=zero3_offload_bf16.json")
    offloaded = ("parameters", "gradients", "masters", "optimizer state")
    assert {part: moved.host[part] for part in offloaded} == {p: held[p] for p in offloaded}
    # the optimizer on the host has a gradient of its own
    assert sum(moved.host.values()) == sum(held[part] for part in (*offloaded, "masters"))
    assert not set(offloaded) & set(moved.parts("step"))
    assert moved.total("layer") < plan().total("layer")


def test_adapters_need_little_besides_the_weights() -> None:
    parts = plan(shape=ADAPTERS).parts("step")
    assert parts["gathered parameters"] == 14_000_000_000
    trained = ("gradients", "masters", "optimizer state", "step's gradients")
    assert sum(parts[part] for part in trained) < 500e6


def test_peak_is_that_of_the_largest_phase() -> None:
    whole = plan()
    for way, phases in whole.phases.items():
        totals = {name: sum(parts.values()) for name, parts in phases.items()}
        assert whole.total(way) == max(totals.values())
        assert totals[whole.peak_phase(way)] == whole.total(way)
        assert {"update"} < set(totals)


def test_larger_chunks_need_more() -> None:
    totals = [
        plan(f"engine.max_tokens_per_chunk={budget}").total("step")
        for budget in (4096, 16384, 65536)
    ]
    assert totals == sorted(set(totals))


def test_a_lone_chunk_has_no_gradients_to_add_to() -> None:
    small = ("tasks.ir.global_batch_size=8", "tasks.sts.global_batch_size=8")
    one = plan(*small, "engine.max_tokens_per_chunk=2000")
    assert "later chunks" not in one.phases["step"]
    assert "later chunks" in plan().phases["step"]


def test_gathered_layers_follow_the_ds_config() -> None:
    near = plan("engine.deepspeed=zero3_offload_bf16.json").parts("layer")["gathered parameters"]
    far = plan().parts("layer")["gathered parameters"]
    # half a billion parameters are kept between their last use forth and their first one back
    assert far - near == 2 * 500_000_000


def test_a_cpu_gives_pages_as_they_are_written() -> None:
    few = dataclasses.replace(ADAPTERS, num_trainable=20_000_000)
    gpu, cpu = plan(shape=few), plan(shape=few, on_gpu=False)
    assert gpu.parts("step")["buckets"] == 4 * 50_000_000
    assert cpu.parts("step")["buckets"] == 4 * 20_000_000


def test_tokens_of_a_step() -> None:
    recipe = load_recipe(RECIPE, ["tasks.ir.negatives=2", "tasks.ir.positives=3"])
    assert step_tokens(recipe) == {"ir": 1024 * (128 + 5 * 512), "sts": 512 * 2 * 128}


def test_choice_is_the_fastest_that_fits() -> None:
    totals = {way: plan().total(way) for way in plan().phases}
    assert totals["chunk"] < totals["layer"] < totals["step"]
    for way, total in totals.items():
        assert plan(usable_bytes=total).gather == way
        assert plan(usable_bytes=total).fits
    tight = plan(usable_bytes=totals["chunk"] - 1)
    assert tight.gather == "chunk"
    assert not tight.fits
    assert plan(usable_bytes=None).gather == "step"
    assert plan(usable_bytes=None).fits


@pytest.mark.parametrize("way", ["step", "layer", "chunk"])
def test_auto_keeps_graphs_up_to_its_share_of_the_memory(way: Any) -> None:
    least, chunk = plan(), plan().kept["step"]
    tokens = step_tokens(load_recipe(RECIPE, [])).values()
    roomy = plan(usable_bytes=10**15)
    assert roomy.kept[way] == max(tokens) // WORLD < sum(tokens)
    for fraction in (0.5, 0.9):
        # of a chunk, graphs take 3.3 GB, or 78 GB layer by layer, and sums of gradients 14 GB
        more = {"step": 12, "layer": 200, "chunk": 25}[way] * 10**9
        room = round((least.total(way) + more) / fraction)
        found = plan(f"engine.memory_fraction={fraction}", usable_bytes=room)
        assert chunk < found.kept[way] < roomy.kept[way]
        assert found.kept[way] % chunk == 0
        assert found.fits_in(way, fraction)
        for more, fits in ((0, True), (chunk, False)):
            given = f"engine.keep_graph_tokens={found.kept[way] + more}"
            assert plan(given, usable_bytes=room).fits_in(way, fraction) is fits
    # no room: what costs no memory, as where the memory is not known
    free = 0 if way == "layer" else chunk
    assert least.kept[way] == free
    assert plan(usable_bytes=10**9).kept[way] == free
    assert plan("engine.keep_graph_tokens=null", usable_bytes=10**15).kept[way] == free
    assert not least.fits_in(way, 1.0)


def test_chunks_that_go_back_together_hold_a_sum_of_gradients() -> None:
    chunk = plan().kept["step"]
    one, two = (plan(f"engine.keep_graph_tokens={n * chunk}") for n in (1, 2))
    # bfloat16
    sums = 2 * SHAPE.num_trainable
    assert two.total("chunk") - one.total("chunk") == SHAPE.graph(chunk) + sums
    kept = two.total("layer") - one.total("layer")
    assert kept == SHAPE.num_layers * SHAPE.layer_graph(chunk)


def test_slower_way_is_not_taken_where_it_needs_more() -> None:
    # adapters need no gradients of the whole, so states between layers can outweigh the weights
    step = plan(shape=ADAPTERS).total("step")
    assert plan(shape=ADAPTERS).total("layer") > step
    assert plan(shape=ADAPTERS, usable_bytes=step - 1).gather == "chunk"


@pytest.mark.parametrize("task", ["ir", "sts"])
def test_task_without_a_source_costs_nothing(task: Any) -> None:
    source = SourceRecipe(name="only", task=task, path="unused")
    data = DataRecipe(sources=(source,), query_max_tokens=16, passage_max_tokens=40)
    # the other task would need far more
    both = {
        "ir": IrRecipe(global_batch_size=8 if task == "ir" else 4096),
        "sts": StsRecipe(global_batch_size=8 if task == "sts" else 4096),
    }
    alone = {task: both[task]}
    tasks = (both, alone)
    recipes = [make_recipe(CONFIG_FOLDER, data=data, tasks=one) for one in tasks]
    config = deepspeed_config(recipes[0], world_size=2)
    shapes = [measure_model(qwen3_config(), recipe) for recipe in recipes]
    assert shapes[0] == shapes[1]
    plans = [plan_memory(r, shapes[0], deepspeed=config, world_size=2) for r in recipes]
    assert plans[0] == plans[1]
    chunks = [
        largest_chunk(recipe, world_size=2, max_positions=999, keep_graph_tokens=64)
        for recipe in recipes
    ]
    assert chunks[0] == chunks[1]
    assert chunks[0].text_tokens == (40 if task == "ir" else 16)
    assert uses_middle_layer(recipes[0]) is (task == "sts")


def test_plan_reads_no_weights() -> None:
    config = qwen3_config(hidden_size=8192, num_hidden_layers=80, intermediate_size=28672)
    shape = measure_model(config, tiny_recipe(ModelRecipe(path="x")))
    assert shape.num_parameters > 50e9  # would be 200 GB in float32
