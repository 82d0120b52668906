"""Models that cannot embed texts as the recipe says are refused before their weights are read."""

import json
import logging
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from transformers import PretrainedConfig

from tests.support import tiny
from tests.support.corpus import make_workspace
from trainer.cli import parse_arguments
from trainer.errors import RecipeError
from trainer.model.backbone import attention_kernel, check_backbone, load_backbone, load_config
from trainer.model.kinds import kind_of, skeleton_of
from trainer.preflight.dry_run import dry_run
from trainer.recipe.load import load_recipe
from trainer.recipe.schema import EngineRecipe, ModelRecipe

SMALL: dict[str, Any] = {
    "vocab_size": 97, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2,
    "num_attention_heads": 4, "max_position_embeddings": 600, "pad_token_id": 0,
    "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip
TWO = {"num_key_value_heads": 2, "head_dim": 8}
ENCODERS: dict[str, dict[str, Any]] = {
    "Bert": {}, "Roberta": {}, "XLMRoberta": {}, "Electra": {}, "DebertaV2": {}, "MPNet": {},
    "Albert": {}, "EuroBert": TWO, "NomicBert": {}, "BigBird": {}, "MegatronBert": {},
    "DebertaV2 with a convolution": {"conv_kernel_size": 3},
    "ModernBert": {"cls_token_id": 1, "sep_token_id": 2},
    "DistilBert": {"dim": 32, "n_layers": 2, "n_heads": 4, "hidden_dim": 48},
    "Gemma3Text": TWO | {"use_bidirectional_attention": True},
}  # fmt: skip
DECODERS: dict[str, dict[str, Any]] = {
    "Qwen2": {"num_key_value_heads": 2}, "Qwen3": TWO, "Llama": TWO, "Mistral": TWO, "Gemma2": TWO,
    "Gemma3Text": TWO, "GPTNeoX": {}, "Bloom": {"n_head": 4}, "GPT2": {"n_head": 4},
    "GPTJ": {"rotary_dim": 8}, "Mpt": {"n_heads": 4}, "Mamba": {}, "Bert": {"is_decoder": True},
}  # fmt: skip


def config_of(kind: str, changes: dict[str, Any]) -> PretrainedConfig:
    made: PretrainedConfig = getattr(transformers, f"{kind.split()[0]}Config")(**(SMALL | changes))
    return made


def saved(config: PretrainedConfig, folder: Path) -> ModelRecipe:
    tiny.save_model(config, folder)
    return ModelRecipe(path=str(folder))


def check(folder: Path, **sections: Any) -> None:
    """What a dry run and a run ask of a config."""
    recipe = tiny.make_recipe(folder, **sections)
    config = load_config(recipe.model, str(folder))
    check_backbone(recipe, str(folder), config, download=False)


@pytest.mark.parametrize("kind", ENCODERS)
def test_encoder_left_causal_is_refused(kind: str, tmp_path: Path) -> None:
    config = config_of(kind, ENCODERS[kind])
    saved(config, tmp_path)
    message = (
        rf"model\.attention = causal; expected bidirectional: {config.model_type} is an encoder"
    )
    with pytest.raises(RecipeError, match=message):
        check(tmp_path)
    open_model = ModelRecipe(path=str(tmp_path), attention="bidirectional")
    short = tiny.make_recipe(tmp_path).data
    check(tmp_path, model=open_model, data=_cut(short, 64))


def _cut(data: Any, most: int) -> Any:
    from dataclasses import replace

    return replace(data, query_max_tokens=most, passage_max_tokens=most)


@pytest.mark.parametrize("kind", DECODERS)
def test_decoder_may_be_causal(kind: str, tmp_path: Path) -> None:
    recipe = saved(config_of(kind, DECODERS[kind]), tmp_path)
    assert kind_of(skeleton_of(load_config(recipe, str(tmp_path)), recipe)) == "decoder"
    check(tmp_path)


WRONG: dict[str, tuple[Any, str]] = {
    "t5": ({"model_type": "t5"}, "t5, an encoder-decoder"),
    "bart": ({"model_type": "bart"}, "bart, an encoder-decoder"),
    "whisper": ({"model_type": "whisper"}, "whisper, an encoder-decoder"),
    "vit": ({"model_type": "vit"}, "vit, which does not read texts"),
    "wav2vec2": ({"model_type": "wav2vec2"}, "wav2vec2, which does not read texts"),
    "clip": ({"model_type": "clip"}, "clip_text_model, which does not read texts"),
    "fnet": ({"model_type": "fnet"}, "fnet, which takes no attention mask"),
    "unknown": ({"model_type": "never"}, "config.json that transformers knows"),
    "untyped": ({"hidden_size": 32}, "config.json that transformers knows"),
    "wordy": ({"model_type": "qwen2", "hidden_size": "wide"}, "config.json that transformers"),
    "odd": ({"model_type": "qwen2", "num_attention_heads": 0}, "expected a config"),
    "padded": (
        {"model_type": "llama", "vocab_size": 97, "hidden_size": 32, "pad_token_id": 97},
        "llama: Padding_idx must be within",
    ),
    "quantised": (
        {"model_type": "llama", "quantization_config": {"quant_method": "gptq", "bits": 4}},
        "llama with quantised weights",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", WRONG)
def test_wrong_kind_is_refused_by_the_dry_run(name: str, tmp_path: Path) -> None:
    content, message = WRONG[name]
    file = make_workspace(tmp_path)
    (tmp_path / "model" / "config.json").write_text(json.dumps(content))
    arguments = ["model.pooling=mean"]
    arguments += ["model.attention=bidirectional"] if name == "fnet" else []
    parsed = parse_arguments(["--recipe", str(file), "--dry-run", *arguments])
    with pytest.raises(RecipeError, match=r"model\.path = .*; expected ") as caught:
        dry_run(load_recipe(file, parsed.overrides), parsed)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("kind", "kernel"),
    [("Gemma2", "eager"), ("Bloom", "eager"), ("MPNet", "eager"), ("Mamba", "eager"),
     ("DebertaV2", "eager"), ("Qwen3", "sdpa"), ("GPT2", "sdpa")],
)  # fmt: skip
def test_auto_takes_the_kernel_that_the_class_has(
    kind: str, kernel: str, caplog: pytest.LogCaptureFixture
) -> None:
    changes = (ENCODERS | DECODERS)[kind]
    model = type(skeleton_of(config_of(kind, changes), ModelRecipe(path="unused")))
    with caplog.at_level(logging.INFO, "trainer"):
        found = attention_kernel("auto", dtype=torch.float32, device_type="cpu", model=model)
    assert found == kernel
    assert caplog.text.count("attention_kernel = auto") == (kernel == "eager")


def test_kernel_that_the_class_lacks_is_refused(tmp_path: Path) -> None:
    saved(config_of("Bloom", DECODERS["Bloom"]), tmp_path)
    message = r"attention_kernel = sdpa; expected one that BloomModel has: eager\. "
    with pytest.raises(RecipeError, match=message):
        check(tmp_path, engine=EngineRecipe(attention_kernel="sdpa"))


LINEAR = {"layer_types": ["linear_attention", "full_attention"]}
CLOSED: dict[str, dict[str, Any]] = {
    "OpenAIGPT": {"n_head": 4}, "Mamba": {}, "Rwkv": {}, "Mpt": {"n_heads": 4},
    "GPTNeo": {"attention_types": [[["global", "local"], 1]], "num_layers": 2, "num_heads": 4},
    "Llama4Text": TWO | {"num_local_experts": 2},
    "Qwen3Next": TWO | LINEAR | {
        "linear_num_value_heads": 2, "linear_num_key_heads": 2, "linear_key_head_dim": 8,
        "linear_value_head_dim": 8, "num_experts": 2, "num_experts_per_tok": 1,
        "moe_intermediate_size": 16, "shared_expert_intermediate_size": 16,
    },
    "MiniMax": TWO | LINEAR | {"num_local_experts": 2},
    "Lfm2": {"num_key_value_heads": 2, "layer_types": ["conv", "full_attention"]},
    "Jamba": {
        "num_key_value_heads": 2, "num_experts": 2, "attn_layer_period": 2, "attn_layer_offset": 1,
        "mamba_dt_rank": 4, "mamba_d_state": 4, "use_mamba_kernels": False,
    },
}  # fmt: skip


@pytest.mark.parametrize("kind", CLOSED)
def test_open_attention_is_refused_where_the_code_has_none(kind: str, tmp_path: Path) -> None:
    config = config_of(kind, CLOSED[kind])
    saved(config, tmp_path)
    model = ModelRecipe(path=str(tmp_path), attention="bidirectional")
    message = rf"attention = bidirectional; expected causal: {config.model_type} \(model\.path = "
    with pytest.raises(RecipeError, match=message):
        check(tmp_path, model=model)


@pytest.mark.parametrize("kind", sorted(DECODERS.keys() - CLOSED.keys() - {"Bert"}))
def test_open_attention_lets_the_first_token_see_the_last(kind: str, tmp_path: Path) -> None:
    saved(config_of(kind, DECODERS[kind]), tmp_path)
    ids = torch.tensor([[5, 6, 7, 8], [5, 6, 7, 9]])
    for attention, sees in (("bidirectional", True), ("causal", False)):
        model: Any = ModelRecipe(path=str(tmp_path), attention=attention)  # type: ignore[arg-type]
        check(tmp_path, model=model)
        backbone: Any = load_backbone(model, str(tmp_path), kernel="eager", zero3_config=None)
        with torch.no_grad():
            states = backbone.eval()(input_ids=ids, attention_mask=torch.ones_like(ids))
        first, other = states.last_hidden_state[:, 0]
        assert torch.equal(first, other) != sees


MIXING = {
    "ConvBert": "whose convolutions", "Canine": "whose convolutions",
    "Nystromformer": "whose attention is to means", "Yoso": "whose attention is drawn",
    "Mra": "whose attention has kernels",
}  # fmt: skip


@pytest.mark.parametrize("attention", ["causal", "bidirectional"])
@pytest.mark.parametrize("kind", MIXING)
def test_vectors_that_depend_on_padding_are_refused(
    kind: str, attention: Any, tmp_path: Path
) -> None:
    config_of(kind, {"embedding_size": 32}).save_pretrained(tmp_path)
    model = ModelRecipe(path=str(tmp_path), attention=attention)
    with pytest.raises(RecipeError, match=rf"model\.path = .*, {MIXING[kind]}"):
        check(tmp_path, model=model)


def test_a_dry_run_tells_of_a_folder_without_weights(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    file = make_workspace(tmp_path)
    (tmp_path / "model" / "model.safetensors").unlink()
    parsed = parse_arguments(["--recipe", str(file), "--dry-run"])
    dry_run(load_recipe(file, parsed.overrides), parsed)
    assert "(no weights in the folder); its config alone was checked" in caplog.text
