"""In which forwards each rank embeds its texts: pure arithmetic on lengths.

Letters: U texts of the step, W ranks, R rounds of the dealing, P tokens that the texts of a chunk
share.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from trainer.data.deal import NO_TEXT, TextGroup, deal_group
from trainer.engine.common_prefix import group_by_prefix, is_worth_sharing
from trainer.model.shared_prefix import COPY_SHARE

WASTE_SHARE = 64
"""A chunk pads at most its token budget over this: about what one more chunk costs in time."""

LEAST_CHUNK_COST = 16
"""Tokens whose time one more chunk costs, however small."""


@dataclass(frozen=True)
class ChunkPlan:
    """The forwards of one step; all ranks have the same number, some may be empty."""

    ranks: tuple[tuple[np.ndarray, ...], ...]
    """Text ids of each chunk of each rank, int64; longest texts first."""
    num_shared: tuple[int, ...]
    """Of each chunk, first tokens that its texts have in common and that run once."""
    padded_tokens: int
    """Tokens that pass through the model, padding included, over all ranks."""
    real_tokens: int
    """Tokens of the texts without padding, over all ranks."""
    saved_tokens: int
    """Of these, how many do not pass through the model, as another text's do."""

    @property
    def num_chunks(self) -> int:
        """Forwards per rank."""
        return len(self.ranks[0])

    @property
    def padding_fraction(self) -> float:
        """Share of the padded tokens that is padding, 0..1."""
        return 1 - (self.real_tokens - self.saved_tokens) / self.padded_tokens

    @property
    def shared_fraction(self) -> float:
        """Share of the real tokens that do not pass through the model, 0..1."""
        return self.saved_tokens / self.real_tokens

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


@dataclass(frozen=True)
class _Cut:
    """One chunk of all ranks."""

    rounds: np.ndarray
    """Text ids [rounds, W], int64, or NO_TEXT in the last round."""
    longest: int
    """Tokens of the longest text."""
    num_shared: int
    """P."""

    def rows(self, rank: int) -> np.ndarray:
        """Text ids of a rank, int64."""
        own = self.rounds[:, rank]
        return own[:-1] if len(own) and own[-1] == NO_TEXT else own


def plan_shared(token_ids: Sequence[np.ndarray], *, num_ranks: int, max_tokens: int) -> ChunkPlan:
    """A plan in which texts that begin alike share their first tokens, where that is less work.

    Args:
        token_ids: U arrays of int32 [length], length at least 1.
        num_ranks: W.
        max_tokens: as of `plan_chunks`.

    Returns:
        The plan; the same on every rank.
    """
    # a group of its own is about one more chunk of each rank
    least_saved = num_ranks * max(LEAST_CHUNK_COST, max_tokens // WASTE_SHARE)
    lengths = np.array([len(ids) for ids in token_ids], dtype=np.int64)
    groups = group_by_prefix(token_ids, least_saved=least_saved)
    return plan_groups(lengths, groups, num_ranks=num_ranks, max_tokens=max_tokens)


def plan_chunks(lengths: np.ndarray, *, num_ranks: int, max_tokens: int) -> ChunkPlan:
    """Cut what `trainer.data.deal` gives each rank into chunks.

    A chunk is a run of whole rounds of the dealing: every rank cuts at the same rounds, so counts
    agree without talking. A chunk also ends where its padding would pass `max_tokens` /
    WASTE_SHARE, so full chunks stay under a few per cent of padding.

    Args:
        lengths: tokens of each text [U], int32 or int64, at least 1.
        num_ranks: W.
        max_tokens: padded tokens of one chunk of one rank; one longer text is a chunk by itself.

    Returns:
        The plan, in which no tokens are shared; the same on every rank.
    """
    groups = [TextGroup(range(len(lengths)), 0)]
    return plan_groups(lengths, groups, num_ranks=num_ranks, max_tokens=max_tokens)


def plan_groups(
    lengths: np.ndarray, groups: Sequence[TextGroup], *, num_ranks: int, max_tokens: int
) -> ChunkPlan:
    """Cut the texts of each group by themselves.

    Args:
        lengths: tokens of each text [U], int32 or int64, at least 1.
        groups: together all texts once.
        num_ranks: W.
        max_tokens: as of `plan_chunks`.
    """
    cuts = [cut for group in groups for cut in _cuts(lengths, group, num_ranks, max_tokens)]
    cuts.sort(key=lambda cut: -cut.longest)
    padded = saved = 0
    for cut in cuts:
        counts, first = (cut.rounds != NO_TEXT).sum(axis=0), cut.rounds[0]
        # a rank's first text is its longest; one alone shares nothing
        shared = np.where(counts > 1, cut.num_shared, 0)
        padded += int((shared + counts * (lengths[first] - shared))[first != NO_TEXT].sum())
        saved += int((shared * (counts - 1))[counts > 0].sum())
    return ChunkPlan(
        ranks=tuple(tuple(cut.rows(rank) for cut in cuts) for rank in range(num_ranks)),
        num_shared=tuple(cut.num_shared for cut in cuts),
        padded_tokens=padded,
        real_tokens=int(lengths.sum()),
        saved_tokens=saved,
    )


def _cuts(lengths: np.ndarray, group: TextGroup, num_ranks: int, max_tokens: int) -> list[_Cut]:
    """The chunks of a group's texts."""
    dealt = deal_group(lengths, group, num_ranks)
    # the first of a round is its longest in even rounds, the last in odd ones
    longest = lengths[np.where(np.arange(len(dealt)) % 2, dealt[:, -1], dealt[:, 0])]
    cuts, start = [], 0
    while start < len(longest):
        stop, num_shared = _end_of_chunk(longest, start, max_tokens, group.num_shared)
        cuts.append(_Cut(dealt[start:stop], int(longest[start]), num_shared))
        start = stop
    return cuts


def _end_of_chunk(
    longest: np.ndarray, start: int, max_tokens: int, num_shared: int
) -> tuple[int, int]:
    """One past the last round of the chunk that starts at round `start`, and what it shares.

    Args:
        longest: tokens of the longest text of each round, descending.
        start: first round.
        max_tokens: padded tokens of a chunk.
        num_shared: first tokens that all texts have in common.
    """
    width = int(longest[start])
    fitting = _fitting(width, max_tokens, num_shared)
    rounds = longest[start : start + fitting]
    if num_shared and not is_worth_sharing(
        num_texts=len(rounds), length=width, num_shared=num_shared
    ):
        return _end_of_chunk(longest, start, max_tokens, 0)
    padding = np.cumsum(width - rounds)
    stop = start + int(np.searchsorted(padding, max_tokens // WASTE_SHARE, side="right"))
    return stop, num_shared


def _fitting(width: int, max_tokens: int, num_shared: int) -> int:
    """Texts of `width` tokens that a chunk holds, one at least."""
    # whole numbers: a text counts its own tokens, and of the shared ones one in COPY_SHARE
    size = COPY_SHARE * (width - num_shared) + num_shared
    return max(1, COPY_SHARE * (max_tokens - num_shared) // size)
