"""Fill `parity.json`: its texts tokenised as in training, and what a model makes of them.

It must not know how the model is held: whole, or partitioned over ranks.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from importlib.metadata import version
from itertools import chain, repeat

import numpy as np
from torch import Tensor

from trainer.data.batch import Texts
from trainer.data.prompts import INSTRUCTION, TEXT
from trainer.data.tokens import TextEncoder
from trainer.distributed.group import Ranks
from trainer.engine.embed import ChunkEmbedder, embed_tokens
from trainer.errors import DataError
from trainer.export.parity_file import Parity, ParitySettings, ParityText
from trainer.export.parity_texts import LONGEST_TOKENS, NUM_TEXTS, TEXTS, ordered_texts

LIBRARIES = ("torch", "transformers", "tokenizers", "numpy")
"""Whose releases shape the numbers."""


@dataclass(frozen=True, kw_only=True)
class ParityModel:
    """What the vectors are made of; the same on all ranks."""

    prompts: Mapping[str, str]
    """Of the exported folder, by name."""
    encoder: TextEncoder
    """Of the run, or of a folder."""
    max_tokens: int
    """Longest text."""
    pooling: str
    """Of the recipe."""
    attention: str
    """Of the recipe."""
    dtype: str
    """Of the weights."""


@dataclass(frozen=True)
class _Chosen:
    """A text with its prompt, tokenised."""

    prompt_name: str | None
    prompt: str
    text: str
    token_ids: np.ndarray
    num_prompt_tokens: int


def make_parity(
    made_of: ParityModel, model: ChunkEmbedder, ranks: Ranks, *, chunk_tokens: int
) -> Parity | None:
    """Vectors of the texts by a model, each rank embedding its share.

    Args:
        made_of: prompts, tokenizer and limit.
        model: runs the model.
        ranks: this process.
        chunk_tokens: padded tokens of one forward on one rank.

    Returns:
        What the file holds, equal on all ranks; None if the tokenizer takes none of the texts.
    Collective: yes.
    """
    limit = min(made_of.max_tokens, LONGEST_TOKENS)
    chosen = _choose(made_of, limit)
    if not chosen:
        return None
    texts = Texts(
        token_ids=tuple(text.token_ids for text in chosen),
        num_prompt_tokens=np.array([text.num_prompt_tokens for text in chosen], np.int64),
    )
    vectors = embed_tokens(texts, model=model, ranks=ranks, chunk_tokens=chunk_tokens)
    settings = ParitySettings(
        pooling=made_of.pooling,
        attention=made_of.attention,
        dtype=made_of.dtype,
        max_tokens=limit,
        dimensions=vectors.shape[1],
        include_prompt=made_of.encoder.pool_instruction,
        end_token=_end_token(made_of.encoder),
        libraries={name: version(name) for name in LIBRARIES},
    )
    return Parity(settings=settings, texts=_filled(chosen, vectors))


def _filled(chosen: Sequence[_Chosen], vectors: Tensor) -> tuple[ParityText, ...]:
    """The texts with their vectors [n, D]."""
    rows = vectors.float().cpu().numpy()
    return tuple(
        ParityText(
            prompt_name=text.prompt_name,
            prompt=text.prompt,
            text=text.text,
            token_ids=tuple(text.token_ids.tolist()),
            vector=row,
        )
        for text, row in zip(chosen, rows, strict=True)
    )


def _choose(made_of: ParityModel, limit: int) -> list[_Chosen]:
    """Texts that the tokenizer and the model take, prompts in turn before them.

    There are as many as prompts if these are more than the file's usual number of texts.
    """
    # prompts of a folder are rendered: nothing is left of the recipe's template
    encoder = replace(made_of.encoder, template=INSTRUCTION + TEXT)
    prompts: list[tuple[str | None, str]] = [(None, ""), *made_of.prompts.items()]
    wanted = max(NUM_TEXTS, len(prompts))
    chosen: list[_Chosen] = []
    for text in chain.from_iterable(repeat(ordered_texts(limit), wanted)):
        if len(chosen) == wanted:
            break
        name, prompt = prompts[len(chosen) % len(prompts)]
        try:
            encoded = encoder.encode([text], instruction=prompt, max_tokens=limit)
        except DataError:  # a token that the tokenizer or the model lacks, or no room for text
            continue
        ids, num_prompt = encoded.token_ids[0], encoded.num_prompt_tokens
        chosen.append(_Chosen(name, prompt, text, ids, num_prompt))
    return chosen


def _end_token(encoder: TextEncoder) -> int | None:
    """The last special token behind a text, by its ids with and without special tokens."""
    encoder.tokenizer.no_truncation()
    bare = encoder.tokenizer.encode(TEXTS[0], add_special_tokens=False).ids
    whole = encoder.tokenizer.encode(TEXTS[0]).ids
    behind = next(
        (
            whole[start + len(bare) :]
            for start in range(len(whole) - len(bare) + 1)
            if whole[start : start + len(bare)] == bare
        ),
        [],
    )
    return behind[-1] if behind else None
