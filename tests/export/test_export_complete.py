"""A folder of an earlier release is upgraded in place, and says what was changed, once."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from transformers import AutoConfig, AutoModel, AutoTokenizer

from tests.support import bases, tiny
from trainer.checkpoint.json_files import write_json
from trainer.data.tokens import load_tokenizer
from trainer.errors import CheckpointError
from trainer.export.complete import complete_folder, open_to_readers, weights_format
from trainer.export.embedder_files import modules_of, write_embedder_files

MODULES = modules_of(None)
PROMPTS = {"query": "q: ", "document": "", "sts": "s: "}


def old_export(name: str, folder: Path, *, bidirectional: bool = False) -> Path:
    """What the last release wrote: both libraries' own files, and nothing done to them."""
    base = bases.write_base(name, folder / "base")
    config = AutoConfig.from_pretrained(base)
    config.use_cache = False
    if bidirectional:
        config.is_causal = False
    model = folder / "model"
    torch.manual_seed(0)
    backbone = AutoModel.from_config(config)
    config.architectures = [type(backbone).__name__.replace("Model", "ForCausalLM")]
    config.save_pretrained(model)
    tokenizer = load_tokenizer(str(base), pooling="last")
    tokenizer.model_max_length = 16
    tokenizer.save_pretrained(model)
    tensors = {key: value.clone() for key, value in backbone.state_dict().items()}
    save_file(tensors, model / "model.safetensors", metadata={"format": "pt"})
    write_json(model / "modules.json", MODULES)
    write_json(model / "config_sentence_transformers.json", {"prompts": PROMPTS})
    write_json(model / "sentence_bert_config.json", {"max_seq_length": 16, "do_lower_case": False})
    return model


