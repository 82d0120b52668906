"""config.json of an export: what each reader takes for the model that was trained."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModel

from tests.support import bases, tiny
from trainer.export.config_file import complete_config, needs_release_5
from trainer.export.rope import read_config
from trainer.model.backbone import load_backbone, load_config
from trainer.model.kinds import kind_of
from trainer.recipe.schema import ModelRecipe


def of_type(kind: str, **keys: Any) -> dict[str, Any]:
    """A config as transformers 5 writes it."""
    own = {"model_type": kind, "vocab_size": 97, "pad_token_id": 0}
    read = read_config(bases.SIZES | own | keys)
    assert read is not None
    content: dict[str, Any] = json.loads(read.to_json_string())
    return content


def completed(config: dict[str, Any], **known: Any) -> dict[str, Any]:
    """The completed config, which a second call leaves as it is."""
    before = json.dumps(config)
    known = {"base": None} | known
    new = complete_config(config, **known)
    assert json.dumps(config) == before
    assert complete_config(new, **known) == new
    return new


@pytest.mark.parametrize("kind", ["qwen2", "qwen3", "llama", "mistral", "gemma2"])
def test_a_bidirectional_decoder_says_so_under_both_keys(kind: str) -> None:
    new = completed(of_type(kind, is_causal=False))
    assert (new["is_causal"], new["use_bidirectional_attention"]) == (False, True)
    assert needs_release_5(new)


@pytest.mark.parametrize("kind", ["bert", "xlm-roberta", "modernbert"])
def test_an_encoder_needs_to_say_nothing(kind: str) -> None:
    new = completed(of_type(kind, is_causal=False))
    assert not {"is_causal", "use_bidirectional_attention"} & new.keys()
    assert not needs_release_5(new)


def test_a_causal_decoder_says_nothing() -> None:
    new = completed(of_type("qwen3"))
    assert not {"is_causal", "use_bidirectional_attention"} & new.keys()


def test_a_type_that_gives_the_key_another_meaning_keeps_to_the_first() -> None:
    assert "use_bidirectional_attention" not in completed(
        {"model_type": "gemma3n_text", "is_causal": False}
    )


@pytest.mark.parametrize("own", [False, True])
def test_gemma_3_keeps_its_windows_when_it_is_reloaded(tmp_path: Path, own: bool) -> None:
    config = of_type("gemma3_text", sliding_window=4, num_hidden_layers=6, head_dim=8,
                     use_bidirectional_attention=own)  # fmt: skip
    tiny.save_model(AutoConfig.for_model(**config), tmp_path)
    recipe = ModelRecipe(path=str(tmp_path), attention="bidirectional")
    trained = load_backbone(recipe, str(tmp_path), kernel="sdpa", zero3_config=None).eval()
    new = completed(json.loads(trained.config.to_json_string()))
    assert "is_causal" not in new
    assert new["use_bidirectional_attention"] is True
    assert new["sliding_window"] == (4 if own else 8)
    assert not needs_release_5(new)
    (tmp_path / "config.json").write_text(json.dumps(new))
    again = AutoModel.from_pretrained(tmp_path, attn_implementation="sdpa").eval()
    ids = torch.arange(1, 25)[None]
    with torch.no_grad():
        got, want = again(ids).last_hidden_state, trained(ids).last_hidden_state
    # the same arithmetic on the same weights
    torch.testing.assert_close(got, want, atol=1e-6, rtol=0)


def test_gemma_3_is_named_so_that_converters_do_not_open_it() -> None:
    config = of_type("gemma3_text", head_dim=8)
    name = "Gemma3TextModel"
    assert completed(config, architecture=name)["architectures"] == ["Gemma3ForCausalLM"]
    bidirectional = completed(config | {"is_causal": False}, architecture=name)
    assert bidirectional["architectures"] == [name]
    assert completed(of_type("qwen3"), architecture="Qwen3Model")["architectures"] == ["Qwen3Model"]


def test_settings_of_the_training_give_way_to_the_bases(tmp_path: Path) -> None:
    bases.write_base("bert", tmp_path)
    base = json.loads((tmp_path / "config.json").read_text())
    recipe = ModelRecipe(path=str(tmp_path), attention="bidirectional", dropout=0.4)
    trained = json.loads(load_config(recipe, str(tmp_path)).to_json_string())
    assert (trained["use_cache"], trained["hidden_dropout_prob"]) == (False, 0.4)
    new = completed(trained, base=base)
    assert "use_cache" not in new
    assert "_name_or_path" not in completed(base)
    assert new["hidden_dropout_prob"] == 0.2
    assert new["attention_probs_dropout_prob"] == 0.1
    assert completed(trained, base=base | {"use_cache": True})["use_cache"] is True
    assert "use_cache" not in completed(trained)


def test_one_end_token_stands_for_a_list() -> None:
    config = of_type("llama") | {"eos_token_id": [5, 7]}
    assert completed(config, end_id=7)["eos_token_id"] == 7
    assert completed(config)["eos_token_id"] == 5
    assert completed(of_type("llama") | {"eos_token_id": 3}, end_id=7)["eos_token_id"] == 3


def test_the_dtype_stands_under_both_names() -> None:
    for key in ("dtype", "torch_dtype"):
        new = completed({"model_type": "none such", key: "bfloat16"})
        assert new["dtype"] == new["torch_dtype"] == "bfloat16"


def test_layers_of_full_attention_have_a_period_for_older_readers() -> None:
    layers = ["full_attention", "sliding_attention", "sliding_attention", "full_attention"]
    new = completed(of_type("modernbert", layer_types=layers, num_hidden_layers=4))
    assert new["global_attn_every_n_layers"] == 3
    gemma = completed(of_type("gemma3_text", head_dim=8, num_hidden_layers=7))
    assert gemma["sliding_window_pattern"] == 6


def test_experts_are_counted_under_both_names() -> None:
    new = completed(of_type("qwen3_moe", num_experts=4))
    assert new["num_experts"] == new["num_local_experts"] == 4


def test_the_section_of_a_multimodal_config_is_completed() -> None:
    inner = of_type("gemma3_text", head_dim=8, rope_theta=2e6)
    new = completed({"model_type": "gemma3", "text_config": inner, "eos_token_id": [1, 2]})
    assert new["text_config"]["rope_theta"] == 2e6
    assert new["eos_token_id"] == 1
    assert "rope_theta" not in new


def test_encoders_and_decoders_are_told_apart_by_their_code() -> None:
    with torch.device("meta"):
        decoder = AutoModel.from_config(tiny.qwen3_config())
        encoder = AutoModel.from_config(tiny.bert_config())
    assert (kind_of(decoder), kind_of(encoder)) == ("decoder", "encoder")
