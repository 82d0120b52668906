"""As many numbers as a file has rows: they grow on disk, so that memory does not grow with rows."""

import sys
import tempfile
from array import array
from typing import IO, Literal

import numpy as np

from trainer.data.cache import cache_root

BLOCK = 1 << 20
"""Numbers that are held in memory; fewer never touch the disk."""


class Numbers:
    """Numbers that are appended one after another, as kind `q` int64, `Q` uint64 or `d` float64.

    Those beyond a block lie in a file without a name in the cache, which ends with the last array
    of them. Where there is no cache they stay in memory. A full disk is an OSError.
    """

    def __init__(self, kind: Literal["q", "Q", "d"]) -> None:
        self.dtype = np.dtype(kind)
        self._block = array(kind)
        self._most_held = BLOCK
        self._file: IO[bytes] | None = None
        self._num_written = 0

    def append(self, number: float) -> None:
        """Take one more."""
        self._block.append(number)  # type: ignore[arg-type]
        if len(self._block) >= self._most_held:
            self._flush()

    def extend(self, numbers: np.ndarray) -> None:
        """Take many more [n], of the dtype."""
        self._block.frombytes(np.ascontiguousarray(numbers, self.dtype).tobytes())
        if len(self._block) >= self._most_held:
            self._flush()

    def whole(self) -> np.ndarray:
        """All numbers [n], which may be changed in place; nothing may be appended any more."""
        if self._file is None:
            return np.frombuffer(self._block, self.dtype) if self._block else _none(self.dtype)
        self._flush()
        return np.memmap(self._file, self.dtype, "r+", shape=(self._num_written,))

    def _flush(self) -> None:
        """Move the block to the file."""
        if self._file is None:
            try:
                self._file = tempfile.TemporaryFile(dir=cache_root())  # noqa: SIM115 - kept open
            except OSError:  # there is no cache, see `cached_arrays`
                self._most_held = sys.maxsize
                return
        self._block.tofile(self._file)
        self._file.flush()
        self._num_written += len(self._block)
        del self._block[:]


def _none(dtype: np.dtype) -> np.ndarray:
    return np.empty(0, dtype)
