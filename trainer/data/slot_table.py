"""The distinct texts of a step whose source was tokenised ahead; equal tokens are one text.

Lengths and digests are read of all texts of the step, token ids only of one rank's.
"""

from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np

from trainer.data.batch import Batch, OwnIds, StoredBatch, Texts, no_ids
from trainer.data.deal import NO_TEXT, groups_by_prompt
from trainer.data.known_positives import ABSENT
from trainer.data.mixed_store import AnyStore
from trainer.data.teacher_vectors import TeacherVectors
from trainer.data.token_store import take_pairs


@dataclass(frozen=True, kw_only=True)
class SlotTable:
    """Texts by what is embedded of them, as `TextTable` has them, from a store of tokens."""

    store: AnyStore
    """Tokens of the source, or of the mix."""
    teacher: TeacherVectors | None = None
    """Has a vector of every text; None: no vectors are wanted."""
    num_first: tuple[int, ...] = (0, 0)
    """First tokens that the instructions of queries give, and that of passages."""
    query_of_owner: tuple[int, ...] = (0,)
    """Which instruction the queries of each source of the step have."""

    def distinct(self, added: np.ndarray, asked: np.ndarray, *, num_queries: int) -> "Distinct":
        """Number what is embedded, in the order in which it comes first.

        Args:
            added: slots of all texts that are embedded [n], int64.
            asked: slots of texts that may equal one of these [m], int64.
            num_queries: how many of `added` are encoded as queries; they come first.

        """
        store = self.store
        number, first = number_digests(store.digests(np.concatenate([added, asked])))
        index, found = number[: len(added)], number[len(added) :]
        total = int(index.max()) + 1
        slots = added[first[:total]]
        lengths = store.lengths(slots)
        prompts = np.full(total, len(self.num_first) - 1)
        asked_by = np.array(self.query_of_owner)[store.owners(added[:num_queries])]
        np.minimum.at(prompts, index[:num_queries], asked_by)
        groups = groups_by_prompt(lengths, prompts, self.num_first)
        teacher = self.teacher
        texts = Texts(
            token_ids=no_ids(lengths),
            num_prompt_tokens=np.array(store.num_prompt_tokens, np.int64)[prompts],
            groups=groups,
            teacher_vectors=None if teacher is None else teacher.of_keys(store.keys(slots)),
        )
        return Distinct(texts, slots, index, np.where(found < total, found, ABSENT))


class OwnTokens(NamedTuple):
    """Token ids of the texts of one rank; see `OwnIds`."""

    own: np.ndarray
    ids: np.ndarray
    ends: np.ndarray


class Distinct(NamedTuple):
    """The texts of a step, each once."""

    texts: Texts
    """All but token ids."""
    slots: np.ndarray
    """Where the tokens of each are [U], int64."""
    added: np.ndarray
    """The index of each added slot [n], int64."""
    asked: np.ndarray
    """The index of each asked slot [m], int64, or ABSENT."""


def read_own(stored: StoredBatch, store: AnyStore, rank: int) -> OwnTokens:
    """The token ids of one rank's texts.

    Raises:
        DataError: if they are not those that were written.
    """
    own = stored.dealt[:, rank]
    own = np.sort(own[own != NO_TEXT])
    return OwnTokens(own, *store.read(stored.slots[own]))


def with_tokens(stored: StoredBatch, tokens: OwnTokens) -> Batch:
    """The batch of a rank."""
    batch: Any = stored.batch
    texts = stored.batch.texts
    token_ids = OwnIds(lengths=texts.lengths, **tokens._asdict())
    found: Batch = replace(batch, texts=replace(texts, token_ids=token_ids))
    return found


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
