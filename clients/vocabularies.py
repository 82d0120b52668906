"""Tokenizers of the families, made as their publishers made them, with tiny vocabularies.

It runs under transformers 4, which published tokenizers come from, with sentencepiece; it must
import nothing of the trainer.
"""

import inspect
import json
import logging
from collections.abc import Callable, Iterator
from importlib import import_module
from pathlib import Path
from typing import Any

SPECIAL_WORDS = "Grüße aus Köln, naïve café, 東京 と 京都, Привет мир, שלום, 12345 67.89 €"
"""Writing that docstrings lack."""
MODULES = ("json", "heapq", "difflib", "decimal", "random", "argparse", "pathlib", "textwrap")
"""Modules of the standard library whose docstrings the vocabularies are trained on."""
Ends = Callable[[Any], Any]
"""Makes a post-processor for a tokenizer."""
PIECES = 320
"""Learned pieces of a vocabulary, bytes and special tokens not counted."""


def corpus() -> list[str]:
    """Lines of docstrings, the same for every release of the same Python."""
    return [*_docstrings(), *[SPECIAL_WORDS] * 3]


def _docstrings() -> Iterator[str]:
    for name in MODULES:
        module = import_module(name)
        for value in (module, *vars(module).values()):
            lines = (inspect.getdoc(value) or "").splitlines() if callable(value) else []
            yield from (line for line in lines if line.strip())


def save_byte_level(
    folder: Path,
    *,
    specials: list[Any],
    pattern: str | None,
    normalize: bool,
    ends: Ends,
    whole_words: bool = False,
) -> None:
    """Write `tokenizer.json` of a byte-level BPE.

    Args:
        folder: exists.
        specials: special tokens; their ids follow those of the pieces.
        pattern: what texts are split by before merging; None takes the pattern of GPT-2.
        normalize: whether texts are brought into the NFC form of Unicode first.
        ends: the post-processor, given the tokenizer.
        whole_words: whether a word that is a piece is taken as it is, without merging.
    """
    from tokenizers import Regex, Tokenizer, decoders, normalizers, pre_tokenizers
    from tokenizers.models import BPE
    from tokenizers.trainers import BpeTrainer

    tokenizer = Tokenizer(BPE(ignore_merges=whole_words))
    levels: list[Any] = [
        pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=pattern is None)
    ]
    if pattern is not None:
        levels.insert(0, pre_tokenizers.Split(Regex(pattern), "isolated"))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(levels) if pattern else levels[0]
    tokenizer.decoder = decoders.ByteLevel()
    if normalize:
        tokenizer.normalizer = normalizers.NFC()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = BpeTrainer(
        vocab_size=len(alphabet) + PIECES, initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(corpus(), trainer)
    tokenizer.add_special_tokens(specials)
    tokenizer.post_processor = ends(tokenizer)
    tokenizer.save(str(folder / "tokenizer.json"))


def save_pieces(path: Path, **settings: Any) -> None:
    """Train sentencepiece and write its model to `path`."""
    import sentencepiece

    with path.open("wb") as file:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(corpus()),
            model_writer=file,
            hard_vocab_limit=False,
            minloglevel=2,
            **settings,
        )


def save_qwen(folder: Path) -> None:
    """Byte-level, one digit at a time, without marks at either end."""
    from tokenizers.processors import ByteLevel
    from transformers.models.qwen2.tokenization_qwen2 import PRETOKENIZE_REGEX

    save_byte_level(
        folder,
        specials=["<|endoftext|>", "<|im_start|>", "<|im_end|>"],
        pattern=PRETOKENIZE_REGEX,
        normalize=True,
        ends=lambda _: ByteLevel(trim_offsets=False),
    )
    _save(folder, "Qwen2TokenizerFast", eos_token="<|endoftext|>", pad_token="<|endoftext|>")


