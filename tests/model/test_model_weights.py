"""A base whose weights are not where transformers looks is refused, however it is saved."""

import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import (
    AutoModelForCausalLM,
    BertForMaskedLM,
    Gemma3Config,
    Gemma3ForConditionalGeneration,
    Qwen3MoeConfig,
)

from tests.support import tiny
from tests.support.corpus import save_tokenizer
from tests.support.ranks import run_ranks
from trainer.distributed.group import join
from trainer.errors import RecipeError
from trainer.model.backbone import check_backbone, load_backbone, load_config
from trainer.model.weights import likely_prefix
from trainer.recipe.schema import ModelRecipe

Tensors = dict[str, Tensor]
FILE = "model.safetensors"


def single(folder: Path, tensors: Tensors) -> None:
    save_file(tensors, folder / FILE, metadata={"format": "pt"})


def sharded(folder: Path, tensors: Tensors) -> None:
    names = sorted(tensors)
    halves = {"a.safetensors": names[::2], "b.safetensors": names[1::2]}
    for file, part in halves.items():
        save_file({n: tensors[n] for n in part}, folder / file, metadata={"format": "pt"})
    where = {name: file for file, part in halves.items() for name in part}
    index = {"metadata": {}, "weight_map": where}
    (folder / f"{FILE}.index.json").write_text(json.dumps(index))
    (folder / FILE).unlink()


def pickled(folder: Path, tensors: Tensors) -> None:
    torch.save(tensors, folder / "pytorch_model.bin")
    (folder / FILE).unlink()


def half(folder: Path, tensors: Tensors) -> None:
    single(folder, {name: tensor.bfloat16() for name, tensor in tensors.items()})


FORMATS = {"single": single, "sharded": sharded, "pickled": pickled, "half": half}
DOWN = "layers.1.mlp.down_proj.weight"


def renamed(tensors: Tensors) -> Tensors:
    return {f"encoder.net.{name}": tensor for name, tensor in tensors.items()}


def lacks_one(tensors: Tensors) -> Tensors:
    return {name: tensor for name, tensor in tensors.items() if name != DOWN}


def misshapen(tensors: Tensors) -> Tensors:
    return tensors | {"norm.weight": torch.ones(31)}


FAULTS: dict[str, tuple[Callable[[Tensors], Tensors], str]] = {
    "renamed": (
        renamed,
        r"46 of 46 tensors are missing \(first: embed_tokens\.weight\), and 46 of the file are "
        r"unknown \(first: encoder\.net\.[\w.]+\)\. .*prefix encoder\.net\. ",
    ),
    "lacks one": (lacks_one, rf"1 of 46 tensors are missing \(first: {DOWN}\)\."),
    "misshapen": (misshapen, r"1 of 46 .*\(first: norm\.weight, \[31\] in .*, \[32\] by"),
}


def checked(folder: Path, **changes: Any) -> torch.nn.Module:
    """What a dry run and a run look at before a weight is read."""
    model = ModelRecipe(path=str(folder), **changes)
    recipe = tiny.make_recipe(folder, model=model, data=tiny_data())
    config = load_config(model, str(folder))
    return check_backbone(recipe, str(folder), config, download=False)


def tiny_data() -> Any:
    from trainer.recipe.schema import DataRecipe, SourceRecipe

    source = SourceRecipe(name="ir", task="ir", path="unused")
    return DataRecipe(sources=(source,), query_max_tokens=16, passage_max_tokens=16)


def loaded(folder: Path, **changes: Any) -> torch.nn.Module:
    recipe = ModelRecipe(path=str(folder), **changes)
    return load_backbone(recipe, str(folder), kernel="sdpa", zero3_config=None)


@pytest.mark.parametrize("form", FORMATS)
@pytest.mark.parametrize("fault", FAULTS)
def test_weights_that_are_not_the_models_are_refused(form: str, fault: str, tmp_path: Path) -> None:
    tiny.save_model(tiny.qwen3_config(), tmp_path)
    tensors = load_file(tmp_path / FILE)
    FORMATS[form](tmp_path, tensors)
    checked(tmp_path)
    loaded(tmp_path)
    change, message = FAULTS[fault]
    (tmp_path / FILE).touch()
    FORMATS[form](tmp_path, change(tensors))
    with pytest.raises(RecipeError, match=rf"expected weights of qwen3: {message}"):
        checked(tmp_path)
    with pytest.raises(RecipeError, match=r"expected weights"):
        loaded(tmp_path)


def load_sharded(rank: int, world_size: int, folder: Path) -> str:
    """The message of a loading under ZeRO-3."""
    del rank, world_size
    # as a run does: DeepSpeed's own start of a group compiles an extension
    join(timeout_minutes=2)
    recipe = ModelRecipe(path=str(folder))
    zero3 = {"zero_optimization": {"stage": 3}, "train_batch_size": 1}
    try:
        load_backbone(recipe, str(folder), kernel="sdpa", zero3_config=zero3)
    except RecipeError as error:
        return str(error)
    return "loaded"


