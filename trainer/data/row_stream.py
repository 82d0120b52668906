"""The endless stream of one source's rows, one permutation after another; it must not read them.

A source may grow, or be asked for another seed or other buckets of length (or for steps of another
size, where it has buckets), while a run goes on. The epoch under way then ends
first: rows that it has not seen yet, in the order that they had, with the added ones spread evenly
among them. The epochs after it are permutations of all rows, by the seed and the buckets of now. So
no row repeats before every other one had its turn.
"""

from dataclasses import dataclass, replace
from fractions import Fraction
from functools import cached_property

import numpy as np

from trainer.data.buckets import LengthBuckets
from trainer.data.permutation import keys_of, permute
from trainer.data.schedule import Schedule, make_schedule, turn_at, turns_before

BLOCK_ROWS = 1 << 20
"""Rows that are counted at a time."""
OLD, ADDED = "old", "added"

Group = tuple[int, int]
"""Number of rows, and how often each of them was seen."""


@dataclass(frozen=True, kw_only=True)
class RowStream:
    """Rows of a source in the order in which steps take them."""

    seed: int
    """Root of its permutations."""
    source: str
    """Name of the source."""
    num_rows: int
    """Records it has."""
    buckets: LengthBuckets | None = None
    """Orders an epoch so that the texts of a step are of like length; None: by chance alone. Steps
    then begin at multiples of its batch size in the stream."""
    before: "RowStream | None" = None
    """The stream that this one takes the place of; None: this one begins with the run."""
    taken: int = 0
    """Rows that were taken from `before`."""

    def continued(
        self, position: int, *, num_rows: int, seed: int, buckets: LengthBuckets | None = None
    ) -> tuple["RowStream", int]:
        """The stream after `position` rows and its position, where a step begins.

        Args:
            position: rows taken so far.
            num_rows: as many as before, or more.
            seed: of the epochs to come.
            buckets: of the epochs to come.
        """
        assert num_rows >= self.num_rows, (num_rows, self.num_rows)
        if (num_rows, seed, buckets) == (self.num_rows, self.seed, self.buckets):
            return self, position
        if position == 0 and self.before is not None:
            before = self.before
            return before.continued(self.taken, num_rows=num_rows, seed=seed, buckets=buckets)
        new = RowStream(seed=seed, source=self.source, num_rows=num_rows, buckets=buckets)
        return (replace(new, before=self, taken=position) if position else new), 0

    def rows(self, first: int, count: int) -> np.ndarray:
        """A block of the stream [count], int64; `first` is a position in it."""
        parts = []
        while count:
            at = self._left_of_epoch(first)
            taken = min(count, at)
            parts.append(self._within_epoch(first, taken))
            first, count = first + taken, count - taken
        return np.concatenate(parts)

    def epoch(self, position: int) -> int:
        """0-based epoch that a position belongs to, counted from the beginning of the run."""
        if position < self._rest:
            assert self.before is not None
            return self.before.epoch(self.taken - 1)
        return self._first_epoch + (position - self._rest) // self.num_rows

    def total(self, position: int) -> int:
        """Rows taken from the beginning of the run until a position."""
        earlier = self.before.total(self.taken) if self.before is not None else 0
        return earlier + position

    def seen(self, position: int) -> list[Group]:
        """How often the rows were seen before a position; a group for each number of times."""
        if position < self._rest:
            assert self.before is not None
            turns = turns_before(self._turns, position)
            added = turns.get(ADDED, 0)
            old = self.before.seen(self.taken + turns.get(OLD, 0))
            return [*old, (self._added - added, 0), (added, 1)]
        epochs, extra = divmod(position - self._rest, self.num_rows)
        groups = [(rows, times + epochs) for rows, times in self._after_rest()]
        drawn = self._drawn_of(groups, position - extra, extra)
        return [
            part
            for (rows, times), more in zip(groups, drawn, strict=True)
            for part in ((rows - more, times), (more, times + 1))
        ]

    @cached_property
    def _left(self) -> int:
        """Rows of `before` that its epoch under way had not taken."""
        assert self.before is not None
        return self.before._left_of_epoch(self.taken - 1) - 1

    @property
    def _added(self) -> int:
        """Rows that `before` did not have."""
        return self.num_rows - self.before.num_rows if self.before is not None else 0

    @property
    def _rest(self) -> int:
        """Rows with which the epoch under way ends."""
        return self._left + self._added if self.before is not None else 0

    @property
    def _first_epoch(self) -> int:
        """The first epoch over all rows."""
        return self.before.epoch(self.taken - 1) + 1 if self.before is not None else 0

    @cached_property
    def _turns(self) -> Schedule:
        """Whose turn it is in the rest of the epoch: old rows or added ones."""
        parts = {OLD: Fraction(self._left), ADDED: Fraction(self._added)}
        return make_schedule({name: share for name, share in parts.items() if share})

    def _left_of_epoch(self, position: int) -> int:
        """Rows from a position to the end of its epoch, that at the position among them."""
        if position < self._rest:
            return self._rest - position
        return self.num_rows - (position - self._rest) % self.num_rows

    def _within_epoch(self, first: int, count: int) -> np.ndarray:
        """A block that no epoch ends within [count], int64."""
        if first < self._rest:
            return self._rest_rows(first, count)
        start = (first - self._rest) % self.num_rows
        indices = np.arange(start, start + count, dtype=np.int64)
        epoch = self.epoch(first)
        if self.buckets is not None:
            return self.buckets.rows(
                indices, start=first - start, seed=self.seed, source=self.source, epoch=epoch
            )
        return permute(indices, self.num_rows, keys_of(self.seed, self.source, epoch))

    def _rest_rows(self, first: int, count: int) -> np.ndarray:
        """A block of the rest of the epoch under way [count], int64."""
        assert self.before is not None
        turns = [turn_at(self._turns, first + i) for i in range(count)]
        is_added = np.array([who == ADDED for who, _ in turns])
        number = np.array([turn for _, turn in turns], np.int64)
        found = np.empty(count, np.int64)
        if is_added.any():
            keys = keys_of(self.seed, self.source, ADDED, self.before.num_rows)
            found[is_added] = permute(number[is_added], self._added, keys) + self.before.num_rows
        if not is_added.all():
            old = number[~is_added]  # turns that follow each other
            found[~is_added] = self.before.rows(self.taken + int(old[0]), len(old))
        return found

    def _after_rest(self) -> list[Group]:
        """Groups when the epoch under way has ended, in the order of their rows."""
        if self.before is None:
            return [(self.num_rows, 0)]
        old = self.before._at_end_of_epoch(self.taken)
        return [*old, (self._added, 1)] if self._added else old

    def _at_end_of_epoch(self, position: int) -> list[Group]:
        """Groups when the epoch of the row before a position has ended, in order of their rows."""
        if position <= self._rest:
            return self._after_rest()
        epochs = -(-(position - self._rest) // self.num_rows)
        return [(rows, times + epochs) for rows, times in self._after_rest()]

    def _drawn_of(self, groups: list[Group], start: int, count: int) -> list[int]:
        """How many of `count` rows from the beginning of an epoch belong to each group."""
        if len(groups) == 1:
            return [count]
        ends = np.cumsum([rows for rows, _ in groups])
        drawn = np.zeros(len(groups), np.int64)
        for first in range(start, start + count, BLOCK_ROWS):
            rows = self.rows(first, min(BLOCK_ROWS, start + count - first))
            drawn += np.bincount(np.searchsorted(ends, rows, side="right"), minlength=len(groups))
        return [int(number) for number in drawn]
