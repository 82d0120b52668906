"""What is the same in a large batch on every rank of a host: made by one of them, read by all.

It lies in shared memory, in a file with a name for each rank of the host. A rank removes its own
name as soon as it has mapped the file, so the last one frees the memory. Which rank makes a step
follows from the step; one that waits too long makes it for itself, which gives the same.
"""

import fcntl
import io
import logging
import math
import mmap
import os
import pickle
import shutil
import struct
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from functools import lru_cache
from io import BufferedWriter
from pathlib import Path
from typing import IO, Any, NamedTuple

import numpy as np

from trainer.data.batch import Batch, OwnTexts, StoredBatch
from trainer.data.slot_table import OwnTokens, with_tokens

logger = logging.getLogger(__name__)

SHARED_MEMORY = Path("/dev/shm")
PREFIX = "codiemb-trainer"
HELD = "held"
"""File that each rank of a run holds a shared lock on."""
MIN_ROWS = 1024
"""Steps of fewer rows are made by every rank: that takes less time than to wait for another."""
PATIENCE_SEC = 2.0
"""A rank waits so long for another one's step before it makes the step itself."""
FIRST_NAP_SEC, LAST_NAP_SEC = 0.008, 0.016
LEFT_SHARE = 0.5
"""Of the shared memory that steps leave free; NCCL and others need theirs."""
ALIGNMENT = 64
"""Bytes; arrays begin at multiples of it."""
COUNTED = 1 << 14
"""Multiples of it are counted to, as steps of a source have slightly different numbers of texts."""
COUNT, OWN = struct.Struct("<Q"), struct.Struct("<QQ")


@dataclass(frozen=True, kw_only=True)
class HostShare:
    """One rank among those of its host, and where they share what they make."""

    folder: Path
    """In shared memory, the same for the ranks of a host and no others."""
    index: int
    """Of this rank among them, from 0."""
    count: int
    """Ranks of the host, at least 2."""
    min_rows: int = MIN_ROWS
    """Steps of so many rows are shared."""
    ranks: tuple[int, ...] = ()
    """These ranks among all of the run, by index; empty: they follow each other."""

    def get(
        self, step: int, turn: int, make: Callable[[], StoredBatch]
    ) -> tuple[OwnTexts, Batch | str]:
        """A step, made here or by another rank.

        Args:
            step: of the run, 0-based.
            turn: says whose it is; the same on all ranks.
            make: makes it for the ranks of the host, the same on all of them.

        Returns:
            This rank's texts, and the batch without token ids, or this rank's name of the file that
            it is in; `read_shared` reads that.
        """
        path = self._path(step, self.index)
        if turn % self.count != self.index and self._is_there(path):
            with suppress(OSError):  # a service that clears shared memory may have been faster
                return read_own_texts(path, self.index), path
        made = make()
        if turn % self.count == self.index:
            self._publish(step, made)
            if _has_content(path):
                return made.own(self.index), path
        return made.own(self.index), made.batch

    def _path(self, step: int, index: int) -> str:
        return f"{self.folder}/{step}.{index}"

    def _is_there(self, path: str) -> bool:
        """Waits until another rank has made a step; false if it is not in a file."""
        nap, until = FIRST_NAP_SEC, time.monotonic() + PATIENCE_SEC
        while not os.path.exists(path):
            if not os.path.isdir(self.folder):
                return False
            if time.monotonic() > until:
                try:
                    # so that no file gets this name, to be left there
                    os.close(os.open(path, os.O_CREAT | os.O_EXCL, 0o600))
                except FileExistsError:
                    break
                except OSError:
                    pass
                return False
            time.sleep(nap)
            nap = min(2 * nap, LAST_NAP_SEC)
        return _has_content(path)

    def _publish(self, step: int, made: StoredBatch) -> None:
        """Writes a step and gives every rank of the host its name of it; empty without room."""
        building = self.folder / f"{step}.building"
        parts = _parts(made)
        try:
            usage = shutil.disk_usage(self.folder)
            room = usage.free - LEFT_SHARE * usage.total
            with building.open("wb") as file:
                if sum(map(len, parts)) < room:
                    file.writelines(parts)
        except OSError:
            with suppress(OSError):
                building.write_bytes(b"")
        for index in range(self.count):
            with suppress(OSError):
                os.link(building, self._path(step, index))
        with suppress(OSError):
            building.unlink(missing_ok=True)


def _has_content(path: str) -> bool:
    try:
        return os.stat(path).st_size > 0
    except OSError:
        return False


class _Pickler(pickle.Pickler):
    """Writes one number in place of an array that repeats it or counts up from it.

    Shared memory is taken page by page, which costs several times what copying does.
    """

    def reducer_override(self, value: Any) -> Any:
        if type(value) is not np.ndarray or value.size < 2:
            return NotImplemented
        if not any(value.strides):
            return np.broadcast_to, (value.flat[0], value.shape)
        if value.ndim == 2 and value.dtype == np.int64:
            first, last = int(value[0, 0]), int(value[-1, -1])
            is_counted = first >= 0 and last - first == value.size - 1
            if is_counted and np.array_equal(value, counted_from(first, value.shape)):
                return counted_from, (first, value.shape)
        return NotImplemented


