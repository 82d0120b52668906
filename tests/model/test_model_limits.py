"""Lengths and token ids that a model has no row for are refused; the numbers are those it runs."""

import copy
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from tokenizers import Tokenizer
from tokenizers.models import BPE, WordLevel
from tokenizers.pre_tokenizers import ByteLevel, Whitespace
from torch import nn
from transformers import AutoModel, PreTrainedTokenizerFast

from tests.support import tiny
from tests.support.corpus import make_workspace
from trainer.cli import parse_arguments
from trainer.data.tokens import load_tokenizer, make_encoder
from trainer.errors import DataError, RecipeError
from trainer.model.limits import check_lengths, fit_tokenizer, num_positions, num_token_ids
from trainer.preflight.dry_run import dry_run
from trainer.recipe.load import load_recipe
from trainer.recipe.schema import DataRecipe, ExportRecipe, SourceRecipe

SMALL: dict[str, Any] = {
    "vocab_size": 97, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 1,
    "num_attention_heads": 4, "max_position_embeddings": 24,
}  # fmt: skip
GPT = {"n_embd": 32, "n_layer": 1, "n_head": 4, "n_positions": 24}
TABLES: dict[str, tuple[dict[str, Any], int]] = {
    "Bert": ({}, 24),
    "Electra": ({}, 24),
    "Albert": ({}, 24),
    "DebertaV2": ({}, 24),
    "DistilBert": ({"dim": 32, "n_layers": 1, "n_heads": 4, "hidden_dim": 48}, 24),
    "Roberta": ({"pad_token_id": 1}, 22),
    "XLMRoberta": ({"pad_token_id": 1}, 22),
    "MPNet": ({"pad_token_id": 1}, 22),
    "Camembert": ({"pad_token_id": 1}, 22),
    "GPT2": (GPT, 24),
    "GPTBigCode": (GPT, 24),
    "OpenAIGPT": (GPT, 24),
    "GPTJ": (GPT | {"rotary_dim": 8}, 24),
    "CodeGen": (GPT | {"rotary_dim": 8}, 24),
    "GPTNeo": ({"num_layers": 1, "num_heads": 4, "attention_types": [[["global"], 1]]}, 24),
    "OPT": ({"ffn_dim": 48, "word_embed_proj_dim": 32}, 24),
    "BioGpt": ({}, 24),
    "Mpt": ({"d_model": 32, "n_layers": 1, "n_heads": 4, "max_seq_len": 24}, 24),
}
WITHOUT: dict[str, dict[str, Any]] = {
    "Qwen3": {"num_key_value_heads": 2, "head_dim": 8},
    "Llama": {"num_key_value_heads": 2},
    "GPTNeoX": {},
    "Bloom": {"n_head": 4},
    "ModernBert": {"pad_token_id": 0, "cls_token_id": 1, "sep_token_id": 2},
    "DebertaV2": {"position_biased_input": False, "relative_attention": True},
    "NomicBert": {},
    "Mamba": {},
}


def model_of(kind: str, changes: dict[str, Any]) -> nn.Module:
    config = getattr(transformers, f"{kind}Config")(**(SMALL | changes))
    model: nn.Module = AutoModel.from_config(config).eval()
    return model


def embed(model: nn.Module, length: int) -> None:
    ids = torch.randint(3, 97, (1, length), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        model(input_ids=ids, attention_mask=torch.ones_like(ids))


@pytest.mark.parametrize("kind", TABLES)
def test_limit_is_the_longest_text_that_the_model_runs(kind: str) -> None:
    changes, most = TABLES[kind]
    model = model_of(kind, changes)
    assert num_positions(model) == most
    embed(model, most)
    with pytest.raises((IndexError, RuntimeError)):
        embed(model, most + 1)


@pytest.mark.parametrize("kind", WITHOUT)
def test_models_without_a_table_have_no_limit(kind: str) -> None:
    model = model_of(kind, WITHOUT[kind])
    assert num_positions(model) is None
    embed(model, 60)


def test_only_limits_that_are_used_count() -> None:
    model = model_of("Bert", {})
    sts = SourceRecipe(name="sts", task="sts", path="unused")
    data = DataRecipe(sources=(sts,), query_max_tokens=24, passage_max_tokens=500)
    recipe = tiny.make_recipe(Path("unused"), data=data)
    check_lengths(recipe, model)
    ir = SourceRecipe(name="ir", task="ir", path="unused")
    message = r"data\.passage_max_tokens = 500; expected at most 24, the positions of the model"
    with pytest.raises(RecipeError, match=message):
        check_lengths(replace(recipe, data=replace(data, sources=(sts, ir))), model)


def test_an_export_may_not_promise_more_than_the_positions() -> None:
    data = DataRecipe(
        sources=(SourceRecipe(name="sts", task="sts", path="unused"),), query_max_tokens=16
    )
    recipe = tiny.make_recipe(Path("unused"), data=data, export=ExportRecipe(max_tokens=24))
    check_lengths(recipe, model_of("Bert", {}))
    message = r"export\.max_tokens = 25; expected at most 24, the positions of the model"
    with pytest.raises(RecipeError, match=message):
        check_lengths(replace(recipe, export=ExportRecipe(max_tokens=25)), model_of("Bert", {}))


def test_dry_run_refuses_texts_that_are_too_long(tmp_path: Path) -> None:
    file = make_workspace(tmp_path)
    tiny.save_model(tiny.bert_config(max_position_embeddings=14), tmp_path / "model")
    told = ["model.pooling=mean", "model.attention=bidirectional"]
    parsed = parse_arguments(["--recipe", str(file), "--dry-run", *told])
    with pytest.raises(RecipeError, match=r"data\.passage_max_tokens = 16; expected at most 14"):
        dry_run(load_recipe(file, parsed.overrides), parsed)


def tokenizer_of(folder: Path, *, special: dict[str, str], words: tuple[str, ...] = ()) -> str:
    """Words and an end token, ids 0 to 12, then what is added."""
    vocabulary = {
        word: i for i, word in enumerate(["<unk>", "</s>", "a", *(f"w{i}" for i in range(10))])
    }
    backend = Tokenizer(WordLevel(vocabulary, unk_token="<unk>"))
    backend.pre_tokenizer = Whitespace()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend, unk_token="<unk>", eos_token="</s>"
    )
    tokenizer.add_special_tokens(special)
    tokenizer.add_tokens(list(words))
    tokenizer.save_pretrained(folder)
    return str(folder)


