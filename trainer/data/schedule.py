"""Whose turn it is: shares to a low-discrepancy sequence that is computed at any position alone.

Two parties with shares p and 1 - p alternate as a Sturmian word does: after s turns the first has
had ceil(s p), so in any window each is within 1 of its share. More parties are split into two
groups, and so on down a tree; light parties lie deep in it, as in a Huffman code.
"""

import heapq
from collections.abc import Mapping
from dataclasses import dataclass
from fractions import Fraction
from itertools import count


@dataclass(frozen=True)
class Share:
    """A leaf of the tree: who takes the turn."""

    name: str


@dataclass(frozen=True)
class Split:
    """A node of the tree: how turns are dealt to two groups."""

    share: Fraction
    """Of the first group, above 0 and below 1."""
    first: "Schedule"
    second: "Schedule"


Schedule = Share | Split


def make_schedule(shares: Mapping[str, Fraction]) -> Schedule:
    """The tree for some parties.

    Args:
        shares: positive weight of each party; their sum may be anything.
    """
    order = count()
    heap: list[tuple[Fraction, int, Schedule]]
    heap = [(share, -next(order), Share(name)) for name, share in shares.items()]
    heapq.heapify(heap)
    while len(heap) > 1:
        light, _, second = heapq.heappop(heap)
        heavy, _, first = heapq.heappop(heap)
        node = Split(heavy / (heavy + light), first, second)
        heapq.heappush(heap, (heavy + light, -next(order), node))
    return heap[0][2]


def turn_at(turns: Schedule, position: int) -> tuple[str, int]:
    """Who has the turn at a position, and how many turns they had before."""
    while isinstance(turns, Split):
        before = _ceil(position, turns.share)
        if _ceil(position + 1, turns.share) > before:
            turns, position = turns.first, before
        else:
            turns, position = turns.second, position - before
    return turns.name, position


def turns_before(turns: Schedule, position: int) -> dict[str, int]:
    """How many turns each party has in the first `position` turns."""
    if isinstance(turns, Share):
        return {turns.name: position}
    before = _ceil(position, turns.share)
    return turns_before(turns.first, before) | turns_before(turns.second, position - before)


def most_turns(turns: Schedule, window: int) -> dict[str, int]:
    """How many turns each party has at most in any `window` turns that follow each other."""
    if isinstance(turns, Share):
        return {turns.name: window}
    first, second = (_ceil(window, share) for share in (turns.share, 1 - turns.share))
    return most_turns(turns.first, first) | most_turns(turns.second, second)


def _ceil(position: int, share: Fraction) -> int:
    return -(-position * share.numerator // share.denominator)
