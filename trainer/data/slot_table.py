"""The distinct texts of a step whose source was tokenised ahead; equal tokens are one text.

It reads lengths and digests of all texts of the step, and token ids of one rank's only.
"""

from dataclasses import dataclass

import numpy as np

from trainer.data.batch import OwnIds, Texts
from trainer.data.deal import texts_of_rank
from trainer.data.known_positives import ABSENT
from trainer.data.teacher_vectors import TeacherVectors
from trainer.data.token_store import TokenStore


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
        number = number_digests(store.digests(np.concatenate([added, asked])))
        index, found = number[: len(added)], number[len(added) :]
        total = int(index.max()) + 1
        slots = added[first_places(index, total)]
        lengths = store.lengths(slots)
        own = texts_of_rank(lengths, rank=self.rank, num_ranks=self.num_ranks)
        ids, ends = store.read(slots[own])
        is_query = np.zeros(total, bool)
        is_query[index[:num_queries]] = True
        teacher = self.teacher
        texts = Texts(
            token_ids=OwnIds(lengths=lengths, own=own, ids=ids, ends=ends),
            num_prompt_tokens=np.where(is_query, *store.num_prompt_tokens),
            teacher_vectors=None if teacher is None else teacher.of_keys(store.keys(slots)),
        )
        return texts, index, np.where(found < total, found, ABSENT)


def first_places(index: np.ndarray, total: int) -> np.ndarray:
    """Where each number comes first [total], int64.

    Args:
        index: numbers from 0, each below `total` at least once [n], int64.
        total: how many there are.
    """
    places = np.empty(total, np.int64)
    # of places that are written twice the last one stays
    places[index[::-1]] = np.arange(len(index) - 1, -1, -1)
    return places


def number_digests(digests: np.ndarray) -> np.ndarray:
    """One number for equal digests, in the order in which they come first.

    Args:
        digests: 128 bits each [n, 2], uint64.

    Returns:
        Numbers from 0 [n], int64.
    """
    total = len(digests)
    if total == 0:
        return np.empty(0, np.int64)
    # digest and place in one number, which sorts several times as fast as places by digests do
    bits = np.uint64(total.bit_length())
    mixed = np.sort(digests[:, 0] >> bits << bits | np.arange(total, dtype=np.uint64))
    place = (mixed & ((np.uint64(1) << bits) - np.uint64(1))).astype(np.int64)
    mixed >>= bits
    is_new = np.concatenate([[True], mixed[1:] != mixed[:-1]])
    if not is_new.all() and not np.array_equal(*_neighbours(digests, place, is_new)):
        # some bits of two texts are the same, not all: once in many thousand steps
        order = np.lexsort((np.arange(total), digests[:, 1], digests[:, 0]))
        place, differ = order, (digests[order[1:]] != digests[order[:-1]]).any(axis=1)
        is_new = np.concatenate([[True], differ])
    # places of a group ascend, so its first is where it begins
    first = place[is_new]
    is_first = np.zeros(total, bool)
    is_first[first] = True
    number = np.empty(total, np.int64)
    number[place] = (np.cumsum(is_first) - 1)[first][np.cumsum(is_new) - 1]
    return number


def _neighbours(
    digests: np.ndarray, place: np.ndarray, is_new: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Digests that are taken for equal to the one before, and that one [m, 2] each."""
    same = np.flatnonzero(~is_new)
    return digests[place[same]], digests[place[same - 1]]