def read(path: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads(path.read_text())
    return content


@pytest.mark.parametrize("name", bases.BASES)
def test_an_old_export_is_upgraded_once(tmp_path: Path, name: str) -> None:
    model = old_export(name, tmp_path)
    want = [AutoTokenizer.from_pretrained(model)(text).input_ids for text in bases.TEXTS]
    weights = (model / "model.safetensors").read_bytes()
    changes = complete_folder(model, base=tmp_path / "base")
    assert complete_folder(model, base=tmp_path / "base") == []
    assert complete_folder(model) == []
    saved = AutoTokenizer.from_pretrained(model)
    assert [saved(text).input_ids for text in bases.TEXTS] == want
    assert (model / "model.safetensors").read_bytes() == weights
    found = " ".join(changes)
    assert "tokenizer_config.json: backend removed" in found
    assert 'tokenizer_config.json: padding_side = "right" added' in found
    assert "LICENSE: copied from the base" in found
    assert "model.safetensors: mode 0" in found
    assert ("config.json: rope_" in found) == (name not in ("bert", "xlm-roberta"))
    assert read(model / "tokenizer_config.json")["tokenizer_class"] == bases.CLASSES[name]
    assert (model / "LICENSE").read_text() == "terms"
    assert not list(model.glob(".partial*"))


def test_a_new_export_needs_no_upgrade(tmp_path: Path) -> None:
    base = bases.write_base("llama3", tmp_path / "base")
    (tmp_path / "model").mkdir()
    write_embedder_files(
        tmp_path / "model",
        tiny.make_recipe(base),
        config=AutoConfig.from_pretrained(base),
        tokenizer=load_tokenizer(str(base), pooling="last"),
        base=base,
        architecture="LlamaModel",
    )
    assert complete_folder(tmp_path / "model") == []
    config = read(tmp_path / "model" / "config.json")
    assert config["architectures"] == ["LlamaModel"]
    # the token that ends texts, not the first of the base's list
    assert config["eos_token_id"] == 2
    assert config["max_position_embeddings"] == 128


def test_the_class_of_bare_weights_is_named(tmp_path: Path) -> None:
    model = old_export("qwen2", tmp_path)
    complete_folder(model)
    assert read(model / "config.json")["architectures"] == ["Qwen2Model"]


def test_the_class_of_weights_with_a_prefix_stays(tmp_path: Path) -> None:
    model = old_export("qwen2", tmp_path)
    with safe_open(model / "model.safetensors", framework="pt") as file:
        renamed = {f"model.{name}": file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    save_file(renamed, model / "model.safetensors", metadata={"format": "pt"})
    complete_folder(model)
    assert read(model / "config.json")["architectures"] == ["Qwen2ForCausalLM"]


def test_prompts_stand_under_the_benchmarks_names_too(tmp_path: Path) -> None:
    model = old_export("qwen2", tmp_path)
    changes = complete_folder(model)
    settings = read(model / "config_sentence_transformers.json")
    assert settings["prompts"] == PROMPTS | {"STS": "s: "}
    assert settings["model_type"] == "SentenceTransformer"
    assert settings["__version__"].keys() == {"sentence_transformers", "transformers", "pytorch"}
    assert any("config_sentence_transformers.json: prompts" in change for change in changes)


def test_names_of_sentence_transformers_6_become_those_of_all_releases(tmp_path: Path) -> None:
    package = "sentence_transformers.sentence_transformer.modules"
    modules = [{**module, "type": f"{package}.{str(module['type']).rsplit('.')[-1]}"}
               for module in MODULES]  # fmt: skip
    write_json(tmp_path / "modules.json", modules)
    pooling = {"embedding_dimension": 8, "pooling_mode": "lasttoken", "include_prompt": True}
    write_json(tmp_path / "1_Pooling" / "config.json", pooling)
    complete_folder(tmp_path)
    assert json.loads((tmp_path / "modules.json").read_text()) == MODULES
    new = read(tmp_path / "1_Pooling" / "config.json")
    assert new["pooling_mode_lasttoken"] is True
    assert new["pooling_mode_mean_tokens"] is False
    assert new["word_embedding_dimension"] == 8
    assert "pooling_mode" not in new
    assert complete_folder(tmp_path) == []


@pytest.mark.parametrize("name", ["qwen2", "gemma3", "bert"])
def test_weights_say_which_release_they_need(tmp_path: Path, name: str) -> None:
    model = old_export(name, tmp_path, bidirectional=True)
    complete_folder(model)
    form = weights_format(model)
    assert form == "pt" or (name == "qwen2" and "needs transformers 5" in form)
    assert (form == "pt") == (name != "qwen2")
    assert weights_format(old_export(name, tmp_path / "causal")) == "pt"


def test_weights_get_the_mode_of_the_files_beside_them(tmp_path: Path) -> None:
    write_json(tmp_path / "config.json", {})
    (tmp_path / "config.json").chmod(0o640)
    save_file({"a": torch.zeros(1)}, tmp_path / "model.safetensors")
    (tmp_path / "model.safetensors").chmod(0o600)
    assert open_to_readers(tmp_path) == [
        "model.safetensors: mode 0640, so that servers can read it"
    ]
    assert (tmp_path / "model.safetensors").stat().st_mode & 0o777 == 0o640
    assert open_to_readers(tmp_path) == []


def test_an_empty_folder_stays_empty(tmp_path: Path) -> None:
    assert complete_folder(tmp_path) == []
    assert list(tmp_path.iterdir()) == []


def test_a_damaged_file_is_named(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("[1]")
    with pytest.raises(CheckpointError, match=r"config\.json: content = \[1\]; expected a JSON"):
        complete_folder(tmp_path)


def test_an_adapter_whose_base_old_releases_make_up_ends_them(tmp_path: Path) -> None:
    model = old_export("gemma3", tmp_path)
    (model / "config.json").unlink()
    (model / "model.safetensors").unlink()
    write_json(model / "adapter_config.json", {"base_model_name_or_path": str(tmp_path / "base")})
    want = [AutoTokenizer.from_pretrained(model)(text).input_ids for text in bases.TEXTS]
    changes = " ".join(complete_folder(model))
    assert complete_folder(model) == []
    assert 'tokenizer_class = "TokenizersBackend"' in changes
    saved = AutoTokenizer.from_pretrained(model)
    assert [saved(text).input_ids for text in bases.TEXTS] == want
    # a base without a head is loaded by all releases
    edited = read(tmp_path / "base" / "config.json") | {"architectures": ["Gemma3TextModel"]}
    write_json(tmp_path / "base" / "config.json", edited)
    complete_folder(model)
    assert read(model / "tokenizer_config.json")["tokenizer_class"] != "TokenizersBackend"


def test_blanks_of_xlm_roberta_are_told_to_converters(tmp_path: Path) -> None:
    model = old_export("xlm-roberta", tmp_path)
    complete_folder(model)
    assert read(model / "tokenizer_config.json")["clean_up_tokenization_spaces"] is True
