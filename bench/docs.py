"""What the step benchmarks train on: docstrings of installed packages, and a decoder for them.

It must not import torch at the top: the process that starts the measured ones stays light.
"""

import json
import random
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from demo.data import VOCABULARY, train_tokenizer
from demo.docs import read_docs, source_files

SEED = 42


@dataclass(frozen=True, kw_only=True)
class DecoderShape:
    """Sizes of a Qwen3-style decoder."""

    hidden_size: int = 256
    """Elements of a token's state."""
    num_layers: int = 6
    """Decoder layers."""
    inner_size: int = 768
    """Elements inside the MLP."""
    num_heads: int = 4
    """Query heads; half as many key and value heads."""


def collect_pairs(count: int) -> list[tuple[str, str]]:
    """Distinct (summary, rest of the docstring), from source files in a seeded order.

    Raises:
        SystemExit: if the installed packages hold fewer.
    """
    files = list(source_files())
    random.Random(SEED).shuffle(files)
    pairs: dict[str, tuple[str, str]] = {}
    summaries: set[str] = set()
    for file in files:
        for doc in read_docs(file):
            if doc.summary not in summaries and doc.text not in pairs:
                summaries.add(doc.summary)
                pairs[doc.text] = (doc.summary, doc.text)
        if len(pairs) >= count:
            return list(pairs.values())[:count]
    raise SystemExit(f"docstrings = {len(pairs)}; expected at least {count}. Ask for fewer.")


def write_pairs(path: Path, pairs: list[tuple[str, str]]) -> None:
    """The pairs in the trainer's own format."""
    rows = ({"query": query, "positives": [text]} for query, text in pairs)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def make_decoder(folder: Path, shape: DecoderShape, pairs: list[tuple[str, str]]) -> None:
    """A tokenizer trained on the pairs and a decoder with seeded random weights."""
    train_tokenizer((text for pair in pairs for text in pair), folder)
    save_random_model(decoder_config(shape), folder, dtype="float32")


def decoder_config(shape: DecoderShape) -> Any:
    """Of a Qwen3-style decoder with tied embeddings."""
    from transformers import Qwen3Config

    return Qwen3Config(
        vocab_size=VOCABULARY,
        hidden_size=shape.hidden_size,
        intermediate_size=shape.inner_size,
        num_hidden_layers=shape.num_layers,
        num_attention_heads=shape.num_heads,
        num_key_value_heads=shape.num_heads // 2,
        head_dim=shape.hidden_size // shape.num_heads,
        max_position_embeddings=512,
        initializer_range=shape.hidden_size**-0.5,
        tie_word_embeddings=True,
        eos_token_id=0,
        pad_token_id=0,
    )


def save_random_model(config: Any, folder: Path, *, dtype: str) -> None:
    """Seeded random weights as an ordinary model folder."""
    import torch
    from transformers import AutoModel
    from transformers.utils.logging import disable_progress_bar

    disable_progress_bar()
    torch.manual_seed(SEED)
    AutoModel.from_config(config, dtype=getattr(torch, dtype)).save_pretrained(folder)
