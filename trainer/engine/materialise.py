"""From chunk plans to padded tensors on the device."""

import hashlib
from collections.abc import Sequence

import numpy as np
import torch

from trainer.data.batch import Texts
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
    """Tokens of each text [U], int64."""
    return texts.lengths


def make_chunks(
    texts: Texts, plan: Sequence[np.ndarray], *, key: int, device: torch.device
) -> list[Chunk]:
    """Pad each chunk of a plan on the right.

    Args:
        texts: the distinct texts of the step.
        plan: text ids of each chunk; may hold empty ones.
        key: from `step_key`.
        device: where the tensors go.
    """
    return [_make_chunk(texts, ids, key=key, device=device) for ids in plan]


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