@pytest.mark.parametrize(
    ("special", "words", "named"),
    [
        ({"eos_token": "<|end|>"}, (), r"id 13 \(<\|end\|>\)"),
        ({}, ("invoice",), r"id 13 \(invoice\)"),
    ],
)
def test_ids_beyond_the_matrix_are_refused(
    special: dict[str, str], words: tuple[str, ...], named: str, tmp_path: Path
) -> None:
    path = tokenizer_of(tmp_path, special=special, words=words)
    tokenizer = load_tokenizer(path, pooling="last")
    with pytest.raises(RecipeError, match=rf"{named}; expected ids below 13, the rows of the"):
        fit_tokenizer(tokenizer, 13, path)
    fit_tokenizer(copy.deepcopy(tokenizer), 14, path)
    fit_tokenizer(tokenizer, None, path)


@pytest.mark.parametrize("unknown", [None, "<unk>"])
def test_unknown_token_counts_where_a_text_can_have_it(tmp_path: Path, unknown: str | None) -> None:
    # bytes are all known, although transformers gives such tokenizers an unknown token of its own
    alphabet = ByteLevel.alphabet()
    backend = Tokenizer(BPE({byte: i for i, byte in enumerate(alphabet)}, [], unk_token=unknown))
    backend.pre_tokenizer = ByteLevel(add_prefix_space=False)
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, unk_token="<unk>")
    tokenizer.save_pretrained(tmp_path)
    tokenizer = load_tokenizer(str(tmp_path), pooling="mean")
    assert tokenizer.unk_token_id == len(alphabet)
    if unknown is None:
        fit_tokenizer(tokenizer, len(alphabet), str(tmp_path))
    else:
        with pytest.raises(RecipeError, match=r"id 256 \(<unk>\); expected ids below 256"):
            fit_tokenizer(tokenizer, len(alphabet), str(tmp_path))


def test_pad_token_beyond_the_matrix_is_replaced(tmp_path: Path) -> None:
    path = tokenizer_of(tmp_path, special={"pad_token": "[PAD]"})
    tokenizer = load_tokenizer(path, pooling="last")
    assert tokenizer.pad_token_id == 13
    fit_tokenizer(tokenizer, 13, path)
    assert tokenizer.pad_token == "</s>"
    tokenizer.save_pretrained(tmp_path / "exported")
    again = load_tokenizer(str(tmp_path / "exported"), pooling="last")
    ids = again(["w1", "w1 w2 w3"], padding=True)["input_ids"]
    assert max(map(max, ids)) < 13


def test_text_with_a_token_that_the_model_lacks_is_refused(tmp_path: Path) -> None:
    path = tokenizer_of(tmp_path, special={"additional_special_tokens": ["<image>"]})  # type: ignore[dict-item]
    tokenizer = load_tokenizer(path, pooling="last")
    fit_tokenizer(tokenizer, 13, path)
    data = tiny.make_recipe(tmp_path).data
    encoder = make_encoder(tokenizer, data, pooling="last", num_ids=13)
    ids = encoder.encode(["w1 w2"], instruction="", max_tokens=8).token_ids[0]
    assert ids.tolist() == [4, 5, 1]
    with pytest.raises(DataError, match=r"text = .*; expected no <image>, .*Remove the row"):
        encoder.encode(["w1", "w1 <image>"], instruction="", max_tokens=8)


def test_rows_are_those_of_the_embedding_matrix() -> None:
    assert num_token_ids(model_of("Bert", {})) == 97
