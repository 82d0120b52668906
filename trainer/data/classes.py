"""Rows drawn class by class, each class equally often: a pure function of seed, source and place.

The draws of a source are an endless stream. Round r of it visits every class once, in an order of
its own, and takes the r-th row of the class's own stream, which is one permutation of its rows
after another. So any place of the stream is computed alone, as those of `trainer.data.plan` are.

Letters: C classes, M pairs of a class and one of its rows.
"""

from dataclasses import dataclass, replace

import numpy as np

from trainer.data.permutation import keys_of, permute


@dataclass(frozen=True, kw_only=True)
class Classes:
    """Rows by class; a row may be in several."""

    rows: np.ndarray
    """Rows of each class, one class after another [M], int64."""
    starts: np.ndarray
    """Where each class begins [C + 1], int64; no class is empty."""

    def __len__(self) -> int:
        return len(self.starts) - 1

    def of(self, number: int) -> np.ndarray:
        """Rows of a class."""
        return self.rows[self.starts[number] : self.starts[number + 1]]


@dataclass(frozen=True, kw_only=True)
class ClassStream:
    """Rows of a source whose classes are drawn equally often, as `RowStream` has those of others.

    With another seed the draws begin anew; the rows are the same all along.
    """

    seed: int
    """Root of its permutations."""
    source: str
    """Name of the source."""
    num_rows: int
    """Records it has."""
    classes: Classes
    """Its rows by class."""
    before: "ClassStream | None" = None
    """The stream that this one takes the place of; None: this one begins with the run."""
    taken: int = 0
    """Rows that were taken from `before`."""

    def continued(self, position: int, *, num_rows: int, seed: int) -> tuple["ClassStream", int]:
        """The stream after `position` rows for a seed; its position."""
        assert num_rows == self.num_rows, (num_rows, self.num_rows)
        if seed == self.seed:
            return self, position
        if position == 0 and self.before is not None:
            return self.before.continued(self.taken, num_rows=num_rows, seed=seed)
        return replace(self, seed=seed, before=self if position else None, taken=position), 0

    def rows(self, first: int, count: int) -> np.ndarray:
        """A block of the stream [count], int64; `first` is a position in it."""
        return balanced_rows(self.classes, first, count, seed=self.seed, source=self.source)

    def epoch(self, position: int) -> int:
        """How many times as many rows as there are were taken before a position."""
        return self.total(position) // self.num_rows

    def total(self, position: int) -> int:
        """Rows taken from the beginning of the run until a position."""
        return position + (0 if self.before is None else self.before.total(self.taken))

    def seen(self, position: int) -> list[tuple[int, int]]:
        """How often the rows were seen before a position: (number of rows, times)."""
        times, rows = np.unique(self._counts(position), return_counts=True)
        return list(zip(rows.tolist(), times.tolist(), strict=True))

    def _counts(self, position: int) -> np.ndarray:
        """How often each row was seen before a position [num_rows], int64."""
        counts = balanced_counts(
            self.classes, position, self.num_rows, seed=self.seed, source=self.source
        )
        return counts if self.before is None else counts + self.before._counts(self.taken)


def balanced_rows(
    classes: Classes, first: int, count: int, *, seed: int, source: str
) -> np.ndarray:
    """Some places of a source's stream.

    Args:
        classes: of the source.
        first: place of the first row.
        count: how many.
        seed: of the run.
        source: its name.

    Returns:
        Rows [count], int64.
    """
    found: list[int] = []
    while len(found) < count:
        turn, start = divmod(first + len(found), len(classes))
        stop = min(len(classes), start + count - len(found))
        for number in _order(classes, turn, start, stop, seed, source).tolist():
            rows = classes.of(number)
            epoch, place = divmod(turn, len(rows))
            keys = keys_of(seed, source, "class", number, epoch)
            found.append(int(rows[permute(np.array([place]), len(rows), keys)[0]]))
    return np.array(found, np.int64)


def balanced_counts(
    classes: Classes, draws: int, num_rows: int, *, seed: int, source: str
) -> np.ndarray:
    """How often each row is among the first draws of a source's stream [num_rows], int64."""
    turns, more = divmod(draws, len(classes))
    times = np.full(len(classes), turns)
    times[_order(classes, turns, 0, more, seed, source)] += 1
    counts = np.zeros(num_rows, np.int64)
    for number, drawn in enumerate(times.tolist()):
        rows = classes.of(number)
        epoch, rest = divmod(drawn, len(rows))
        counts[rows] += epoch
        keys = keys_of(seed, source, "class", number, epoch)
        counts[rows[permute(np.arange(rest, dtype=np.int64), len(rows), keys)]] += 1
    return counts


def _order(
    classes: Classes, turn: int, start: int, stop: int, seed: int, source: str
) -> np.ndarray:
    """Classes at some places of a round."""
    places = np.arange(start, stop, dtype=np.int64)
    return permute(places, len(classes), keys_of(seed, source, "round", turn))