def counted_from(first: int, shape: tuple[int, int]) -> np.ndarray:
    """The numbers from one on, row by row, int64; it must not be written to."""
    count = math.prod(shape)
    return _numbers(-(-(first + count) // COUNTED) * COUNTED)[first : first + count].reshape(shape)


@lru_cache(maxsize=1)
def _numbers(count: int) -> np.ndarray:
    """The numbers below one, which the batches of many steps have in common."""
    numbers = np.arange(count)
    numbers.flags.writeable = False
    return numbers


def _parts(made: StoredBatch) -> list[bytes | memoryview]:
    """A step as a file: the texts of each rank, then the batch.

    Of the texts the number of ranks, the bytes of each, and what `StoredBatch` says of one after
    another; of the batch sizes, the pickled objects, and their arrays as they are in memory.
    """
    buffers: list[pickle.PickleBuffer] = []
    content = io.BytesIO()
    _Pickler(content, protocol=5, buffer_callback=buffers.append).dump(made.batch)
    head, arrays = content.getbuffer(), [buffer.raw() for buffer in buffers]
    own = np.stack([made.dealt, made.slots], axis=1)  # [k, 2, R]
    sizes = [len(arrays), len(head), *map(len, arrays)]
    begin = (OWN.pack(len(own), own[0].nbytes), own.tobytes(), *map(COUNT.pack, sizes))
    parts: list[bytes | memoryview] = [b"".join(begin)]
    contents: list[bytes | memoryview] = [head, *arrays]
    for part in contents:
        parts.extend((bytes(-len(parts[-1]) % ALIGNMENT), part))
    return parts


def read_own_texts(path: str, index: int) -> OwnTexts:
    """The texts of one rank of the host in a step that was written.

    Raises:
        OSError: if the file is not there.
    """
    file = os.open(path, os.O_RDONLY)
    try:
        _, size = OWN.unpack(os.pread(file, OWN.size, 0))
        content = os.pread(file, size, OWN.size + index * size)
    finally:
        os.close(file)
    return OwnTexts.of(*np.frombuffer(content, np.int64).reshape(2, -1))


def read_shared(path: str) -> Batch:
    """The batch of a step that was written, without token ids, its arrays as views of the file.

    What is written to them stays in this process.

    Raises:
        OSError: if the file is not there.
    """
    file = os.open(path, os.O_RDONLY)
    try:
        content = memoryview(mmap.mmap(file, 0, access=mmap.ACCESS_COPY))
    finally:
        os.close(file)
    num_ranks, size = OWN.unpack_from(content)
    start = OWN.size + num_ranks * size
    num_arrays, *_ = COUNT.unpack_from(content, start)
    end, parts = start + COUNT.size * (num_arrays + 2), []
    for size in struct.unpack_from(f"<{num_arrays + 1}Q", content, start + COUNT.size):
        start = end + -end % ALIGNMENT
        end = start + size
        parts.append(content[start:end])
    found: Batch = pickle.loads(parts[0], buffers=parts[1:])
    return found


class SharedFrame(NamedTuple):
    """A batch that lies in shared memory but for the token ids of one rank."""

    path: str
    """The rank's name of the file."""
    tokens: OwnTokens
    """Of the rank's texts."""

    def open(self) -> Batch:
        """The batch, once: the name of the file is removed.

        Raises:
            OSError: if it is gone.
        """
        batch = read_shared(self.path)
        with suppress(FileNotFoundError):
            os.unlink(self.path)
        return with_tokens(batch, self.tokens)


def shared_memory() -> str | None:
    """Which memory this process can share, the same for those that can share it; None: none.

    Containers of one machine may have each their own.
    """
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
        place = SHARED_MEMORY.stat()
    except OSError:
        return None
    return f"{boot}/{place.st_dev}/{place.st_ino}/{os.getuid()}"


def new_folder(name: str) -> Path:
    """Where the ranks of a host share, by a name that no other run has; not made yet."""
    return SHARED_MEMORY / f"{PREFIX}-{os.getuid()}-{name}"


@contextmanager
def shared_folder(share: HostShare) -> Iterator[None]:
    """Keeps the folder of a run's ranks on a host; whoever leaves last removes it.

    Folders of runs that were killed are removed on the way in. Without a folder every rank makes
    every step.
    """
    for folder in share.folder.parent.glob(f"{PREFIX}-{os.getuid()}-*"):
        # what was removed while a process wrote to it has no such file any more
        with suppress(OSError), (folder / HELD).open("ab") as lock:
            _remove_if_last(folder, lock)
    with ExitStack() as running:
        try:
            lock = running.enter_context(_joined(share.folder))
        except OSError as error:
            logger.warning(
                "%s: not made (%s); every rank of this host makes all batches for itself",
                share.folder, error.strerror,
            )  # fmt: skip
        else:
            running.callback(_leave, share, lock)
        yield


def _leave(share: HostShare, lock: IO[bytes]) -> None:
    for path in share.folder.glob(f"*.{share.index}"):
        path.unlink(missing_ok=True)
    _remove_if_last(share.folder, lock)


def _joined(folder: Path) -> BufferedWriter:
    """A file with a shared lock, in a folder that is there."""
    path = folder / HELD
    while True:
        folder.mkdir(mode=0o700, exist_ok=True)
        with suppress(FileNotFoundError):
            try:
                lock = path.open("ab")
            except OSError:
                with suppress(OSError):
                    folder.rmdir()
                raise
            fcntl.flock(lock.fileno(), fcntl.LOCK_SH)
            # another process may have removed the folder before the lock was there
            if path.exists() and path.stat().st_ino == os.fstat(lock.fileno()).st_ino:
                return lock
            lock.close()


def _remove_if_last(folder: Path, lock: IO[bytes]) -> None:
    """Removes a folder unless another process holds its lock."""
    with suppress(OSError):
        fcntl.flock(lock.fileno(), fcntl.LOCK_EX | fcntl.LOCK_NB)
        shutil.rmtree(folder, ignore_errors=True)
