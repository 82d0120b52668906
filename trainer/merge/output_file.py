"""A file that is written and read back at any place, past the page cache wherever that can be.

A byte that goes through the page cache is copied there, waits in memory for the disk, and pushes
out what is read meanwhile. A direct write goes to the disk from where it was computed. When the
call returns, the disk has it, at least in a cache of its own, which `sync` empties. The system asks
for whole blocks; the rest of a tensor takes the other way, as does everything on a file system that
knows no direct writes.
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
DIRECT: int | None = getattr(os, "O_DIRECT", None)
NOT_DIRECTLY = (errno.EINVAL, errno.ENOTSUP, errno.EMFILE, errno.ENFILE)
"""What a file system says that knows no direct writes or none of this block, and a system that has
no descriptor to spare."""
PRIVATE = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS

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
        self.path = path
        self.is_direct = direct and DIRECT is not None
        """Whether whole blocks go past the page cache."""
        self.waiting_bytes = 0
        """Written through the page cache since the last `sync`."""
        self._cached = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            os.truncate(path, num_bytes)
        except OSError:
            os.close(self._cached)
            raise
        # a read must not bring along pages beside it that are written directly meanwhile
        os.posix_fadvise(self._cached, 0, 0, os.POSIX_FADV_RANDOM)

    def write(self, data: Bytes, position: int) -> None:
        """Write bytes [n] at a place.

        Raises:
            OSError: as the system says; of a full disk for example.
        """
        while data.size:
            written = self._move_directly(os.pwritev, data, position)
            if written is None:
                written = os.pwrite(self._cached, data.data, position)
                self.waiting_bytes += written
            data, position = data[written:], position + written

    def _move_directly(self, move: Move, data: Bytes, position: int) -> int | None:
        """Write or read whole blocks past the page cache; None where that cannot be."""
        whole = data.size // BLOCK_BYTES * BLOCK_BYTES
        address = data.__array_interface__["data"][0]
        if not self.is_direct or not whole or (position | address) % BLOCK_BYTES:
            return None
        try:
            # not kept open: a model may have more files than a process may open
            descriptor = os.open(self.path, os.O_RDWR | (DIRECT or 0))
            try:
                return move(descriptor, [data[:whole].data], position)
            finally:
                os.close(descriptor)
        except OSError as error:
            if error.errno not in NOT_DIRECTLY:
                raise
            self.is_direct = False
            return None

    def read(self, position: int, count: int) -> Bytes:
        """Bytes of the file [count], fewer if it ends early."""
        buffer = np.empty(count, np.uint8)
        return buffer[: os.preadv(self._cached, [buffer.data], position)]

    def checksum(self, start: int, stop: int) -> str:
        """Read bytes back; gives their `WordSum`, of fewer bytes if the file ends early."""
        total, buffer = WordSum(), aligned_bytes(READ_BYTES)
        while start < stop:
            wanted = buffer[: stop - start]
            count = self._move_directly(os.preadv, wanted, start)
            if count is None:
                count = os.preadv(self._cached, [wanted.data], start)
            if count == 0:
                break
            total.update(buffer[:count])
            start += count
        return total.hexdigest()

    def sync(self) -> None:
        """Wait until everything is on disk."""
        self.waiting_bytes = 0
        os.fsync(self._cached)

    def close(self) -> None:
        """Close the file."""
        os.close(self._cached)


def aligned_bytes(count: int) -> Bytes:
    """Memory for direct writes and reads [count], uint8, zeros."""
    return np.frombuffer(mmap.mmap(-1, count, PRIVATE), np.uint8)


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
