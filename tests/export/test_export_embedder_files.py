"""Files of an embedder: what the caller handed in stays as it was, and the export pads a batch."""

from pathlib import Path

import pytest
from tokenizers import Tokenizer
from tokenizers.models import BPE, WordLevel
from tokenizers.pre_tokenizers import ByteLevel, Whitespace
from tokenizers.trainers import BpeTrainer
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from tests.support import tiny
from trainer.export.embedder_files import write_embedder_files

TEXTS = ["cat", "concatenate the cats", "a cat  sat; <s> on the mat", "the the"]
WORDS = ["cat", "sat", "the", "on", "a", "mat"]


def word_level(*special: str) -> Tokenizer:
    """One token a word, and some first ones."""
    vocabulary = {name: i for i, name in enumerate([*special, *WORDS])}
    tokenizer = Tokenizer(WordLevel(vocabulary, unk_token="a"))
    tokenizer.pre_tokenizer = Whitespace()
    return tokenizer


def byte_level() -> Tokenizer:
    """Byte-level BPE without special tokens."""
    tokenizer = Tokenizer(BPE())
    tokenizer.pre_tokenizer = ByteLevel(add_prefix_space=False)
    tokenizer.train_from_iterator(
        [" ".join(WORDS)] * 3,
        BpeTrainer(vocab_size=300, initial_alphabet=ByteLevel.alphabet(), show_progress=False),
    )
    return tokenizer


def beyond() -> PreTrainedTokenizerFast:
    """A token for padding that was added behind the last row of the matrix."""
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=word_level("<s>"), bos_token="<s>")
    tokenizer.add_special_tokens({"pad_token": "[PAD]"})
    return tokenizer


TOKENIZERS = {
    "words": lambda: PreTrainedTokenizerFast(tokenizer_object=word_level()),
    "bytes": lambda: PreTrainedTokenizerFast(tokenizer_object=byte_level()),
    "a special one": lambda: PreTrainedTokenizerFast(
        tokenizer_object=word_level("<s>"), bos_token="<s>"
    ),
    "beyond the matrix": beyond,
    "its own": lambda: PreTrainedTokenizerFast(
        tokenizer_object=word_level("<s>", "<p>"), bos_token="<s>", pad_token="<p>"
    ),
}
PADS = {"a special one": "<s>", "beyond the matrix": "<s>", "its own": "<p>"}


@pytest.mark.parametrize("name", TOKENIZERS)
def test_the_saved_one_pads_within_the_matrix_and_encodes_alike(tmp_path: Path, name: str) -> None:
    tokenizer = TOKENIZERS[name]()
    num_rows = len(tokenizer) - (name == "beyond the matrix")
    want = [tokenizer(text).input_ids for text in TEXTS]
    config = tiny.qwen3_config(vocab_size=num_rows)
    write_embedder_files(tmp_path, tiny.make_recipe(tmp_path), config=config, tokenizer=tokenizer)
    saved = AutoTokenizer.from_pretrained(tmp_path)
    assert [saved(text).input_ids for text in TEXTS] == want
    batch = saved(TEXTS, padding=True)
    assert max(max(row) for row in batch.input_ids) < num_rows
    lengths = [sum(mask) for mask in batch.attention_mask]
    assert lengths == [len(ids) for ids in want]
    assert saved.pad_token == PADS.get(name, saved.pad_token)


@pytest.mark.parametrize("name", TOKENIZERS)
def test_the_callers_tokenizer_and_config_stay_as_they_are(tmp_path: Path, name: str) -> None:
    tokenizer, config = TOKENIZERS[name](), tiny.qwen3_config()

    def state() -> tuple[object, ...]:
        words = (tokenizer.model_max_length, tokenizer.pad_token, tokenizer.special_tokens_map)
        return (*words, tokenizer.backend_tokenizer.to_str(), config.to_dict())

    before = state()
    write_embedder_files(tmp_path, tiny.make_recipe(tmp_path), config=config, tokenizer=tokenizer)
    assert state() == before
