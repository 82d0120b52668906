"""Tiny bases of several families, their files as the hub has them: written by transformers 4."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from tokenizers.processors import TemplateProcessing
from transformers import (
    BertTokenizer,
    GemmaTokenizer,
    LlamaTokenizer,
    PreTrainedTokenizerFast,
    Qwen2Tokenizer,
    XLMRobertaTokenizer,
)

from trainer.checkpoint.json_files import write_json

SENTENCES = ["the cat sat on the mat", "a dog ran over the hill", "models of queries 123"] * 3
TEXTS = ["cat", "the cat sat", "  two  spaces ", "\u00fc \u4e2d\u6587 \U0001f600",
         "with </s> and <|im_end|> inside", "the cat sat on the mat " * 30]  # fmt: skip
"""Short, strange and too long for the limit of the tests."""
SIZES = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 128,
    "initializer_range": 0.15,
}
LLAMA3 = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}


def byte_level(*special: str) -> Tokenizer:
    """Byte-level BPE."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=300, initial_alphabet=alphabet, special_tokens=[*special], show_progress=False
    )
    tokenizer.train_from_iterator(SENTENCES, trainer)
    return tokenizer


def bytes_behind(*special: str) -> Tokenizer:
    """BPE that falls back to bytes, as Llama 2 and Gemma have it."""
    tokenizer = Tokenizer(models.BPE(byte_fallback=True, fuse_unk=True, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
    fallback = [f"<0x{number:02X}>" for number in range(256)]
    trainer = trainers.BpeTrainer(
        vocab_size=400, special_tokens=[*special, *fallback], show_progress=False
    )
    tokenizer.train_from_iterator(SENTENCES, trainer)
    return tokenizer


def _parts(tokenizer: Tokenizer) -> dict[str, Any]:
    """Vocabulary and merges, as the classes take them."""
    model = json.loads(tokenizer.to_str())["model"]
    return {"vocab": model["vocab"], "merges": [tuple(pair) for pair in model["merges"]]}


def qwen() -> PreTrainedTokenizerFast:
    """Nothing around a text; several special tokens."""
    plain = byte_level("<|endoftext|>", "<|im_start|>", "<|im_end|>")
    return Qwen2Tokenizer(
        **_parts(plain), eos_token="<|im_end|>", pad_token="<|endoftext|>",
        extra_special_tokens=["<|im_start|>", "<|im_end|>"],
    )  # fmt: skip


def llama3() -> PreTrainedTokenizerFast:
    """The generic class, with a token before each text."""
    plain = byte_level("<|begin_of_text|>", "<|end_of_text|>", "<|eot_id|>")
    plain.post_processor = TemplateProcessing(
        single="<|begin_of_text|> $A", special_tokens=[("<|begin_of_text|>", 0)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=plain, bos_token="<|begin_of_text|>", eos_token="<|eot_id|>"
    )


def llama2() -> PreTrainedTokenizerFast:
    """The class that older releases give a template of their own."""
    return LlamaTokenizer(**_parts(bytes_behind("<unk>", "<s>", "</s>")), add_bos_token=True)


def gemma() -> PreTrainedTokenizerFast:
    """Likewise."""
    special = ("<pad>", "<eos>", "<bos>", "<unk>", "<mask>")
    return GemmaTokenizer(**_parts(bytes_behind(*special)), add_bos_token=True)


def bert() -> PreTrainedTokenizerFast:
    """Tokens on both sides of a text; letters stay as they are."""
    plain = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    plain.normalizer = normalizers.BertNormalizer()
    plain.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    plain.train_from_iterator(
        SENTENCES,
        trainers.WordPieceTrainer(vocab_size=150, special_tokens=special, show_progress=False),
    )
    return BertTokenizer(vocab=json.loads(plain.to_str())["model"]["vocab"], do_lower_case=False)


def xlm_roberta() -> PreTrainedTokenizerFast:
    """A unigram model with tokens on both sides."""
    plain = Tokenizer(models.Unigram())
    plain.pre_tokenizer = pre_tokenizers.Metaspace()
    special = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]
    plain.train_from_iterator(
        SENTENCES,
        trainers.UnigramTrainer(
            vocab_size=90, special_tokens=special, unk_token="<unk>", show_progress=False
        ),
    )
    vocabulary = json.loads(plain.to_str())["model"]["vocab"]
    return XLMRobertaTokenizer(vocab=[tuple(piece) for piece in vocabulary])


BASES: dict[str, tuple[Callable[[], PreTrainedTokenizerFast], dict[str, Any]]] = {
    "qwen2": (qwen, {"model_type": "qwen2", "num_key_value_heads": 2, "rope_theta": 1e6}),
    "llama3": (
        llama3,
        {
            "model_type": "llama",
            "num_key_value_heads": 2,
            "rope_theta": 5e5,
            "rope_scaling": LLAMA3,
            "eos_token_id": [1, 2],
        },
    ),
    "llama2": (llama2, {"model_type": "llama", "num_key_value_heads": 2}),
    "gemma3": (
        gemma,
        {
            "model_type": "gemma3_text",
            "num_key_value_heads": 2,
            "head_dim": 8,
            "num_hidden_layers": 6,
            "sliding_window": 4,
            "rope_theta": 2e6,
            "rope_local_base_freq": 2e4,
        },
    ),
    "bert": (bert, {"model_type": "bert", "hidden_dropout_prob": 0.2}),
    "xlm-roberta": (xlm_roberta, {"model_type": "xlm-roberta", "pad_token_id": 1}),
}
"""Tokenizer, and what the config says besides the sizes."""
CLASSES = {
    "qwen2": "Qwen2Tokenizer",
    "llama3": "PreTrainedTokenizerFast",
    "llama2": "LlamaTokenizer",
    "gemma3": "GemmaTokenizer",
    "bert": "BertTokenizer",
    "xlm-roberta": "XLMRobertaTokenizer",
}
"""What transformers 4 calls the tokenizers."""


def write_base(name: str, folder: Path) -> Path:
    """Config, tokenizer and licence of a base, without weights."""
    make, config = BASES[name]
    tokenizer = make()
    tokenizer.save_pretrained(folder)
    path = folder / "tokenizer_config.json"
    own = json.loads(path.read_text())
    extra = own.pop("extra_special_tokens", None)
    del own["backend"]
    added = {"additional_special_tokens": extra} if extra else {}
    write_json(path, own | added | {"tokenizer_class": CLASSES[name]})
    settings = {"vocab_size": len(tokenizer), "torch_dtype": "float32", "_name_or_path": "some/id"}
    write_json(folder / "config.json", SIZES | config | settings)
    (folder / "LICENSE").write_text("terms")
    return folder
