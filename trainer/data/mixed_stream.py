"""Rows of several sources that share steps, as one stream; it must not decide on shares.

The places of the stream are dealt to the sources by turns, as steps are in `trainer.data.schedule`,
and each source gives the rows of its own stream in order. So every step has its share of each
source, any place is computed alone, and each source has its epochs as it has by itself.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np

from trainer.data.mixed_rows import joined
from trainer.data.row_stream import RowStream
from trainer.data.schedule import Schedule, turns_before
from trainer.data.subset import Subset


@dataclass(frozen=True, kw_only=True)
class MixedPart:
    """One source of a mix."""

    name: str
    """As in the recipe."""
    stream: RowStream
    """Its rows."""
    subset: Subset | None = None
    """Which of its records they are; None: all."""
    start: int = 0
    """Place in its stream where that of the mix begins."""


@dataclass(frozen=True, kw_only=True)
class MixedStream:
    """Rows of a mix in the order in which steps take them, numbered as in `mixed_rows`."""

    parts: tuple[MixedPart, ...]
    """Its sources, in the order of the recipe."""
    turns: Schedule
    """Which of them each place is of."""

    @property
    def num_rows(self) -> int:
        """Of all sources."""
        return sum(part.stream.num_rows for part in self.parts)

    def rows(self, first: int, count: int) -> np.ndarray:
        """A block of the stream [count], int64, the rows of one source after those of another."""
        ends, found = self.places(first + count), []
        for owner, (part, start) in enumerate(self._started(first)):
            taken = ends[part.name] - start
            if taken:
                rows = part.stream.rows(start, taken)
                records = rows if part.subset is None else part.subset.records(rows)
                found.append(joined(owner, records))
        return np.concatenate(found)

    def epoch(self, position: int) -> int:
        """0-based epoch of the first source at a position."""
        part, start = next(self._started(position))
        return part.stream.epoch(start)

    def places(self, position: int) -> dict[str, int]:
        """Where each source is in its own stream, by name."""
        return {part.name: start for part, start in self._started(position)}

    def continued(self, position: int, to: "MixedStream") -> tuple["MixedStream", int]:
        """The stream after `position` rows, by the streams and turns of another; its position.

        Args:
            position: rows taken so far.
            to: of the same sources, as if it began the run.
        """
        parts, same = [], to.turns == self.turns
        for (old, start), new in zip(self._started(position), to.parts, strict=True):
            stream, place = old.stream.continued(
                start, num_rows=new.stream.num_rows, seed=new.stream.seed
            )
            same &= stream is old.stream
            parts.append(replace(new, stream=stream, start=place))
        return (self, position) if same else (replace(to, parts=tuple(parts)), 0)

    def _started(self, position: int) -> Iterator[tuple[MixedPart, int]]:
        """Each source with where it is in its own stream."""
        counts = turns_before(self.turns, position)
        return ((part, part.start + counts[part.name]) for part in self.parts)
