"""The distinct texts of a step whose source was tokenised ahead; equal tokens are one text.

It reads lengths and digests of all texts of the step, and token ids of one rank's only.
"""

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from trainer.data.batch import OwnIds, Texts
from trainer.data.deal import groups_by_side, texts_of_rank
from trainer.data.known_positives import ABSENT
from trainer.data.teacher_vectors import TeacherVectors
from trainer.data.token_store import TokenStore, take_pairs


@dataclass(frozen=True, kw_only=True)
class SlotTable:
    """Texts by what is embedded of them, as `TextTable` has them, from a store of tokens."""

    store: TokenStore
    """Tokens of the source."""
    rank: int
    """The rank whose token ids are read."""
    num_ranks: int
    """Ranks that the texts of a step are dealt to."""
    teacher: TeacherVectors | None = None
    """Has a vector of every text; None: no vectors are wanted."""
    num_first: tuple[int, int] = (0, 0)
    """First tokens that the instruction gives to queries and to passages."""

    def distinct(
        self, added: np.ndarray, asked: np.ndarray, *, num_queries: int
    ) -> tuple[Texts, np.ndarray, np.ndarray]:
        """Number what is embedded, in the order in which it comes first.

        Args:
            added: slots of all texts that are embedded [n], int64.
            asked: slots of texts that may equal one of these [m], int64.
            num_queries: how many of `added` are encoded as queries; they come first.

        Returns:
            The texts, the index of each added slot [n], int64, and the index of each asked slot or
            ABSENT [m], int64.

        Raises:
            DataError: if token ids are not those that were written.
        """
        store = self.store
        number, first = number_digests(store.digests(np.concatenate([added, asked])))
        index, found = number[: len(added)], number[len(added) :]
        total = int(index.max()) + 1
        slots = added[first[:total]]
        lengths = store.lengths(slots)
        is_query = np.zeros(total, bool)
        is_query[index[:num_queries]] = True
        groups = groups_by_side(lengths, is_query, self.num_first)
        own = texts_of_rank(lengths, groups, rank=self.rank, num_ranks=self.num_ranks)
        ids, ends = store.read(slots[own])
        teacher = self.teacher
        texts = Texts(
            token_ids=OwnIds(lengths=lengths, own=own, ids=ids, ends=ends),
            num_prompt_tokens=np.where(is_query, *store.num_prompt_tokens),
            groups=groups,
            teacher_vectors=None if teacher is None else teacher.of_keys(store.keys(slots)),
        )
        return texts, index, np.where(found < total, found, ABSENT)


class Numbered(NamedTuple):
    """Numbers from 0 for equal digests, in the order in which they come first."""

    number: np.ndarray
    """Of each digest [n], int64."""
    first: np.ndarray
    """Where each number comes first, ascending, int64."""


def number_digests(digests: np.ndarray) -> Numbered:
    """Number digests of 128 bits [n, 2], uint64."""
    again, earlier = _repeats(digests)
    is_first = np.ones(len(digests), bool)
    is_first[again] = False
    number = np.cumsum(is_first, dtype=np.int64)
    number -= 1
    number[again] = number[earlier]
    return Numbered(number, np.flatnonzero(is_first))


def _repeats(digests: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Places of digests that are there before, and the first place of each of these [m], int64."""
    total = len(digests)
    # digest and place in one number, which sorts several times as fast as places by digests do
    bits = np.uint64(total.bit_length())
    mixed = np.sort(digests[:, 0] >> bits << bits | np.arange(total, dtype=np.uint64))
    mask = (np.uint64(1) << bits) - np.uint64(1)
    same = np.flatnonzero(mixed[1:] >> bits == mixed[:-1] >> bits) + 1
    again, earlier = (mixed[at] & mask for at in (same, _run_starts(same)))
    again, earlier = again.astype(np.int64), earlier.astype(np.int64)
    if np.array_equal(take_pairs(digests, again), take_pairs(digests, earlier)):
        return again, earlier
    # some bits of two texts are the same, not all: once in many thousand steps
    place = np.lexsort((np.arange(total), digests[:, 1], digests[:, 0]))
    same = np.flatnonzero((digests[place[1:]] == digests[place[:-1]]).all(axis=1)) + 1
    return place[same], place[_run_starts(same)]


def _run_starts(same: np.ndarray) -> np.ndarray:
    """Of entries of a sorted list that equal the one before: where their equals begin.

    Args:
        same: these entries, ascending [m], int64.
    """
    begins = np.ones(len(same), bool)
    begins[1:] = np.diff(same) != 1
    return same[begins][np.cumsum(begins) - 1] - 1
