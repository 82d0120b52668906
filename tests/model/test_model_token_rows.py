"""Trained tokens: what is looked up row by row is what peft computes with the whole table."""

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from peft.tuners.trainable_tokens import TrainableTokensLayer
from torch import Tensor, nn
from transformers import AutoModel, Gemma3TextConfig

from tests.engine.test_engine_adapters import gpt2_config, on_meta
from tests.support import tiny
from trainer.errors import RecipeError
from trainer.model.adapters import add_lora, check_targets
from trainer.model.token_rows import TokenRows, with_placeholders
from trainer.recipe.schema import LoraRecipe

TOKENS = (5, 96, 1)
BESIDE = LoraRecipe(rank=4, trainable_tokens=TOKENS)
ALONE = LoraRecipe(targets=(), trainable_tokens=TOKENS)
IDS = torch.tensor([[5, 7, 5, 96], [2, 3, 4, 1]])


def gemma_config() -> Gemma3TextConfig:
    """Embeddings that are multiplied by the root of their size."""
    return Gemma3TextConfig(
        vocab_size=tiny.VOCABULARY,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=8,
        max_position_embeddings=64,
    )


CONFIGS = {
    "qwen3": tiny.qwen3_config, "gpt2": gpt2_config, "bert": tiny.bert_config,
    "gemma": gemma_config,
}  # fmt: skip


def states_and_gradients(model: nn.Module) -> tuple[Tensor, dict[str, Tensor]]:
    model.zero_grad()
    states: Tensor = model(input_ids=IDS).last_hidden_state
    states.square().sum().backward()
    return states.detach(), {n: p.grad for n, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("lora", [BESIDE, ALONE], ids=["beside adapters", "alone"])
@pytest.mark.parametrize("name", CONFIGS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
def test_states_and_gradients_are_those_of_peft(
    name: str, lora: LoraRecipe, dtype: torch.dtype
) -> None:
    torch.manual_seed(0)
    model = add_lora(AutoModel.from_config(CONFIGS[name](), dtype=dtype).eval(), lora)
    (layer,) = [one for one in model.modules() if isinstance(one, TrainableTokensLayer)]
    assert type(layer) is TokenRows
    row_RH = layer.trainable_tokens_delta["default"]
    # trained in float32 whatever the base's dtype; they start as the base's
    assert row_RH.dtype == torch.float32
    assert torch.equal(row_RH.detach(), layer.get_base_layer().weight[list(TOKENS)].float())
    with torch.no_grad():
        row_RH += torch.randn_like(row_RH)
    own = states_and_gradients(model)
    theirs = copy.deepcopy(model)
    for one in theirs.modules():
        if type(one) is TokenRows:
            one.__class__ = TrainableTokensLayer
    states, gradients = states_and_gradients(theirs)
    assert torch.equal(own[0], states)
    assert own[1].keys() == gradients.keys()
    assert any("trainable_tokens_delta" in one for one in gradients)
    rtol = 1e-5 if dtype == torch.float32 else 2e-2
    for parameter, gradient in gradients.items():
        scale = float(gradient.abs().max())
        torch.testing.assert_close(own[1][parameter], gradient, rtol=rtol, atol=rtol * scale)


def test_without_its_adapter_the_table_is_that_of_the_base() -> None:
    torch.manual_seed(0)
    base = AutoModel.from_config(tiny.qwen3_config()).eval()
    with torch.no_grad():
        wanted = base(input_ids=IDS).last_hidden_state
        model = add_lora(base, ALONE)
        (layer,) = [one for one in model.modules() if isinstance(one, TokenRows)]
        layer.trainable_tokens_delta["default"] += 1
        assert not torch.equal(model(input_ids=IDS).last_hidden_state, wanted)
        with model.disable_adapter():
            assert torch.equal(model(input_ids=IDS).last_hidden_state, wanted)


@pytest.mark.parametrize(
    ("config", "lora", "message"),
    [
        (tiny.qwen3_config, {"trainable_tokens": (5, 97)},
         r"trainable_tokens = 97 \(id 97\); expected ids of 0 to 96, the rows of the model's"),
        (tiny.qwen3_config, {"trainable_tokens": (-1,)}, r"= -1 \(id -1\); expected ids of 0 to"),
        (tiny.bert_config, {"trainable_tokens": (0,)},
         r"trainable_tokens = 0 \(id 0\); expected tokens whose rows get gradients: this is pad"),
        (tiny.qwen3_config, {"targets": ("embed_tokens",), "trainable_tokens": (5, "x")},
         r"trainable_tokens = 5, x; expected none beside model\.lora\.targets, which train embed"),
        (tiny.bert_config, {"modules_to_save": ("embeddings",), "trainable_tokens": (5,)},
         r"none beside model\.lora\.modules_to_save, which train embeddings\.word_embeddings alr"),
    ],
)  # fmt: skip
def test_tokens_that_cannot_be_trained_are_named(
    config: Callable[[], Any], lora: dict[str, Any], message: str
) -> None:
    with pytest.raises(RecipeError, match=message):
        check_targets(on_meta(config()), LoraRecipe(**lora))


def test_a_model_without_embeddings_trains_no_tokens() -> None:
    with pytest.raises(RecipeError, match=r"expected none, as the model has no table of embed"):
        check_targets(nn.Linear(2, 2), LoraRecipe(trainable_tokens=(1,)))


def test_texts_stand_for_some_rows_where_sizes_are_measured() -> None:
    measured = with_placeholders(
        LoraRecipe(trainable_tokens=("a", 1, "b")), on_meta(tiny.bert_config())
    )
    # 0 is padding
    assert measured.trainable_tokens == (2, 1, 3)
