"""Which rank embeds which text, and in which forwards: pure arithmetic on lengths.

Letters: U texts of the step, W ranks.
"""

from dataclasses import dataclass

import numpy as np

WASTE_SHARE = 64
"""A chunk pads at most its token budget over this: about what one more chunk costs in time."""


@dataclass(frozen=True)
class ChunkPlan:
    """The forwards of one step; all ranks have the same number, some may be empty at the end."""

    ranks: tuple[tuple[np.ndarray, ...], ...]
    """Text ids of each chunk of each rank, int64; longest texts first."""
    padded_tokens: int
    """Tokens that pass through the model, padding included, over all ranks."""
    real_tokens: int
    """Tokens without padding, over all ranks."""

    @property
    def num_chunks(self) -> int:
        """Forwards per rank."""
        return len(self.ranks[0])

    @property
    def padding_fraction(self) -> float:
        """Share of the padded tokens that is padding, 0..1."""
        return 1 - self.real_tokens / self.padded_tokens

    def rows(self, rank: int) -> np.ndarray:
        """Text ids of a rank in the order of its chunks [n], int64."""
        return np.concatenate([*self.ranks[rank], np.empty(0, np.int64)])

    @property
    def order(self) -> np.ndarray:
        """The text in each row once the vectors of all ranks are joined [U], int64."""
        return np.concatenate([self.rows(rank) for rank in range(len(self.ranks))])

    @property
    def counts(self) -> list[int]:
        """Number of texts of each rank."""
        return [sum(map(len, chunks)) for chunks in self.ranks]


def plan_chunks(lengths: np.ndarray, *, num_ranks: int, max_tokens: int) -> ChunkPlan:
    """Deal texts to ranks and cut each rank's share into chunks.

    Texts are sorted by length and dealt in rounds of W, the direction changing each round, so ranks
    carry nearly equal tokens whatever the lengths. A chunk is a run of whole rounds: every rank
    cuts at the same rounds, so counts agree without talking. A chunk also ends where its padding
    would pass `max_tokens` / WASTE_SHARE, so full chunks stay under a few per cent of padding.

    Args:
        lengths: tokens of each text [U], int64, at least 1.
        num_ranks: W.
        max_tokens: padded tokens of one chunk of one rank; one longer text is a chunk by itself.

    Returns:
        The plan; the same on every rank.
    """
    order = np.argsort(-lengths, kind="stable").astype(np.int64)
    num_rounds = -(-len(order) // num_ranks)
    dealt: list[list[list[int]]] = [[] for _ in range(num_ranks)]
    start = 0
    while start < num_rounds:
        stop = _end_of_chunk(lengths[order[::num_ranks]], start, max_tokens)
        for rank in range(num_ranks):
            dealt[rank].append(_rows_of(order, rank, start, stop, num_ranks))
        start = stop
    ranks = tuple(tuple(np.array(c, dtype=np.int64) for c in chunks) for chunks in dealt)
    padded = sum(len(c) * int(lengths[c].max()) for chunks in ranks for c in chunks if len(c))
    return ChunkPlan(ranks=ranks, padded_tokens=padded, real_tokens=int(lengths.sum()))


def _end_of_chunk(longest: np.ndarray, start: int, max_tokens: int) -> int:
    """One past the last round of the chunk that starts at round `start`.

    Args:
        longest: tokens of the longest text of each round, descending.
        start: first round.
        max_tokens: padded tokens of a chunk.
    """
    width = int(longest[start])
    rounds = longest[start : start + max(1, max_tokens // width)]
    padding = np.cumsum(width - rounds)
    return start + int(np.searchsorted(padding, max_tokens // WASTE_SHARE, side="right"))


def _rows_of(order: np.ndarray, rank: int, start: int, stop: int, num_ranks: int) -> list[int]:
    """The texts that rank gets in rounds start..stop; odd rounds are dealt backwards."""
    rows = []
    for r in range(start, stop):
        place = rank if r % 2 == 0 else num_ranks - 1 - rank
        if r * num_ranks + place < len(order):
            rows.append(int(order[r * num_ranks + place]))
    return rows
