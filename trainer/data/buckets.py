"""The order in which an epoch takes rows where each step holds texts of like length; it reads none.

An epoch lays its rows out bucket after bucket, each bucket in a permutation of its own, and cuts
them into steps: the rows that are left over in a bucket begin a step that the next bucket fills up.
Then the steps are permuted. A step that an epoch does not fill is filled by the next one, and both
take the last of their layout for it, so that it too holds texts of like length. All of it is
computed per index: nothing but the rows by length is held.
"""

from dataclasses import dataclass, field

import numpy as np

from trainer.data.permutation import keys_of, permute


@dataclass(frozen=True, kw_only=True)
class LengthBuckets:
    """Rows of a source by length, cut into buckets of as many rows each, nearly."""

    by_length: np.ndarray = field(compare=False, repr=False)
    """Rows from the shortest to the longest [n], uint32 or int64."""
    num_buckets: int
    """At least 2."""
    batch_size: int
    """Rows of a step, at most n."""

    def rows(
        self, indices: np.ndarray, *, start: int, seed: int, source: str, epoch: int
    ) -> np.ndarray:
        """Rows at some places of an epoch.

        Args:
            indices: places in 0..n-1 [k], int64.
            start: place of the epoch in a stream whose steps begin at multiples of the batch size.
            seed: root of the permutations.
            source: name of the source.
            epoch: of the run, 0-based.

        Returns:
            Rows [k], int64; distinct for distinct places.
        """
        name = (seed, source, epoch)
        return self._laid_out(self._places(indices, -start % self.batch_size, name), name)

    def _places(self, indices: np.ndarray, num_head: int, name: tuple[int, str, int]) -> np.ndarray:
        """Where in the layout places of an epoch are [k], int64.

        The first `num_head` rows of the epoch end a step that the epoch before began.
        """
        total, size = len(self.by_length), self.batch_size
        num_steps = (total - num_head) // size
        step, place = np.divmod(indices - num_head, size)
        # behind the whole steps lie the rows that begin the next epoch's step, then the head
        found = np.where(indices < num_head, total - num_head + indices, indices - num_head)
        is_whole = (indices >= num_head) & (step < num_steps)
        if num_steps:
            moved = permute(step[is_whole], num_steps, keys_of(*name, "steps"))
            found[is_whole] = moved * size + place[is_whole]
        return found

    def _laid_out(self, places: np.ndarray, name: tuple[int, str, int]) -> np.ndarray:
        """Rows at places of the layout [k], int64."""
        total = len(self.by_length)
        # bucket b begins at b n // N, so a place is in the last bucket that begins at it or before
        bucket = ((places + 1) * self.num_buckets - 1) // total
        found = np.empty(len(places), np.int64)
        for number in np.unique(bucket).tolist():
            first, end = (total * one // self.num_buckets for one in (number, number + 1))
            mine = bucket == number
            keys = keys_of(*name, "bucket", number)
            inner = permute(places[mine] - first, end - first, keys)
            found[mine] = self.by_length[first + inner]
        return found
