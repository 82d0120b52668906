"""Embed any list of texts on all ranks together, for evaluation and export."""

from collections.abc import Sequence
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from trainer.data.batch import Texts
from trainer.data.tokens import TextEncoder
from trainer.distributed.group import Ranks
from trainer.distributed.rows import gather_rows
from trainer.engine.materialise import make_chunks, plan_texts
from trainer.model.embedder import Chunk


class ChunkEmbedder(Protocol):
    """Runs a model without gradient: a gradient cache, or a plain model."""

    @property
    def shares_prefix(self) -> bool:
        """Whether chunks may be given whose texts share their first tokens."""
        ...

    def embed(self, chunks: Sequence[Chunk]) -> Tensor:
        """Vectors of all texts of the chunks, in order [n, H], float32."""
        ...


def embed_texts(
    texts: Sequence[str],
    *,
    instruction: str,
    max_tokens: int,
    encoder: TextEncoder,
    grad_cache: ChunkEmbedder,
    ranks: Ranks,
    chunk_tokens: int,
) -> Tensor:
    """Vectors of texts, each rank embedding its share.

    Args:
        texts: n texts, the same on all ranks.
        instruction: put before each.
        max_tokens: longest text with instruction and end token.
        encoder: of the run.
        grad_cache: runs the model.
        ranks: this process.
        chunk_tokens: padded tokens of one forward on one rank.

    Returns:
        Vectors [n, H], float32, norm 1, on this rank's device, equal on all ranks.
    Collective: yes.
    """
    encoded = encoder.encode(texts, instruction=instruction, max_tokens=max_tokens)
    prompts = np.full(len(texts), encoded.num_prompt_tokens, dtype=np.int64)
    distinct = Texts(token_ids=tuple(encoded.token_ids), num_prompt_tokens=prompts)
    return embed_tokens(distinct, model=grad_cache, ranks=ranks, chunk_tokens=chunk_tokens)


def embed_tokens(texts: Texts, *, model: ChunkEmbedder, ranks: Ranks, chunk_tokens: int) -> Tensor:
    """Vectors of tokenised texts, each rank embedding its share.

    Args:
        texts: n texts, the same on all ranks; equal ones may be among them.
        model: runs the model.
        ranks: this process.
        chunk_tokens: padded tokens of one forward on one rank.

    Returns:
        Vectors [n, H], float32, norm 1, on this rank's device, equal on all ranks.
    Collective: yes.
    """
    plan = plan_texts(
        texts,
        num_ranks=ranks.world_size,
        max_tokens=chunk_tokens,
        share=model.shares_prefix,
    )
    own = plan.ranks[ranks.rank]
    chunks = make_chunks(texts, own, key=0, device=ranks.device, num_shared=plan.num_shared)
    gathered = gather_rows(model.embed(chunks), counts=plan.counts)
    # rank order -> text order [n, H]
    return gathered[torch.from_numpy(np.argsort(plan.order)).to(ranks.device)]
