"""A file that is written and read back at any place, past the page cache wherever that can be.

A byte that goes through the page cache is copied there, waits in memory for the disk, and pushes
out what is read meanwhile. A direct write goes to the disk from where it was computed, and is on it
when the call returns. The system asks for whole blocks of it; the rest of a tensor takes the other
way, as does everything on a file system that knows no direct writes.
"""

import errno
import mmap
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

BLOCK_BYTES = 4096
"""What memory, place and length of a direct write are multiples of; also of disks of this block."""
READ_BYTES = 1 << 20

Bytes = NDArray[np.uint8]
Move = Callable[[int, list[memoryview], int], int]
"""`os.pwritev` or `os.preadv`."""


class OutputFile:
    """One open file of known size; places are bytes from its start."""

    def __init__(self, path: Path, num_bytes: int, *, direct: bool) -> None:
        """Make a file, or open one that an interrupted merge left.

        Args:
            path: the file.
            num_bytes: its size from the beginning; nothing is allocated.
            direct: past the page cache where the file system can.

        Raises:
            OSError: as the system says.
        """
        self._cached = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
        directly = _open_directly(path) if direct else None
        self.is_direct = directly is not None
        """Whether whole blocks go past the page cache."""
        self._direct = -1 if directly is None else directly
        os.truncate(path, num_bytes)
        # a read must not bring along pages beside it that are written directly meanwhile
        os.posix_fadvise(self._cached, 0, 0, os.POSIX_FADV_RANDOM)

    def write(self, data: Bytes, position: int) -> None:
        """Write bytes [n] at a place.

        Raises:
            OSError: as the system says; of a full disk for example.
        """
        while data.size:
            written = self._move(os.pwritev, data, position)
            data, position = data[written:], position + written

    def _move(self, move: Move, data: Bytes, position: int) -> int:
        """Write or read a beginning of the bytes, directly if it can be; gives its length."""
        whole = data.size // BLOCK_BYTES * BLOCK_BYTES
        address = data.__array_interface__["data"][0]
        if self.is_direct and whole and not (position | address) % BLOCK_BYTES:
            try:
                return move(self._direct, [data[:whole].data], position)
            except OSError as error:
                if error.errno != errno.EINVAL:
                    raise
                self.is_direct = False  # larger blocks, or none of it after all
        return move(self._cached, [data.data], position)

    def read(self, position: int, count: int) -> Bytes:
        """Bytes of the file [count], fewer if it ends early."""
        buffer = np.empty(count, np.uint8)
        return buffer[: os.preadv(self._cached, [buffer.data], position)]

    def checksum(self, start: int, stop: int) -> str:
        """Read bytes back; gives their `WordSum`, of fewer bytes if the file ends early."""
        total, buffer = WordSum(), aligned_bytes(READ_BYTES)
        while start < stop:
            count = self._move(os.preadv, buffer[: stop - start], start)
            if count == 0:
                break
            total.update(buffer[:count])
            start += count
        return total.hexdigest()

    def sync(self) -> None:
        """Wait until everything is on disk."""
        os.fsync(self._cached)

    def close(self) -> None:
        """Close the file."""
        if self._direct >= 0:
            os.close(self._direct)
        os.close(self._cached)


def _open_directly(path: Path) -> int | None:
    """A descriptor for direct writes; None where there are none."""
    flag: int | None = getattr(os, "O_DIRECT", None)
    try:
        return None if flag is None else os.open(path, os.O_RDWR | flag)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):
            raise
        return None


def aligned_bytes(count: int) -> Bytes:
    """Memory for direct writes and reads [count], uint8, zeros."""
    return np.frombuffer(mmap.mmap(-1, count), np.uint8)


class WordSum:
    """Checksum of a stream of bytes: its 64-bit little-endian words, summed modulo 2^64.

    Guards against bytes that did not arrive, at the speed of memory; it is no cryptographic hash.
    """

    def __init__(self) -> None:
        self.total = 0
        self.tail = b""

    def update(self, data: Bytes) -> None:
        """Take the next bytes [n]."""
        if self.tail:
            data = np.frombuffer(self.tail + data.tobytes(), np.uint8)
        whole = data.size // 8 * 8
        words = data[:whole].view("<u8")
        self.total = (self.total + int(words.sum(dtype=np.uint64))) % 2**64
        self.tail = data[whole:].tobytes()

    def hexdigest(self) -> str:
        """The sum so far, with what is left of the last word."""
        return f"{(self.total + int.from_bytes(self.tail, 'little')) % 2**64:016x}"
