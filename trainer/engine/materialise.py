"""From chunk plans to padded tensors on the device."""

import hashlib
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch

from trainer.data.batch import Texts
from trainer.engine.chunks import ChunkPlan, plan_chunks, plan_groups, plan_shared
from trainer.model.embedder import Chunk


def torch_seed(seed: int) -> int:
    """The recipe's seed as 32 bits, all that torch's generator on a CPU takes in; a hash above."""
    if seed >> 32 == 0:
        return seed
    return int.from_bytes(hashlib.blake2b(str(seed).encode(), digest_size=4).digest())


def step_key(seed: int, step: int) -> int:
    """One number for all randomness of a step."""
    return torch_seed(seed) * 1_000_003 + step


def lengths_of(texts: Texts) -> np.ndarray:
    """Tokens of each text [U], int32."""
    return texts.lengths


def plan_texts(texts: Texts, *, num_ranks: int, max_tokens: int, share: bool) -> ChunkPlan:
    """The chunks of some texts; the same on every rank.

    Args:
        texts: with their tokens.
        num_ranks: ranks that they are dealt to.
        max_tokens: padded tokens of one chunk of one rank.
        share: whether the model can run the common first tokens of a chunk's texts once.
    """
    if texts.groups is not None:
        groups = [replace(one, num_shared=one.num_shared if share else 0) for one in texts.groups]
        return plan_groups(texts.lengths, groups, num_ranks=num_ranks, max_tokens=max_tokens)
    if share:
        return plan_shared(texts.token_ids, num_ranks=num_ranks, max_tokens=max_tokens)
    return plan_chunks(lengths_of(texts), num_ranks=num_ranks, max_tokens=max_tokens)


def make_chunks(
    texts: Texts,
    plan: Sequence[np.ndarray],
    *,
    key: int,
    device: torch.device,
    num_shared: Sequence[int] | None = None,
) -> list[Chunk]:
    """Pad each chunk of a plan on the right.

    Args:
        texts: the distinct texts of the step.
        plan: text ids of each chunk; may hold empty ones.
        key: from `step_key`.
        device: where the tensors go.
        num_shared: of a plan, first tokens that the texts of each chunk share, or fewer where a
            text joins the last of them; None: none.
    """
    chunks = [_make_chunk(texts, ids, key=key, device=device) for ids in plan]
    if num_shared is None:
        return chunks
    return [
        replace(chunk, num_shared=_num_alike(texts, ids, shared)) if chunk.num_texts > 1 else chunk
        for chunk, ids, shared in zip(chunks, plan, num_shared, strict=True)
    ]


def _num_alike(texts: Texts, ids: np.ndarray, most: int) -> int:
    """How many first tokens texts have in common, at most `most`, which each of them has."""
    heads = np.stack([texts.token_ids[int(text)][:most] for text in ids])
    different = (heads != heads[0]).any(axis=0)
    return int(different.argmax()) if different.any() else most


def _make_chunk(texts: Texts, ids: np.ndarray, *, key: int, device: torch.device) -> Chunk:
    """One padded chunk; [0, 0] tokens for no ids."""
    found = [texts.token_ids[int(i)] for i in ids]
    lengths = np.array([len(one) for one in found], dtype=np.int64)
    longest = int(lengths.max(initial=0))
    padded = np.zeros((len(ids), longest), dtype=np.int64)
    for row, one in enumerate(found):
        padded[row, : len(one)] = one
    prompts = texts.num_prompt_tokens[ids]
    return Chunk(
        input_ids=torch.from_numpy(padded).to(device, non_blocking=True),
        lengths=torch.from_numpy(lengths).to(device, non_blocking=True),
        prompt_lengths=torch.from_numpy(np.ascontiguousarray(prompts)).to(device),
        text_keys=torch.from_numpy(np.ascontiguousarray(ids)).to(device),
        random_seed=key * 65_537 + (int(ids[0]) if len(ids) else 0),
        has_padding=bool((lengths < longest).any()),
    )
