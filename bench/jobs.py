"""What is measured against what: plain descriptions that travel to the measured processes.

It must not import torch: the process that starts the others stays light.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

TEMPERATURE = 0.05
"""The peer's default scale of 20."""
LEARNING_RATE = 1e-4
MAX_GRAD_NORM = 1.0


class Contestant(Protocol):
    """A model with its optimizer, ready to take steps."""

    def prepare(self, index: int) -> None:
        """Tokenise the batch of a step; not timed, as loaders do it ahead."""

    def step(self, index: int) -> float:
        """Take an optimizer step on a prepared batch; returns its loss."""

    def facts(self) -> dict[str, float]:
        """What else is worth showing."""


class Job(Protocol):
    """How to make a contestant."""

    def build(self) -> Contestant:
        """Load model, optimizer and texts, in the process that is measured."""


@dataclass(frozen=True, kw_only=True)
class Work:
    """The model and the texts, the same for all."""

    model: Path
    """An ordinary model folder with its tokenizer."""
    pairs: Path
    """`query, positives` line by line; step i takes the i-th batch of lines."""
    batch_size: int
    """Queries of a step over all ranks."""
    max_tokens: int
    """Longest text."""
    dtype: str = "float32"
    """Of weights and activations: `float32` or `bfloat16`."""
    lora_rank: int = 0
    """Inner size of adapters on all linear maps; 0 trains all parameters."""
    kernel: str = "sdpa"
    """Attention as transformers names it."""
    checkpointing: bool = False
    """Recompute activations layer by layer."""


@dataclass(frozen=True, kw_only=True)
class OursJob:
    """This trainer."""

    work: Work
    deepspeed: str = "zero3_fp32.json"
    """A file of `ds_configs/`."""
    gather: str = "step"
    """`step`, `chunk` or `interleaved`."""
    chunk_tokens: int = 2048
    """`engine.max_tokens_per_chunk`."""
    keep_tokens: int | None = None
    """`engine.keep_graph_tokens`; None is the recipe's default, one chunk's worth."""

    def build(self) -> Contestant:
        """See `Job.build`."""
        from bench.contestants import Ours

        return Ours(self)


@dataclass(frozen=True, kw_only=True)
class PeerJob:
    """sentence-transformers' CachedMultipleNegativesRankingLoss."""

    work: Work
    mini_batch_size: int = 32
    """Texts of a mini-batch."""
    mini_batch_tokens: int | None = None
    """Real tokens of a mini-batch, in place of a number of texts."""

    def build(self) -> Contestant:
        """See `Job.build`."""
        from bench.contestants import Peer

        return Peer(self)