def save_llama3(folder: Path) -> None:
    """Byte-level, up to three digits at a time, with a token before each text."""
    from tokenizers.processors import ByteLevel, Sequence, TemplateProcessing
    from transformers.models.qwen2.tokenization_qwen2 import PRETOKENIZE_REGEX

    begin = "<|begin_of_text|>"
    save_byte_level(
        folder,
        specials=[begin, "<|end_of_text|>", "<|eot_id|>"],
        pattern=PRETOKENIZE_REGEX.replace(r"|\p{N}|", r"|\p{N}{1,3}|"),
        normalize=False,
        whole_words=True,
        ends=lambda made: Sequence(
            [
                ByteLevel(trim_offsets=True),
                TemplateProcessing(
                    single=f"{begin} $A",
                    pair=f"{begin} $A {begin}:1 $B:1",
                    special_tokens=[(begin, made.token_to_id(begin))],
                ),
            ]
        ),
    )
    _save(folder, "PreTrainedTokenizerFast", bos_token=begin, eos_token="<|end_of_text|>")


def save_modernbert(folder: Path) -> None:
    """Byte-level as GPT-2, between two marks."""
    from tokenizers import AddedToken
    from tokenizers.processors import TemplateProcessing

    mask = AddedToken("[MASK]", lstrip=True, normalized=False)
    save_byte_level(
        folder,
        specials=["[UNK]", "[CLS]", "[SEP]", "[PAD]", mask],
        pattern=None,
        normalize=True,
        ends=lambda made: TemplateProcessing(
            single="[CLS] $A [SEP]",
            pair="[CLS] $A [SEP] $B:1 [SEP]:1",
            special_tokens=[(name, made.token_to_id(name)) for name in ("[CLS]", "[SEP]")],
        ),
    )
    names = ("unk", "cls", "sep", "pad", "mask")
    tokens = {f"{name}_token": f"[{name.upper()}]" for name in names}
    _save(folder, "PreTrainedTokenizerFast", **tokens)


def save_mistral(folder: Path) -> None:
    """Pieces with a blank before the first, bytes for what has no piece, a mark before a text."""
    from transformers import LlamaTokenizerFast

    save_pieces(
        folder / "tokenizer.model",
        model_type="bpe",
        vocab_size=PIECES + 256 + 3,
        byte_fallback=True,
        split_digits=True,
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
    )
    path = str(folder / "tokenizer.model")
    LlamaTokenizerFast(path, legacy=False, add_prefix_space=True).save_pretrained(folder)


def save_gemma(folder: Path) -> None:
    """Pieces without a blank before the first, bytes for what has no piece."""
    from transformers import GemmaTokenizerFast  # of release 4

    save_pieces(
        folder / "tokenizer.model",
        model_type="bpe",
        vocab_size=PIECES + 256 + 4,
        byte_fallback=True,
        split_digits=True,
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        add_dummy_prefix=False,
        pad_id=0,
        eos_id=1,
        bos_id=2,
        unk_id=3,
        pad_piece="<pad>",
        eos_piece="<eos>",
        bos_piece="<bos>",
    )
    GemmaTokenizerFast(str(folder / "tokenizer.model")).save_pretrained(folder)


def save_xlm_roberta(folder: Path) -> None:
    """Pieces by likelihood, texts brought into the NFKC form of Unicode, between two marks."""
    from transformers import XLMRobertaTokenizerFast  # of release 4

    save_pieces(
        folder / "sentencepiece.bpe.model",
        model_type="unigram",
        vocab_size=PIECES + 3,
        normalization_rule_name="nmt_nfkc",
    )
    XLMRobertaTokenizerFast(str(folder / "sentencepiece.bpe.model")).save_pretrained(folder)


SAVE: dict[str, Callable[[Path], None]] = {
    "qwen": save_qwen,
    "llama3": save_llama3,
    "mistral": save_mistral,
    "gemma": save_gemma,
    "xlm-roberta": save_xlm_roberta,
    "modernbert": save_modernbert,
}
"""Kinds of vocabularies."""


def _save(folder: Path, tokenizer_class: str, **tokens: str) -> None:
    """Write the files beside `tokenizer.json`, in the form that transformers 4 gives them."""
    import transformers

    logging.getLogger("transformers").setLevel(logging.ERROR)
    made = getattr(transformers, tokenizer_class)(
        tokenizer_file=str(folder / "tokenizer.json"),
        model_input_names=["input_ids", "attention_mask"],
        **tokens,
    )
    made.save_pretrained(folder)


def num_tokens(folder: Path) -> int:
    """Ids of the tokenizer in a folder, special tokens included."""
    content = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))
    ids = [entry["id"] for entry in content["added_tokens"]]
    vocabulary = content["model"]["vocab"]
    return max(len(vocabulary), *(i + 1 for i in ids))
