"""Tokens of several sources that share steps, read as those of one; it must not write any.

Rows are numbered as in `trainer.data.mixed_rows`, and slots in the same way.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from trainer.data.batch import LENGTHS
from trainer.data.mixed_rows import joined, owners_of, parted
from trainer.data.step_prompts import StepPrompts
from trainer.data.token_store import TokenStore


@dataclass(frozen=True, kw_only=True)
class MixedStore:
    """What `SlotTable` and `read_own` ask of a `TokenStore`, of several."""

    stores: tuple[TokenStore, ...]
    """Of each source of the mix, in its order."""
    num_prompt_tokens: tuple[int, ...]
    """Leading tokens that a mean leaves out, of queries behind each instruction and of passages."""

    @property
    def has_scores(self) -> bool:
        """Whether any slot has a score."""
        return any(store.has_scores for store in self.stores)

    def owners(self, slots: np.ndarray) -> np.ndarray:
        """Which source of the mix slots are of [n], int64."""
        return owners_of(slots)

    def spans(self, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """First slot and number of slots of each row [n], int64."""
        first, counts = np.empty(len(rows), np.int64), np.empty(len(rows), np.int64)
        for owner, store, mine, inner in self._parts(rows):
            starts, counts[mine] = store.spans(inner)
            first[mine] = joined(owner, starts)
        return first, counts

    def num_positives(self, rows: np.ndarray) -> np.ndarray:
        """Passages of each row that are positives [n], int64."""
        return self._gathered(rows, TokenStore.num_positives, np.empty(len(rows), np.int64))

    def digests(self, slots: np.ndarray) -> np.ndarray:
        """Digest of the ids of each slot [n, 2], uint64."""
        return self._gathered(slots, TokenStore.digests, np.empty((len(slots), 2), np.uint64))

    def may_repeat(self, slots: np.ndarray) -> np.ndarray:
        """Whether another slot may have the digest of each [n], bool: one of any source may."""
        return np.ones(len(slots), bool)

    def lengths(self, slots: np.ndarray) -> np.ndarray:
        """Tokens of each slot [n], int32."""
        return self._gathered(slots, TokenStore.lengths, np.empty(len(slots), LENGTHS))

    def keys(self, slots: np.ndarray) -> np.ndarray:
        """Key of the text of each slot [n], uint64."""
        return self._gathered(slots, TokenStore.keys, np.empty(len(slots), np.uint64))

    def scores(self, slots: np.ndarray) -> np.ndarray:
        """Score of each slot, NaN where it has none, float32, in the shape of `slots`."""
        flat = slots.reshape(-1)
        found = self._gathered(flat, TokenStore.scores, np.full(len(flat), np.nan, np.float32))
        return found.reshape(slots.shape)

    def read(self, slots: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Token ids of some slots, each checked by its checksum; see `TokenStore.read`.

        Raises:
            DataError: if they are not those that were written.
        """
        ends = np.cumsum(self.lengths(slots), dtype=np.int64)
        ids = np.empty(int(ends[-1]) if len(ends) else 0, self.stores[0].ids_dtype)
        for _, store, mine, inner in self._parts(slots):
            found, found_ends = store.read(inner)
            parts = np.split(found, found_ends[:-1])
            for place, part in zip(np.flatnonzero(mine).tolist(), parts, strict=True):
                ids[ends[place] - len(part) : ends[place]] = part
        return ids, ends

    def _parts(
        self, numbers: np.ndarray
    ) -> Iterator[tuple[int, TokenStore, np.ndarray, np.ndarray]]:
        """Each source that some numbers are of, its store, where these stand, and its own ones."""
        owners, inner = parted(numbers)
        for owner, store in enumerate(self.stores):
            mine = owners == owner
            if mine.any():
                yield owner, store, mine, inner[mine]

    def _gathered(
        self,
        numbers: np.ndarray,
        read: Callable[[TokenStore, np.ndarray], np.ndarray],
        found: np.ndarray,
    ) -> np.ndarray:
        """What each store has of its own rows or slots, in the order of the numbers."""
        for _, store, mine, inner in self._parts(numbers):
            found[mine] = read(store, inner)
        return found


AnyStore = TokenStore | MixedStore
"""Tokens of what takes turns."""


def mixed_store(stores: Sequence[TokenStore], prompts: StepPrompts) -> MixedStore:
    """The tokens of the sources of a mix.

    Args:
        stores: of each, in its order.
        prompts: of the mix.
    """
    owners = [prompts.query_of_owner.index(number) for number in range(len(prompts.queries))]
    queries = (stores[owner].num_prompt_tokens[0] for owner in owners)
    return MixedStore(
        stores=tuple(stores),
        num_prompt_tokens=(*queries, stores[0].num_prompt_tokens[1]),
    )
