"""Sizes of the parts of the step benchmark.

It must not import torch: the process that starts the others stays light.
"""

from dataclasses import dataclass

from bench.docs import DecoderShape
from bench.llm import SMOLLM2
from bench.prefix import SharingSizes


@dataclass(frozen=True, kw_only=True)
class Scale:
    """Sizes of all parts."""

    rounds: int
    """Steps of each variant; the first warms up."""
    num_pairs: int
    """Distinct pairs of texts."""
    peer_shape: DecoderShape
    """Model of `peer`."""
    peer_batch: int
    """Queries of a step there."""
    peer_max_tokens: int
    """Longest text there."""
    chunk_tokens: int
    """Our chunk there."""
    peer_rows: tuple[int, ...]
    """`mini_batch_size` of the peer."""
    peer_tokens: tuple[int, ...]
    """`mini_batch_num_tokens` of the peer."""
    zero3_shape: DecoderShape
    """Model of `zero3`."""
    zero3_tokens: int
    """Tokens of each text there; all are longer and cut, so that chunks hold no padding."""
    zero3_rows: int
    """Texts of a chunk there."""
    zero3_chunks: int
    """Chunks of a rank there."""
    growth_shape: DecoderShape
    """Model of `growth`."""
    growth_batches: tuple[int, int]
    """Queries of the small and of the large step there."""
    growth_tokens: int
    """Longest text there."""
    growth_chunk: int
    """Chunk there, tokens."""
    llm_batch: int
    """Queries of a step of `llm`."""
    llm_max_tokens: int
    """Longest text there."""
    llm_chunk: int
    """Our chunk there, tokens."""
    llm_rows: tuple[int, ...]
    """`mini_batch_size` of the peer there."""
    llm_tokens: tuple[int, ...]
    """`mini_batch_num_tokens` of the peer there."""
    prefix: SharingSizes
    """Of the part of that name."""
    llm_base: str = SMOLLM2
    """Model there, as a recipe names it."""


FULL = Scale(
    rounds=4,
    num_pairs=4096,
    peer_shape=DecoderShape(hidden_size=256, num_layers=4, inner_size=512),
    peer_batch=256,
    peer_max_tokens=256,
    chunk_tokens=768,
    peer_rows=(8, 32),
    peer_tokens=(2048, 8192),
    zero3_shape=DecoderShape(hidden_size=256, num_layers=6, inner_size=768),
    zero3_tokens=32,
    zero3_rows=16,
    zero3_chunks=16,
    growth_shape=DecoderShape(hidden_size=256, num_layers=4, inner_size=512),
    growth_batches=(256, 4096),
    growth_tokens=16,
    growth_chunk=4096,
    llm_batch=32,
    llm_max_tokens=128,
    llm_chunk=256,
    llm_rows=(8, 16, 32),
    llm_tokens=(2048,),
    prefix=SharingSizes(
        shape=DecoderShape(hidden_size=256, num_layers=4, inner_size=512),
        short_batch=128,
        long_batch=32,
        chunk_tokens=2048,
        rounds=5,
    ),
)
QUICK = Scale(
    rounds=2,
    num_pairs=96,
    peer_shape=DecoderShape(hidden_size=32, num_layers=2, inner_size=48),
    peer_batch=16,
    peer_max_tokens=32,
    chunk_tokens=128,
    peer_rows=(8,),
    peer_tokens=(64,),
    zero3_shape=DecoderShape(hidden_size=32, num_layers=2, inner_size=48),
    zero3_tokens=8,
    zero3_rows=2,
    zero3_chunks=4,
    growth_shape=DecoderShape(hidden_size=32, num_layers=2, inner_size=48),
    growth_batches=(4, 64),
    growth_tokens=8,
    growth_chunk=32,
    llm_batch=2,
    llm_max_tokens=12,
    llm_chunk=16,
    llm_rows=(2,),
    llm_tokens=(16,),
    prefix=SharingSizes(
        shape=DecoderShape(hidden_size=32, num_layers=2, inner_size=48),
        short_batch=16,
        long_batch=4,
        chunk_tokens=1024,
        rounds=2,
    ),
)
