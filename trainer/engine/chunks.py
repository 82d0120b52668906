"""In which forwards each rank embeds its texts: pure arithmetic on lengths.

Letters: U texts of the step, W ranks.
"""

from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from trainer.data.deal import NO_TEXT, deal

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
    """Cut what `trainer.data.deal` gives each rank into chunks.

    A chunk is a run of whole rounds of the dealing: every rank cuts at the same rounds, so counts
    agree without talking. A chunk also ends where its padding would pass `max_tokens` /
    WASTE_SHARE, so full chunks stay under a few per cent of padding.

    Args:
        lengths: tokens of each text [U], int64, at least 1.
        num_ranks: W.
        max_tokens: padded tokens of one chunk of one rank; one longer text is a chunk by itself.

    Returns:
        The plan; the same on every rank.
    """
    dealt = deal(lengths, num_ranks)
    # the first of a round is its longest in even rounds, the last in odd ones
    longest = lengths[np.where(np.arange(len(dealt)) % 2, dealt[:, -1], dealt[:, 0])]
    starts = [0]
    while starts[-1] < len(dealt):
        starts.append(_end_of_chunk(longest, starts[-1], max_tokens))
    spans = list(pairwise(starts))
    by_rank = np.ascontiguousarray(dealt.T)
    if dealt.size == len(lengths):
        ranks = tuple(tuple(own[start:stop] for start, stop in spans) for own in by_rank)
    else:
        ranks = tuple(tuple(_present(own[start:stop]) for start, stop in spans) for own in by_rank)
    padded = sum(_padded_tokens(dealt[start:stop], lengths) for start, stop in spans)
    return ChunkPlan(ranks=ranks, padded_tokens=padded, real_tokens=int(lengths.sum()))


def _present(texts: np.ndarray) -> np.ndarray:
    """Without the place that the last round left empty."""
    return texts[:-1] if len(texts) and texts[-1] == NO_TEXT else texts


def _padded_tokens(chunk: np.ndarray, lengths: np.ndarray) -> int:
    """Tokens of a chunk of all ranks [rounds, W], each rank's padded to its longest."""
    first = chunk[0]
    counts = (chunk != NO_TEXT).sum(axis=0)
    return int((counts * lengths[first])[first != NO_TEXT].sum())


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
