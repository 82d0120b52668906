"""What is costly to make, kept on disk, whatever it means; arrays are memory-mapped.

The cache lies in `$TRAINER_CACHE_DIR`, else `$XDG_CACHE_HOME/codiemb-trainer`, else
`~/.cache/codiemb-trainer`. It may be deleted at any time between runs.
"""

import errno
import fcntl
import hashlib
import logging
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

import numpy as np

from trainer.data.array_files import save_array
from trainer.errors import DataError

logger = logging.getLogger(__name__)

Arrays = dict[str, np.ndarray]
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
"""What a disk says that has no room for a file."""
LAYOUT = 3
"""Raised when what is kept, or how rows are checked, changes: older entries are made anew."""


def cache_root() -> Path:
    """Folder of the cache; it may not exist yet."""
    if "TRAINER_CACHE_DIR" in os.environ:
        return Path(os.environ["TRAINER_CACHE_DIR"])
    if "XDG_CACHE_HOME" in os.environ:
        return Path(os.environ["XDG_CACHE_HOME"]) / "codiemb-trainer"
    return Path.home() / ".cache" / "codiemb-trainer"


def file_identity(path: Path) -> str:
    """A key that changes whenever the file does: path, size in bytes, times of change in ns.

    When a file was written can be set, as archives do when they are unpacked; when it was changed
    in any way, no program can set.
    """
    stat = path.stat()
    return f"{path.resolve()}|{stat.st_size}|{stat.st_mtime_ns}|{stat.st_ctime_ns}"


def cached_arrays(identity: str, build: Callable[[], Arrays]) -> Arrays:
    """The arrays of `build`, from the cache where it has them; read-only and memory-mapped.

    One process builds while others wait. Without a writable cache the arrays stay in memory.

    Raises:
        DataError: if the disk is full; nothing is left.
    """
    root = cache_root()
    try:
        root.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        logger.warning("%s: not writable (%s); data is indexed anew at each start", root, error)
        return build()
    folder = root / _key(identity)
    with locked(folder.with_suffix(".lock")):
        if not folder.is_dir():
            try:
                arrays = build()
            except OSError as error:
                if error.errno in FULL:
                    raise _no_room(root, error) from error
                raise
            _write(folder, arrays)
    return {file.stem: np.load(file, mmap_mode="r") for file in folder.glob("*.npy")}


def cached_file(identity: str, name: str, write: Callable[[IO[bytes]], None]) -> Path:
    """A file that `write` fills, from the cache where it is there already.

    Raises:
        OSError: if the cache cannot be written.
    """
    folder = cache_root() / _key(identity)
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / name
    with locked(folder.with_suffix(".lock")):
        if not path.exists():
            building = folder / f"{name}.building"
            with building.open("wb") as file:
                write(file)
            building.rename(path)
    return path


def cached_folder(identity: str, name: str, write: Callable[[Path], None]) -> Path:
    """A folder that `write` makes, from the cache where it is there already.

    One process writes while others wait.

    Args:
        identity: what the content depends on.
        name: of the folder.
        write: makes a folder that is not there yet, whole or not at all.

    Raises:
        OSError: if the cache cannot be written.
    """
    folder = place_in_cache(identity, name)
    folder.parent.mkdir(parents=True, exist_ok=True)
    with locked(folder.parent.with_suffix(".lock")):
        if not folder.is_dir():
            write(folder)
    return folder


def place_in_cache(identity: str, name: str) -> Path:
    """Where `cached_folder` puts a folder; it may not be there yet."""
    return cache_root() / _key(identity) / name


def _key(identity: str) -> str:
    return hashlib.sha256(f"{LAYOUT}|{identity}".encode()).hexdigest()[:32]


@contextmanager
def locked(path: Path) -> Iterator[bool]:
    """Holds an exclusive lock, always true; the system drops it when the process ends."""
    with path.open("a") as lock:
        fcntl.flock(lock.fileno(), fcntl.LOCK_EX)
        yield True


@contextmanager
def locked_if_free(path: Path) -> Iterator[bool]:
    """Holds an exclusive lock; false if another process does."""
    with path.open("a") as lock:
        try:
            fcntl.flock(lock.fileno(), fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield False
            return
        yield True


def _write(folder: Path, arrays: Arrays) -> None:
    """Writes all arrays under a temporary name, then renames: complete or absent.

    Raises:
        DataError: if the disk refuses; nothing is left.
    """
    building = None
    try:
        building = Path(tempfile.mkdtemp(dir=folder.parent, prefix="building-"))
        for name, array in arrays.items():
            with (building / f"{name}.npy").open("wb") as file:
                save_array(file, array)
        building.rename(folder)
    except OSError as error:
        if building is not None:
            shutil.rmtree(building, ignore_errors=True)
        raise _no_room(folder.parent, error) from error


def _no_room(root: Path, error: OSError) -> DataError:
    return DataError(
        f"{root}: free = {shutil.disk_usage(root).free / 1e6:.0f} MB; expected room for the index "
        f"of the data files ({error.strerror or error}). Free space, or set TRAINER_CACHE_DIR to a "
        "folder on a larger disk."
    )
