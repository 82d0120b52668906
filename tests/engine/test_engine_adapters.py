"""Adapters on GPT-2's modules, embeddings, whole modules and upper layers; trained tokens; DoRA.

Every way to run a step gives what one plain process gives, with the tolerance of
`test_engine_equality`. One launch of two ranks tells it of all.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModel, GPT2Config

from tests.engine.test_engine_equality import Variant, check, plain_reference, run_all
from tests.support import tiny
from tests.support.ranks import run_ranks
from trainer.errors import RecipeError
from trainer.memory.shapes import measure_model
from trainer.model.adapters import add_lora, check_targets
from trainer.recipe.schema import LoraRecipe, ModelRecipe

STEP, LAYER = Variant("step", max_tokens=16), Variant("layer", gather="layer")
CHUNK, ZERO1 = Variant("chunk", gather="chunk"), Variant("zero1", deepspeed="zero1_fp32.json")
ZERO2 = Variant("zero2", deepspeed="zero2_fp32.json", checkpointing=True, max_tokens=16)
TOKENS = (40, 5, 3)


def gpt2_config() -> GPT2Config:
    """Two layers of 32, without dropout."""
    return GPT2Config(
        vocab_size=tiny.VOCABULARY,
        n_positions=64,
        n_embd=32,
        n_layer=2,
        n_head=4,
        resid_pdrop=0.0,
        embd_pdrop=0.0,
        attn_pdrop=0.0,
        initializer_range=0.15,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
    )


@dataclass(frozen=True)
class Kind:
    """Adapters of one kind, and the ways they are trained in."""

    config: Callable[[], Any]
    lora: LoraRecipe
    ways: tuple[Variant, ...]


KINDS = {
    "conv1d": Kind(gpt2_config, LoraRecipe(rank=4, alpha=8, dropout=0.1), (STEP, CHUNK, ZERO1)),
    "embedding": Kind(
        tiny.qwen3_config,
        LoraRecipe(rank=4, alpha=8, targets=("embed_tokens", "down_proj")),
        (STEP, LAYER, CHUNK, ZERO1),
    ),
    "whole": Kind(
        tiny.qwen3_config,
        LoraRecipe(rank=4, alpha=8, targets=("v_proj",), modules_to_save=("norm", "embed_tokens")),
        (STEP, LAYER, CHUNK, ZERO1),
    ),
    "upper": Kind(
        tiny.qwen3_config,
        LoraRecipe(rank=4, alpha=8, targets=("layers.2.self_attn.q_proj", "layers.3.mlp.up_proj")),
        (STEP, LAYER, CHUNK),
    ),
    "tokens": Kind(
        tiny.qwen3_config,
        LoraRecipe(rank=4, alpha=8, dropout=0.1, targets=("q_proj",), trainable_tokens=TOKENS),
        (STEP, LAYER, CHUNK, ZERO1, ZERO2),
    ),
    "tokens alone": Kind(
        gpt2_config, LoraRecipe(targets=(), trainable_tokens=TOKENS), (STEP, CHUNK, ZERO1)
    ),
    "dora conv1d": Kind(gpt2_config, LoraRecipe(rank=4, alpha=8, dora=True), (STEP, CHUNK, ZERO1)),
    "dora embedding": Kind(
        tiny.qwen3_config,
        LoraRecipe(rank=4, alpha=8, dora=True, targets=("embed_tokens", "down_proj")),
        (STEP, LAYER, CHUNK, ZERO2),
    ),
}


def body(rank: int, world_size: int, folder: Path) -> dict[str, Any]:
    """Three steps of each kind in each of its ways."""
    return {
        name: run_all(rank, world_size, folder / name, list(kind.ways), kind.lora)
        for name, kind in KINDS.items()
    }


def references(rank: int, world_size: int, folder: Path) -> dict[str, Any]:
    """The same by one plain process."""
    return {
        name: plain_reference(rank, world_size, folder / name, kind.lora)
        for name, kind in KINDS.items()
    }


@pytest.fixture(scope="module")
def told(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp("models")
    for name, kind in KINDS.items():
        tiny.save_model(kind.config(), folder / name)
    (reference,) = run_ranks(references, 1, folder, timeout_sec=120)
    return {"reference": reference, "ranks": run_ranks(body, 2, folder, timeout_sec=400)}


@pytest.mark.slow
@pytest.mark.dist
@pytest.mark.parametrize("name", KINDS)
def test_steps_are_those_of_one_plain_process(told: dict[str, Any], name: str) -> None:
    reference = told["reference"][name]
    moved = {
        parameter
        for parameter, start in reference["start"].items()
        if not torch.equal(start, reference["final"][parameter])
    }
    trained = {
        "whole": ("lora_", "modules_to_save"),
        "tokens": ("lora_", "trainable_tokens_delta"),
        "tokens alone": ("trainable_tokens_delta",),
        "dora conv1d": ("lora_", "lora_magnitude_vector"),
        "dora embedding": ("lora_", "lora_embedding", "lora_magnitude_vector"),
    }
    parts = trained.get(name, ("lora_",))
    assert all(any(part in one for part in parts) for one in moved)
    assert all(any(part in one for one in moved) for part in parts)
    check([rank[name] for rank in told["ranks"]], reference)


def on_meta(config: Any) -> torch.nn.Module:
    with torch.device("meta"):
        return AutoModel.from_config(config)


def test_what_is_adapted_of_each_kind() -> None:
    gpt2 = add_lora(on_meta(gpt2_config()), LoraRecipe())
    assert sum("lora_A" in name for name, _ in gpt2.named_parameters()) == 2 * 4
    assert gpt2.peft_config["default"].fan_in_fan_out
    bert = add_lora(on_meta(tiny.bert_config()), LoraRecipe(targets=("dense",)))
    adapted = [name for name, _ in bert.named_parameters() if "lora_A" in name]
    assert len(adapted) == 2 * 3
    assert not any("pooler" in name for name in adapted)
    everything = add_lora(on_meta(tiny.bert_config()), LoraRecipe())
    assert not any("pooler" in n for n, p in everything.named_parameters() if p.requires_grad)


@pytest.mark.parametrize(
    ("config", "lora", "message"),
    [
        (tiny.bert_config, {"targets": ("pooler.dense",)}, r"targets = pooler\.dense; expected mod"
         r"ules that the vector passes through: it is taken before pooler\. Remove it"),
        (tiny.qwen3_config, {"modules_to_save": ("nrom",)},
         r"modules_to_save = nrom \(matches nothing with weights\); expected ends of .* norm,"),
        (tiny.bert_config, {"modules_to_save": ("pooler",)}, r"modules_to_save = pooler \(matches"),
        (tiny.qwen3_config, {"modules_to_save": ("mlp",)},
         r"modules_to_save = mlp; expected modules without an adapter: layers\.0\.mlp\.gate_proj"),
        (tiny.qwen3_config, {"targets": ("embed_tokens",), "modules_to_save": ("layers",)},
         r"modules_to_save = layers \(a list of modules\); expected modules that are called"),
    ],
)  # fmt: skip
def test_what_cannot_be_trained_is_named(
    config: Callable[[], Any], lora: dict[str, Any], message: str
) -> None:
    with pytest.raises(RecipeError, match=message):
        check_targets(on_meta(config()), LoraRecipe(**lora))


def test_the_memory_plan_counts_what_is_trained() -> None:
    for kind in KINDS.values():
        made = add_lora(on_meta(kind.config()), kind.lora)
        recipe = tiny.make_recipe(Path("unused"), model=ModelRecipe(path="x", lora=kind.lora))
        shape = measure_model(kind.config(), recipe)
        trained = sum(p.numel() for p in made.parameters() if p.requires_grad)
        assert shape.num_trainable == trained
        assert shape.num_parameters == sum(p.numel() for p in made.parameters())
        has_table = "embed_tokens" in kind.lora.modules_to_save
        assert shape.embedding_trained == has_table
