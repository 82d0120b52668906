"""What it saves to run an instruction once: texts of chosen lengths behind one instruction.

It must not import torch at the top: the process that starts the measured ones stays light.
"""

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

from bench.docs import SEED, DecoderShape, make_decoder, write_pairs
from bench.jobs import OursJob, Work
from bench.turns import Outcome, Variant, ratio, take_turns

INSTRUCTION_TOKENS = 20
SHORT_TEXTS = (6, 18)
"""Tokens of the shortest and the longest text, its end token among them; 12 on average."""
LONG_TEXTS = (150, 250)
"""The same of long passages; 200 on average."""
WORDS = (
    "of", "the", "and", "to", "in", "is", "for", "that", "with", "as",
    "be", "on", "by", "this", "are", "or", "it", "from", "an", "at",
)  # fmt: skip
"""So frequent that most are one token."""


@dataclass(frozen=True, kw_only=True)
class SharingSizes:
    """How much is measured."""

    shape: DecoderShape
    """Of the model."""
    short_batch: int
    """Queries of a step of short texts on both sides."""
    long_batch: int
    """Queries of a step whose passages are long."""
    chunk_tokens: int
    """`engine.max_tokens_per_chunk`."""
    rounds: int
    """Steps of each variant; the first warms up."""


def compare_sharing(
    sizes: SharingSizes, pairs: Sequence[tuple[str, str]], folder: Path
) -> tuple[dict[str, float], dict[str, Outcome]]:
    """The same steps with `engine.share_prefix` on and off, short texts and long passages.

    Args:
        sizes: of the comparison.
        pairs: texts that words are taken from.
        folder: for the model and the texts.
    """
    model = folder / "base"
    model.mkdir()
    make_decoder(model, sizes.shape, list(pairs))
    pieces = Pieces(model, pairs)
    works = {
        "short": _work(pieces, folder / "short.jsonl", sizes.short_batch, SHORT_TEXTS),
        "long": _work(pieces, folder / "long.jsonl", sizes.long_batch, LONG_TEXTS),
    }
    variants = [
        Variant(
            name=f"{name} texts, share_prefix {share}",
            job=OursJob(work=work, chunk_tokens=sizes.chunk_tokens, share_prefix=share),
        )
        for name, work in works.items()
        for share in ("auto", "off")
    ]
    outcomes = take_turns(variants, num_steps=sizes.rounds, logs=folder)
    shared, plain, long_shared, long_plain = outcomes.values()
    differences = [
        abs(a - b)
        for one, other in ((shared, plain), (long_shared, long_plain))
        for a, b in zip(one.losses, other.losses, strict=True)
    ]
    report = {
        "prefix_token_ratio": shared.facts["run"] / plain.facts["run"],
        "prefix_time_ratio": ratio(shared, plain),
        "prefix_long_time_ratio": ratio(long_shared, long_plain),
        "prefix_loss_difference": max(differences),
    }
    return report, outcomes


def _work(pieces: "Pieces", file: Path, batch_size: int, passages: tuple[int, int]) -> Work:
    """Short queries and passages of the given lengths, as many as a step takes."""
    write_pairs(
        file,
        list(zip(pieces.take(batch_size, SHORT_TEXTS), pieces.take(batch_size, passages),
                 strict=True)),
    )  # fmt: skip
    return Work(
        model=pieces.model,
        pairs=file,
        batch_size=batch_size,
        max_tokens=INSTRUCTION_TOKENS + LONG_TEXTS[1],
        instruction=pieces.instruction,
    )


class Pieces:
    """Texts of chosen numbers of tokens, cut from a long one."""

    def __init__(self, model: Path, pairs: Sequence[tuple[str, str]]) -> None:
        from tokenizers import Tokenizer

        self.model = model
        self.tokenizer = Tokenizer.from_file(str(model / "tokenizer.json"))
        self.words = self._words(pairs)
        self.random = random.Random(SEED)
        self.instruction = self._instruction()

    def take(self, count: int, lengths: tuple[int, int]) -> list[str]:
        """So many texts, their lengths spread evenly."""
        return [self._text(self.random.randint(*lengths)) for _ in range(count)]

    def _words(self, pairs: Sequence[tuple[str, str]]) -> Iterator[str]:
        """All words of the pairs, over and over."""
        words = [word for pair in pairs for word in " ".join(pair).split() if word.isalpha()]
        while True:
            yield from words

    def _text(self, num_tokens: int) -> str:
        """Words that are so many tokens with the end token, or as near as words come to it."""
        text, missing = "", num_tokens
        while True:
            longer = f"{text} {next(self.words)}".strip()
            beyond = len(self.tokenizer.encode(longer).ids) - num_tokens
            if beyond >= 0:
                return longer if not text or beyond < missing else text
            text, missing = longer, -beyond

    def _instruction(self) -> str:
        """Words that are INSTRUCTION_TOKENS tokens, a colon at the end."""
        for count in range(len(WORDS), 0, -1):
            text = f"{' '.join(islice(WORDS, count))}:"
            if len(self.tokenizer.encode(text, add_special_tokens=False).ids) <= INSTRUCTION_TOKENS:
                return text
        raise AssertionError("no word is one token")
