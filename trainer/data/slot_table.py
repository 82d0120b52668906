"""The distinct texts of a step whose source was tokenised ahead; equal tokens are one text.

Lengths and digests are read of all texts of the step, token ids only of one rank's.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np

from trainer.data.batch import Batch, OwnIds, OwnTexts, Texts, no_ids
from trainer.data.deal import groups_by_prompt
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

    def distinct(
        self, added: np.ndarray, asked: np.ndarray, *, twice: np.ndarray, num_queries: int
    ) -> "Distinct":
        """Number what is embedded, in the order in which it comes first.

        Args:
            added: slots of all texts that are embedded [n], int64.
            asked: slots of texts that may equal one of these [m], int64.
            twice: which of `added` may be there once more, in `added` or in `asked` [n], bool.
            num_queries: how many of `added` are encoded as queries; they come first.

        """
        store, num_added = self.store, len(added)
        # texts that are equal are in one slot, or in several that the store knows of
        doubtful = np.flatnonzero(store.may_repeat(added) | twice)
        places = np.concatenate([doubtful, np.arange(num_added, num_added + len(asked))])
        digests = store.digests(np.concatenate([added[doubtful], asked]))
        number, first, several = number_digests(digests, places, num_added + len(asked))
        index, found = number[:num_added], number[num_added:]
        slots, num_first_queries = added, num_queries
        if len(first) < len(number):
            total, num_first_queries = np.searchsorted(first, [num_added, num_queries]).tolist()
            slots = added[first[:total]]
        lengths, teacher = store.lengths(slots), self.teacher
        prompts = self._prompts(added[:num_queries], index[:num_queries], num_first_queries)
        texts = Texts(
            token_ids=no_ids(lengths),
            num_prompt_tokens=_by_prompt(store.num_prompt_tokens, prompts, len(slots)),
            groups=groups_by_prompt(lengths, prompts, self.num_first),
            teacher_vectors=None if teacher is None else teacher.of_keys(store.keys(slots)),
        )
        found = np.where(found < len(slots), found, ABSENT)
        return Distinct(texts, slots, index, found, several[: len(slots)])

    def _prompts(self, queries: np.ndarray, index: np.ndarray, total: int) -> np.ndarray:
        """The instruction of each query, the first of several [total], int64.

        Args:
            queries: slots of all texts that are encoded as queries [n], int64.
            index: which query each is [n], int64.
            total: how many there are.
        """
        num_prompts = len(self.num_first) - 1
        if num_prompts == 1:
            return np.broadcast_to(np.int64(0), total)  # takes no memory
        found = np.full(total, num_prompts, np.int64)
        np.minimum.at(found, index, np.array(self.query_of_owner)[self.store.owners(queries)])
        return found


def _by_prompt(numbers: Sequence[int], prompts: np.ndarray, total: int) -> np.ndarray:
    """The number of the instruction of each text, queries before passages [total], int64.

    Args:
        numbers: of each instruction of queries, and of that of passages.
        prompts: instruction of each query [q], int64.
        total: of queries and passages.
    """
    *queries, passage = numbers
    if all(number == passage for number in queries):
        return np.broadcast_to(np.int64(passage), total)  # takes no memory
    found = np.full(total, passage, np.int64)
    found[: len(prompts)] = np.array(queries, np.int64)[prompts]
    return found


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
    several: np.ndarray
    """Which of the texts were added or asked for more than once [U], bool."""


def read_own(own: OwnTexts, store: AnyStore) -> OwnTokens:
    """The token ids of one rank's texts.

    Raises:
        DataError: if they are not those that were written.
    """
    return OwnTokens(own.texts, *store.read(own.slots))


def with_tokens(batch: Any, tokens: OwnTokens) -> Batch:
    """The batch of a rank, from one without token ids."""
    token_ids = OwnIds(lengths=batch.texts.lengths, **tokens._asdict())
    found: Batch = replace(batch, texts=replace(batch.texts, token_ids=token_ids))
    return found


class Numbered(NamedTuple):
    """Numbers from 0 for equal digests, in the order in which they come first."""

    number: np.ndarray
    """Of each digest [n], int64."""
    first: np.ndarray
    """Where each number comes first, ascending [U], int64."""
    several: np.ndarray
    """Which numbers come more than once [U], bool."""


def number_digests(digests: np.ndarray, places: np.ndarray, total: int) -> Numbered:
    """Number digests of 128 bits of which most are known to be different.

    Args:
        digests: those that are not [m, 2], uint64.
        places: of these among all, ascending [m], int64.
        total: n.
    """
    again, earlier = (places[found] for found in _repeats(digests))
    if not len(again):
        number = np.arange(total)
        return Numbered(number, number, np.zeros(total, bool))
    is_first = np.ones(total, bool)
    is_first[again] = False
    number = np.cumsum(is_first, dtype=np.int64)
    number -= 1
    number[again] = number[earlier]
    first = np.flatnonzero(is_first)
    several = np.zeros(len(first), bool)
    several[number[again]] = True
    return Numbered(number, first, several)


def is_repeated(rows: np.ndarray) -> np.ndarray:
    """Which of some rows are there more than once [n], bool."""
    ordered = np.sort(rows)
    repeated = ordered[1:][ordered[1:] == ordered[:-1]]
    return np.isin(rows, repeated) if len(repeated) else np.zeros(len(rows), bool)


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