@pytest.mark.dist
def test_sharded_loading_refuses_them_too(tmp_path: Path) -> None:
    tiny.save_model(tiny.qwen3_config(), tmp_path)
    single(tmp_path, lacks_one(load_file(tmp_path / FILE)))
    (message,) = run_ranks(load_sharded, 1, tmp_path, timeout_sec=240)
    assert f"1 of 46 tensors are missing (first: {DOWN})" in message


def test_what_no_embedding_reads_may_be_absent_or_extra(tmp_path: Path) -> None:
    config = tiny.bert_config()
    torch.manual_seed(0)
    BertForMaskedLM(config).save_pretrained(tmp_path)
    tensors = load_file(tmp_path / FILE)
    assert any(name.startswith("cls.") for name in tensors)
    assert not any("pooler" in name for name in tensors)
    single(tmp_path, tensors | {"bert.embeddings.position_ids": torch.arange(64)[None]})
    checked(tmp_path, attention="bidirectional")
    backbone = loaded(tmp_path, attention="bidirectional")
    name = "encoder.layer.1.output.dense.weight"
    assert torch.equal(backbone.state_dict()[name], tensors[f"bert.{name}"])


def test_merged_experts_are_found_and_a_lost_one_is_refused(tmp_path: Path) -> None:
    config = Qwen3MoeConfig(
        vocab_size=97, hidden_size=32, intermediate_size=64, moe_intermediate_size=16,
        num_experts=4, num_experts_per_tok=2, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, head_dim=8,
    )  # fmt: skip
    AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path)
    checked(tmp_path)
    tensors = load_file(tmp_path / FILE)
    del tensors["model.layers.1.mlp.experts.2.up_proj.weight"]
    single(tmp_path, tensors)
    with pytest.raises(RecipeError, match=r"experts|cannot|missing"):
        checked(tmp_path)


def save_multimodal(folder: Path) -> Tensors:
    """A model of pictures and texts; returns the tensors of its text part."""
    text = {
        "vocab_size": 97, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2,
        "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8,
    }  # fmt: skip
    vision = {
        "hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 1,
        "num_attention_heads": 2, "image_size": 28, "patch_size": 14,
    }  # fmt: skip
    config = Gemma3Config(text_config=text, vision_config=vision, mm_tokens_per_image=4)
    torch.manual_seed(0)
    model = Gemma3ForConditionalGeneration(config)
    model.save_pretrained(folder)
    save_tokenizer(folder)
    part: Any = model.model.language_model
    return dict(part.state_dict())


@pytest.mark.parametrize("prefix", ["language_model.model.", "model.language_model."])
def test_text_part_of_a_multimodal_model_has_its_weights(prefix: str, tmp_path: Path) -> None:
    expected = save_multimodal(tmp_path)
    tensors = load_file(tmp_path / FILE)
    saved = "language_model.model."
    single(tmp_path, {name.replace(saved, prefix): tensor for name, tensor in tensors.items()})
    checked(tmp_path)
    backbone = loaded(tmp_path)
    assert backbone.config.model_type == "gemma3_text"  # type: ignore[union-attr]
    found = backbone.state_dict()
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        assert torch.equal(found[name], tensor), name
    del tensors[f"{saved}layers.1.mlp.up_proj.weight"]
    single(tmp_path, tensors)
    with pytest.raises(RecipeError, match=r"1 of \d+ .*first: layers\.1\.mlp\.up_proj\.weight"):
        checked(tmp_path)


def test_layers_that_the_config_does_not_count_are_reported(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    tiny.save_model(tiny.qwen3_config(), tmp_path)
    tiny.qwen3_config(num_hidden_layers=3).save_pretrained(tmp_path)
    with caplog.at_level(logging.WARNING, "trainer"):
        checked(tmp_path)
    assert "11 tensors of the file are not used (first: layers.3." in caplog.text


def test_adapters_and_lost_files_are_refused(tmp_path: Path) -> None:
    tiny.save_model(tiny.qwen3_config(), tmp_path)
    sharded(tmp_path, load_file(tmp_path / FILE))
    (tmp_path / "b.safetensors").unlink()
    with pytest.raises(RecipeError, match=r"expected weights that transformers can load"):
        checked(tmp_path)
    (tmp_path / "adapter_config.json").write_text("{}")
    with pytest.raises(
        RecipeError, match=r"an adapter: .*; expected a whole model, or an adapter in"
    ):
        checked(tmp_path)


def test_prefix_is_that_of_most_names() -> None:
    wanted = ["a.weight", "b.weight", "c.weight"]
    assert likely_prefix(wanted, [f"x.y.{name}" for name in wanted]) == "x.y."
    assert likely_prefix(wanted, ["x.a.weight", "other"]) == ""
    assert likely_prefix([], ["x.a"]) == ""
