"""Which rank embeds which text of a step: pure arithmetic on lengths; it must not cut chunks.

Letters: U texts of the step, W ranks, R rounds.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

NO_TEXT = -1
"""Where the last round has no text for a rank."""
SMALL_BITS = 32
"""Numbers of so many bits are sorted in half the time of those of 64."""


@dataclass(frozen=True)
class TextGroup:
    """Texts that are dealt by themselves, as they begin alike."""

    ids: np.ndarray | range
    """Which texts [n], int64, ascending; a range where they follow each other."""
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
    mixed, mask = _longest_first(lengths)
    np.bitwise_and(mixed, mask, out=dealt.reshape(-1)[: len(lengths)], casting="unsafe")
    dealt[1::2] = dealt[1::2, ::-1].copy()
    return dealt


def deal_group(lengths: np.ndarray, group: TextGroup, num_ranks: int) -> np.ndarray:
    """`deal` for the texts of a group among all others; text ids [R, W], int64, or NO_TEXT."""
    dealt = deal(lengths_in(lengths, group), num_ranks)
    if not len(dealt):
        return dealt
    found = _ids_of(group, dealt)
    found[-1, dealt[-1] == NO_TEXT] = NO_TEXT  # no other round has empty places
    return found


def deal_to(
    lengths: np.ndarray, groups: Sequence[TextGroup], ranks: Sequence[int], num_ranks: int
) -> np.ndarray:
    """The texts that `deal_group` gives to some ranks, without those of the others.

    Args:
        lengths: tokens of each text [U], at least 1.
        groups: together all texts once.
        ranks: k of them.
        num_ranks: W.

    Returns:
        The texts of each rank [k, R], int64, ascending; NO_TEXT before them where a rank has
        fewer than others.
    """
    forwards = np.array(ranks, np.int64)[:, None]
    found = [np.empty((len(ranks), 0), np.int64)]
    for group in groups:
        rounds = np.arange(-(-len(group.ids) // num_ranks))
        seats = np.where(rounds % 2, num_ranks - 1 - forwards, forwards)
        place = rounds * num_ranks + seats
        mixed, mask = _longest_first(lengths_in(lengths, group))
        is_text = place < len(mixed)
        own = (mixed[np.where(is_text, place, 0)] & mask).astype(np.int64)
        found.append(np.where(is_text, _ids_of(group, own), NO_TEXT))
    return np.sort(np.concatenate(found, axis=1), axis=1)


def lengths_in(lengths: np.ndarray, group: TextGroup) -> np.ndarray:
    """Of all lengths [U], those of the texts of a group [n]."""
    return _of_texts(lengths, group.ids)


def _of_texts(numbers: np.ndarray, ids: np.ndarray | range) -> np.ndarray:
    """Of a number for each text [U], those of some texts [n]; no copy where these are a range."""
    return numbers[ids.start : ids.stop] if isinstance(ids, range) else numbers[ids]


def _ids_of(group: TextGroup, places: np.ndarray) -> np.ndarray:
    """Texts by their places in a group."""
    return places + group.ids.start if isinstance(group.ids, range) else group.ids[places]


def groups_by_prompt(
    lengths: np.ndarray, prompts: np.ndarray, num_first: Sequence[int]
) -> tuple[TextGroup, ...]:
    """Texts behind each instruction apart, where any begin with one; else all together.

    Args:
        lengths: tokens of each text [U].
        prompts: which instruction stands before each text that is encoded as a query [q], int64;
            these come first, and passages follow.
        num_first: first tokens that each instruction of queries gives, and that of passages.
    """
    if not any(num_first):
        return (TextGroup(range(len(lengths)), 0),)
    num_queries, num_prompts = len(prompts), len(num_first) - 1
    queries: list[np.ndarray | range] = [range(num_queries)]
    if num_prompts > 1:
        queries = [np.flatnonzero(prompts == number) for number in range(num_prompts)]
    return tuple(
        TextGroup(ids, min(shared, int(_of_texts(lengths, ids).min()) - 1))
        for ids, shared in zip((*queries, range(num_queries, len(lengths))), num_first, strict=True)
        if len(ids)
    )


def deal_all(lengths: np.ndarray, groups: Sequence[TextGroup], num_ranks: int) -> np.ndarray:
    """The rounds of one group after another [R, W], int64, or NO_TEXT."""
    rounds = [deal_group(lengths, group, num_ranks) for group in groups]
    return np.concatenate([*rounds, np.empty((0, num_ranks), np.int64)])


def _longest_first(lengths: np.ndarray) -> tuple[np.ndarray, np.unsignedinteger]:
    """Texts from the longest to the shortest, texts of equal length in their own order.

    Returns:
        Numbers [U] that hold a text in some of their bits, and the mask of these bits.
    """
    # length and text in one number, which sorts several times as fast as texts by lengths do
    bits = len(lengths).bit_length()
    shorter = lengths.max(initial=0) - lengths
    is_small = int(shorter.max(initial=0)).bit_length() + bits <= SMALL_BITS
    number = np.uint32 if is_small else np.uint64
    mixed = shorter.astype(number)
    mixed <<= number(bits)
    mixed |= np.arange(len(lengths), dtype=number)
    mixed.sort()
    return mixed, number((1 << bits) - 1)
