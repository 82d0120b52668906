"""Which rank embeds which text of a step: pure arithmetic on lengths; it must not cut chunks.

Letters: U texts of the step, W ranks, R rounds.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

NO_TEXT = -1
"""Where the last round has no text for a rank."""
MAX_RADIX = 1 << 16
"""numpy sorts 16-bit numbers by radix, in time that does not depend on their order."""


@dataclass(frozen=True)
class TextGroup:
    """Texts that are dealt by themselves, as they begin alike."""

    ids: np.ndarray
    """Which texts [n], int64, ascending."""
    num_shared: int
    """Tokens that all of them begin with; less than the length of each."""


def deal(lengths: np.ndarray, num_ranks: int) -> np.ndarray:
    """Deal texts to ranks in rounds, longest first, the direction changing each round.

    So ranks carry nearly equal tokens whatever the lengths.

    Args:
        lengths: tokens of each text [U], int64, at least 1.
        num_ranks: W.

    Returns:
        The text of each rank in each round [R, W], int64, or NO_TEXT in the last round; texts of
        equal length in their own order. The same on every rank.
    """
    num_rounds = -(-len(lengths) // num_ranks)
    dealt = np.full((num_rounds, num_ranks), NO_TEXT, np.int64)
    dealt.reshape(-1)[: len(lengths)] = _longest_first(lengths)
    dealt[1::2] = dealt[1::2, ::-1].copy()
    return dealt


def deal_group(lengths: np.ndarray, group: TextGroup, num_ranks: int) -> np.ndarray:
    """`deal` for the texts of a group among all others; text ids [R, W], int64, or NO_TEXT."""
    dealt = deal(lengths[group.ids], num_ranks)
    if not len(dealt):
        return dealt
    found = group.ids[dealt]
    found[-1, dealt[-1] == NO_TEXT] = NO_TEXT  # no other round has empty places
    return found


def groups_by_prompt(
    lengths: np.ndarray, prompts: np.ndarray, num_first: Sequence[int]
) -> tuple[TextGroup, ...]:
    """Texts behind each instruction apart, where any begin with one; else all together.

    Args:
        lengths: tokens of each text [U], int64.
        prompts: which instruction stands before each [U], int64.
        num_first: first tokens that each instruction gives.
    """
    if not any(num_first):
        return (TextGroup(np.arange(len(lengths)), 0),)
    parts = (np.flatnonzero(prompts == number) for number in range(len(num_first)))
    return tuple(
        TextGroup(ids, min(shared, int(lengths[ids].min()) - 1))
        for ids, shared in zip(parts, num_first, strict=True)
        if len(ids)
    )


def deal_all(lengths: np.ndarray, groups: Sequence[TextGroup], num_ranks: int) -> np.ndarray:
    """The rounds of one group after another [R, W], int64, or NO_TEXT."""
    rounds = [deal_group(lengths, group, num_ranks) for group in groups]
    return np.concatenate([*rounds, np.empty((0, num_ranks), np.int64)])


def _longest_first(lengths: np.ndarray) -> np.ndarray:
    """Texts from the longest to the shortest, stable [U]."""
    shorter = lengths.max(initial=0) - lengths
    if shorter.max(initial=0) < MAX_RADIX:
        shorter = shorter.astype(np.uint16)
    return np.argsort(shorter, kind="stable")
