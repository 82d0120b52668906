"""What is measured against what: plain descriptions that travel to the measured processes.

It must not import torch: the process that starts the others stays light.
"""

from dataclasses import dataclass
from pathlib import Path

TEMPERATURE = 0.05
"""The peer's default scale of 20."""
LEARNING_RATE = 1e-4
MAX_GRAD_NORM = 1.0


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
    instruction: str = ""
    """Before each text of both sides; of this trainer alone."""
    checkpointing: bool = False
    """Recompute activations layer by layer."""


@dataclass(frozen=True, kw_only=True)
class OursJob:
    """This trainer."""

    work: Work
    deepspeed: str = "zero3_fp32.json"
    """A file of `ds_configs/`."""
    gather: str = "step"
    """`step`, `layer` or `chunk`."""
    chunk_tokens: int = 2048
    """`engine.max_tokens_per_chunk`."""
    keep_tokens: int | None = None
    """`engine.keep_graph_tokens`; None is what costs no memory."""
    share_prefix: str = "auto"
    """`engine.share_prefix`."""
    kernels: str = "auto"
    """`engine.kernels`."""


@dataclass(frozen=True, kw_only=True)
class PeerJob:
    """sentence-transformers' CachedMultipleNegativesRankingLoss."""

    work: Work
    mini_batch_size: int = 32
    """Texts of a mini-batch."""
    mini_batch_tokens: int | None = None
    """Real tokens of a mini-batch, in place of a number of texts."""


Job = OursJob | PeerJob
"""What `bench.contestants.make` makes."""
