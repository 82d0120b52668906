"""How long the texts of each row are, the same however they are tokenised; it must not plan.

The length of a row is the number of UTF-8 bytes of its longest query, positive or text of a pair.
It is known without a tokenizer, so a source has the same plan with tokens ahead and on the fly, and
with any model. The longest text decides, not their sum: it is what others are padded to. Hard
negatives do not count: a step draws a few of many, and by these a row would look longer than it is.
"""

from array import array
from dataclasses import dataclass

import numpy as np

from trainer.data.cache import Arrays, cached_arrays
from trainer.data.permutation import keys_of, permute
from trainer.data.scan import CACHE_FROM_ROWS
from trainer.data.sources import Source
from trainer.data.subset import Subset

LENGTHS_CACHE_FROM_ROWS = 5_000
"""The rows of smaller sources are measured anew whenever a plan is made."""
LONGEST = (1 << 32) - 1
"""Longer texts count as this long."""
BLOCK_ROWS = 1 << 20
"""Rows that are looked at a time."""


@dataclass(frozen=True, kw_only=True)
class RowLengths:
    """Lengths of the rows of one source."""

    identity: str
    """Of the source, for the cache."""
    bytes_of_row: np.ndarray
    """Bytes of the longest text of each record, negatives left aside [n], uint32."""

    def by_length(self, num_rows: int, subset: Subset | None) -> np.ndarray:
        """Rows of a stream from the shortest to the longest, those of one length by chance.

        Args:
            num_rows: rows of the stream.
            subset: which of the source's records they are; None: the first.

        Returns:
            Rows [num_rows], uint32, or int64 from 2^32 rows on; from the cache where they are many.
        """
        if num_rows < CACHE_FROM_ROWS:
            return self._sorted(num_rows, subset)["rows"]
        identity = f"by_length1|{self.identity}|{num_rows}|{subset}"
        return cached_arrays(identity, lambda: self._sorted(num_rows, subset))["rows"]

    def _sorted(self, num_rows: int, subset: Subset | None) -> Arrays:
        # rows of one length are not left in the order of the file, which may be one of subjects
        keys = keys_of("by_length", num_rows)
        lengths = np.empty(num_rows, np.uint32)
        for start in range(0, num_rows, BLOCK_ROWS):
            places = np.arange(start, min(start + BLOCK_ROWS, num_rows))
            rows = permute(places, num_rows, keys)
            records = rows if subset is None else subset.records(rows)
            lengths[start : start + len(places)] = self.bytes_of_row[records]
        order = np.argsort(lengths, kind="stable")
        found = np.empty(num_rows, np.uint32 if num_rows <= LONGEST else np.int64)
        for start in range(0, num_rows, BLOCK_ROWS):
            places = order[start : start + BLOCK_ROWS]
            found[start : start + len(places)] = permute(places, num_rows, keys)
        return {"rows": found}


def lengths_of(source: Source) -> RowLengths:
    """Lengths of all rows of a source, from the cache where they are many.

    Args:
        source: its records have `own_texts`.

    Raises:
        DataError: if a file changed since it was checked.
    """
    if len(source) < LENGTHS_CACHE_FROM_ROWS:
        return RowLengths(identity=source.identity, bytes_of_row=_measured(source)["lengths"])
    arrays = cached_arrays(f"lengths1|{source.identity}", lambda: _measured(source))
    return RowLengths(identity=source.identity, bytes_of_row=arrays["lengths"])


def _measured(source: Source) -> Arrays:
    """One pass over the rows."""
    lengths = array("I")
    for row in range(len(source)):
        longest = max(map(num_bytes, source.record(row).own_texts))
        lengths.append(min(longest, LONGEST))
    return {"lengths": np.array(lengths, np.uint32)}


def num_bytes(text: str) -> int:
    """Of its UTF-8."""
    return len(text) if text.isascii() else len(text.encode())
