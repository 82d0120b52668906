"""Ids of a plain tokenizer that is loaded from an export are the trainer's, for every class."""

import dataclasses
import json
from pathlib import Path

import pytest
from transformers import AutoConfig, AutoTokenizer

from tests.support import bases, tiny
from trainer.data.tokens import load_tokenizer, make_encoder
from trainer.errors import RecipeError
from trainer.export.complete import complete_folder
from trainer.export.embedder_files import write_embedder_files
from trainer.export.tokenizer_file import PRIVATE
from trainer.recipe.schema import ExportRecipe, ModelRecipe, Pooling

LIMIT = 12
END_TOKENS = {
    "qwen2": "<|endoftext|>",
    "llama3": "<|end_of_text|>",
    "llama2": "</s>",
    "gemma3": "<mask>",
    "bert": "[MASK]",
    "xlm-roberta": "<pad>",
}
"""Other tokens than those of the tokenizers' own rules, but for Llama 2."""


def export(name: str, folder: Path, *, pooling: Pooling, end_token: str | None) -> list[list[int]]:
    """Write the small files of an export into `model`; returns the trainer's ids of all texts."""
    base = bases.write_base(name, folder / "base")
    recipe = tiny.make_recipe(
        base,
        model=ModelRecipe(path=str(base), pooling=pooling, end_token=end_token),
        export=ExportRecipe(max_tokens=LIMIT),
    )
    data = dataclasses.replace(recipe.data, query_max_tokens=LIMIT, passage_max_tokens=LIMIT)
    tokenizer = load_tokenizer(str(base), pooling=pooling, end_token=end_token)
    encoder = make_encoder(tokenizer, data, pooling=pooling)
    (folder / "model").mkdir()
    write_embedder_files(
        folder / "model",
        recipe,
        config=AutoConfig.from_pretrained(base),
        tokenizer=tokenizer,
        base=base,
    )
    found = encoder.encode(bases.TEXTS, instruction="", max_tokens=LIMIT)
    return [ids.tolist() for ids in found.token_ids]


def tokenizer_config(folder: Path) -> dict[str, object]:
    content: dict[str, object] = json.loads((folder / "tokenizer_config.json").read_text())
    return content


@pytest.mark.parametrize("end_token", ["its own", "another"])
@pytest.mark.parametrize("pooling", ["last", "mean"])
@pytest.mark.parametrize("name", bases.BASES)
def test_a_plain_tokenizer_gives_the_trainers_ids(
    tmp_path: Path, name: str, pooling: Pooling, end_token: str
) -> None:
    given = END_TOKENS[name] if end_token == "another" else None
    want = export(name, tmp_path, pooling=pooling, end_token=given)
    saved = AutoTokenizer.from_pretrained(tmp_path / "model")
    assert [saved(text, truncation=True).input_ids for text in bases.TEXTS] == want
    assert len(want[-1]) == LIMIT
    plain = saved(bases.TEXTS[-1]).input_ids
    assert len(plain) > LIMIT
    assert plain[-1] == want[-1][-1] or pooling == "mean"
    if given is not None:
        assert saved.eos_token == given
        assert all(ids[-1] == saved.eos_token_id for ids in want)
    assert (saved.padding_side, saved.truncation_side) == ("right", "right")


@pytest.mark.parametrize("name", bases.BASES)
def test_the_files_say_what_transformers_4_reads(tmp_path: Path, name: str) -> None:
    export(name, tmp_path, pooling="last", end_token=None)
    config = tokenizer_config(tmp_path / "model")
    assert config["tokenizer_class"] == bases.CLASSES[name]
    assert not {*PRIVATE, "extra_special_tokens"} & config.keys()
    rebuilt = name in ("llama2", "gemma3")
    flags = {"add_bos_token": True, "add_eos_token": True} if rebuilt else {}
    assert {key: config[key] for key in config if key.endswith(("bos_token", "eos_token"))
            if key.startswith("add_")} == flags  # fmt: skip
    assert config.get("add_prefix_space") is {"xlm-roberta": True, "llama3": False}.get(name)
    special = json.loads((tmp_path / "model" / "special_tokens_map.json").read_text())
    assert special["pad_token"] == config["pad_token"]
    if name == "qwen2":
        assert config["additional_special_tokens"] == ["<|im_start|>", "<|im_end|>"]
    if name == "bert":
        assert config["do_lower_case"] is False


def test_a_template_that_the_flags_cannot_say_gets_the_generic_class(tmp_path: Path) -> None:
    want = export("llama2", tmp_path, pooling="last", end_token=None)
    path = tmp_path / "model" / "tokenizer.json"
    content = json.loads(path.read_text())
    piece = {"SpecialToken": {"id": "<unk>", "type_id": 0}}
    content["post_processor"]["single"].append(piece)
    content["post_processor"]["special_tokens"]["<unk>"] = {
        "id": "<unk>",
        "ids": [0],
        "tokens": ["<unk>"],
    }
    path.write_text(json.dumps(content))
    changes = complete_folder(tmp_path / "model")
    assert any("tokenizer_class" in change for change in changes)
    assert tokenizer_config(tmp_path / "model")["tokenizer_class"] == "PreTrainedTokenizerFast"
    again = AutoTokenizer.from_pretrained(tmp_path / "model")
    assert again("cat").input_ids == [*want[0], 0]


def test_an_unknown_end_token_is_refused(tmp_path: Path) -> None:
    base = bases.write_base("qwen2", tmp_path)
    message = r"model\.end_token = \"<end>\"; expected a special token of the tokenizer .*im_end"
    with pytest.raises(RecipeError, match=message):
        load_tokenizer(str(base), pooling="last", end_token="<end>")
    with pytest.raises(RecipeError, match=r"model\.end_token = \"cat\"; expected a special token"):
        load_tokenizer(str(base), pooling="mean", end_token="cat")
