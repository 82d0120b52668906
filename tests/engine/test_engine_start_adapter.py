"""The weights of an adapter's folder in a model: those that peft saved, or a message."""

from pathlib import Path
from typing import Any

import pytest
import torch
from peft import (
    LoraConfig,
    PeftModel,
    TrainableTokensConfig,
    get_peft_model,
    get_peft_model_state_dict,
)
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import AutoModel, AutoModelForCausalLM

from tests.support import tiny
from trainer.engine.start_adapter import load_adapter
from trainer.errors import RecipeError
from trainer.model.adapters import add_lora
from trainer.recipe.schema import LoraRecipe

LORA = LoraRecipe(rank=2, alpha=4, targets=("embed_tokens", "q_proj"), modules_to_save=("norm",))


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("base")
    config = tiny.qwen3_config(num_hidden_layers=2)
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    return folder


def saved(base: Path, folder: Path, kind: Any = AutoModel, **options: Any) -> dict[str, Tensor]:
    """An adapter of peft with random values, and its tensors by their names in files."""
    torch.manual_seed(1)
    config = LoraConfig(
        r=2,
        lora_alpha=4,
        target_modules=list(LORA.targets),
        modules_to_save=list(LORA.modules_to_save),
    )
    model = get_peft_model(kind.from_pretrained(base, dtype=torch.float32), config)
    for parameter in model.parameters():
        if parameter.requires_grad:
            nn.init.normal_(parameter)
    model.save_pretrained(str(folder), **options)
    return {
        name.replace(".model.model.", ".model."): value
        for name, value in get_peft_model_state_dict(model, save_embedding_layers=False).items()
    }


def fresh(base: Path, lora: LoraRecipe = LORA) -> PeftModel:
    return add_lora(AutoModel.from_pretrained(base, dtype=torch.float32), lora)


@pytest.mark.parametrize("kind", [AutoModel, AutoModelForCausalLM])
@pytest.mark.parametrize("with_base", [True, False])
def test_all_trained_weights_are_those_of_the_folder(
    base: Path, tmp_path: Path, kind: Any, with_base: bool
) -> None:
    # with the base's own embeddings, which peft saves where they are adapted, and without
    wanted = saved(base, tmp_path, kind, save_embedding_layers=with_base)
    names = load_file(tmp_path / "adapter_model.safetensors")
    assert any(".base_layer." in name for name in names) == with_base
    model = fresh(base)
    load_adapter(model, tmp_path)
    found = get_peft_model_state_dict(model, save_embedding_layers=False)
    assert found.keys() == wanted.keys()
    for name, value in wanted.items():
        assert torch.equal(found[name], value), name


@pytest.mark.parametrize(
    ("change", "lora", "message"),
    [
        ({}, {"rank": 4}, r"embed_tokens\.lora_embedding_A of shape \[2, 97\]; expected \[4, 97\]"),
        ({}, {"targets": ("q_proj",)}, r"also with embed_tokens\.lora_embedding_A \(2 such\); exp"),
        ({}, {"modules_to_save": ("norm", "layers.0.mlp.down_proj")},
         r"without layers\.0\.mlp\.down_proj\.weight \(1 such\); expected .*, 16 tensors"),
        ({"base_model.model.embed_tokens.base_layer.weight": torch.zeros(97, 32)}, {},
         r"embed_tokens\.base_layer\.weight = other values than in the base"),
    ],
)  # fmt: skip
def test_other_weights_than_the_recipes_adapters_have_are_named(
    base: Path, tmp_path: Path, change: dict[str, Tensor], lora: dict[str, Any], message: str
) -> None:
    saved(base, tmp_path, save_embedding_layers=False)
    file = tmp_path / "adapter_model.safetensors"
    save_file(load_file(file) | change, file)
    settings = {name: getattr(LORA, name) for name in ("rank", "alpha", "targets")}
    asked = LoraRecipe(**(settings | {"modules_to_save": LORA.modules_to_save} | lora))
    with pytest.raises(RecipeError, match=rf"adapter_model\.safetensors: .*{message}"):
        load_adapter(fresh(base, asked), tmp_path)


def test_tokens_that_a_tied_head_repeats_go_on(tmp_path: Path) -> None:
    config = tiny.qwen3_config(num_hidden_layers=1, tie_word_embeddings=True)
    AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path)
    tokens = TrainableTokensConfig(token_indices=[7, 2], task_type="CAUSAL_LM")
    model = get_peft_model(AutoModelForCausalLM.from_pretrained(tmp_path), tokens)
    for parameter in model.parameters():
        if parameter.requires_grad:
            nn.init.normal_(parameter)
    model.save_pretrained(str(tmp_path / "adapter"))
    file = tmp_path / "adapter" / "adapter_model.safetensors"
    rows, head = load_file(file), "base_model.model.lm_head.trainable_tokens_delta"
    assert len(rows) == 2
    started = fresh(tmp_path, LoraRecipe(targets=(), trainable_tokens=(7, 2)))
    load_adapter(started, tmp_path / "adapter")
    (found,) = (one for one in started.parameters() if one.requires_grad)
    assert torch.equal(found, rows[head])
    save_file(rows | {head: rows[head] + 1}, file)
    with pytest.raises(RecipeError, match=r"also with lm_head\.trainable_tokens_delta \(1 such\)"):
        load_adapter(started, tmp_path / "adapter")


def test_a_missing_or_damaged_file_is_named(base: Path, tmp_path: Path) -> None:
    model = fresh(base)
    with pytest.raises(RecipeError, match=r"adapter_model\.safetensors: content = not readable"):
        load_adapter(model, tmp_path)
    (tmp_path / "adapter_model.safetensors").write_bytes(b"no such thing")
    with pytest.raises(RecipeError, match=r"adapter_model\.safetensors: content = not readable"):
        load_adapter(model, tmp_path)
