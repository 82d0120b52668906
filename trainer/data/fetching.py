"""Files of object stores in the cache: fetched once for a host, from then on files like others.

A file is kept under its address and version, so that one that changes is fetched anew and none is
ever out of date. It is read in blocks; what has arrived stays, and reading goes on behind it after
a fault or in the next run. Paths that a recipe names are replaced by those in the cache.
"""

import dataclasses
import glob
import logging
import os
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from tqdm import tqdm

from trainer.data.cache import cache_root, locked, locked_if_free, place_in_cache
from trainer.data.remote import (
    RemoteFile,
    RemoteFiles,
    find_remote,
    in_words,
    is_gone,
    is_hopeless,
    is_remote,
    placed,
    version_now,
)
from trainer.errors import DataError
from trainer.recipe.schema import EvalSetRecipe, SourceRecipe

if TYPE_CHECKING:
    from fsspec import AbstractFileSystem

logger = logging.getLogger(__name__)

BLOCK_BYTES = 1 << 23
"""Read at a time, and held in memory."""
MAX_FAULTS = 5
"""In a row, without a byte between them, after which a file is given up."""
FIRST_WAIT_SEC = 1.0
"""After a fault; twice as long after each that follows."""
GB = 10**9

Lock = Callable[[Path], AbstractContextManager[bool]]
"""Takes a lock; false where it is another process's."""

PATHS = ("path", "label_texts", "teacher_embeddings")
"""Keys of a set that may hold an address."""
AnySet = TypeVar("AnySet", SourceRecipe, EvalSetRecipe)


def at_hand(recipe: AnySet, root: str, *, owner: str) -> AnySet:
    """A set with paths of this machine in place of addresses; what they name is fetched.

    Args:
        recipe: a source or held-out set.
        root: `data.root`, a path or an address.
        owner: recipe key of the set, for messages.

    Raises:
        DataError: if something is not there, cannot be read to its end, or finds no room.
    """
    found = {
        key: fetched(find_remote(address, owner=f"{owner}: {key}"))
        for key, address in _addresses(recipe, root)
    }
    return dataclasses.replace(recipe, **found)  # type: ignore[arg-type]


def is_at_hand(recipe: SourceRecipe | EvalSetRecipe, root: str, *, owner: str) -> bool:
    """Whether nothing of a set would have to be fetched; stores are asked for its versions.

    Raises:
        DataError: if something is not there, or the store cannot be reached.
    """
    addresses = list(_addresses(recipe, root))
    listed = [find_remote(address, owner=f"{owner}: {key}") for key, address in addresses]
    missing = [file for one in listed for file in _missing(one)]
    if missing:
        told = _told(missing)
        logger.info("%s: %s are on a store; they are fetched when the training starts", owner, told)
    return not missing


def _addresses(recipe: SourceRecipe | EvalSetRecipe, root: str) -> Iterator[tuple[str, str]]:
    """Key and address of everything that a set has on a store."""
    for field in dataclasses.fields(recipe):
        path = getattr(recipe, field.name) if field.name in PATHS else None
        if isinstance(path, str) and is_remote(address := placed(path, root)):
            yield field.name, address


def fetched(remote: RemoteFiles) -> str:
    """The path, or glob, of this machine that names the same files as an address does.

    Each file is fetched by one process of a host, several files by several.

    Raises:
        DataError: see `at_hand`.
    """
    missing = _missing(remote)
    try:
        if missing:
            _announce(remote, missing)
            left = sum(file.size_bytes - _arrived(file) for file in missing)
            with tqdm(total=left, desc=remote.url, unit="B", unit_scale=True, disable=None) as bar:
                # processes that start at once fetch one file each, then wait for the rest
                for lock in (locked_if_free, locked):
                    for file in missing:
                        _fetch(remote.system, file, bar, lock)
        return _linked(remote)
    except OSError as error:
        raise DataError(
            f"{remote.url}: not kept in {cache_root()} ({error.strerror or error}); expected room "
            "in the cache. Free space, or set TRAINER_CACHE_DIR to a folder on a larger disk. What "
            "has arrived is kept."
        ) from error


def place_of(file: RemoteFile) -> Path:
    """Where the cache has a version of a file; it may not be there yet."""
    identity = f"object|{file.url}|{file.path}|{file.size_bytes}|{file.version}"
    return place_in_cache(identity, file.below.name).absolute()


def _missing(remote: RemoteFiles) -> list[RemoteFile]:
    return [file for file in remote.files if not place_of(file).exists()]


def _partial(file: RemoteFile) -> Path:
    """Where a file grows."""
    # beside the folder: the name may be as long as a disk takes
    return place_of(file).parent.with_suffix(".partial")


def _arrived(file: RemoteFile) -> int:
    """Bytes of a file that an earlier run has fetched."""
    try:
        return _partial(file).stat().st_size
    except FileNotFoundError:  # or another process finishes it at this moment
        return 0


def _told(files: Sequence[RemoteFile]) -> str:
    """Number and size of some files."""
    return f"{len(files)} file(s) of {sum(file.size_bytes for file in files) / GB:.3g} GB"


def _announce(remote: RemoteFiles, missing: Sequence[RemoteFile]) -> None:
    """Say what will be fetched.

    Raises:
        DataError: if the disk has less room than that.
        OSError: if the cache cannot be made.
    """
    root = cache_root()
    root.mkdir(parents=True, exist_ok=True)
    free = shutil.disk_usage(root).free
    arrived = sum(map(_arrived, missing))
    needed = sum(file.size_bytes for file in missing) - arrived
    logger.info(
        "%s: fetching %s once for this host into %s (%.3g GB arrived before, %.3g GB free)",
        remote.url, _told(missing), root, arrived / GB, free / GB,
    )  # fmt: skip
    if needed > free:
        raise DataError(
            f"{remote.url}: {needed / GB:.3g} GB to fetch; expected at most the {free / GB:.3g} "
            f"GB that are free in {root}. Free space, or set TRAINER_CACHE_DIR to a folder on a "
            "larger disk."
        )


def _fetch(system: "AbstractFileSystem", file: RemoteFile, bar: tqdm, lock: Lock) -> None:
    """Fetch a file that no other process has fetched by now, or holds the lock of.

    Raises:
        DataError: if it cannot be read to its end, or changes meanwhile.
        OSError: if it cannot be written.
    """
    place, partial = place_of(file), _partial(file)
    place.parent.mkdir(parents=True, exist_ok=True)
    with lock(place.parent.with_suffix(".lock")) as is_mine:
        if place.exists() or not is_mine:
            return
        with partial.open("ab") as growing:
            for block in _blocks(system, file, growing.tell()):
                growing.write(block)
                bar.update(len(block))
            growing.flush()
            os.fsync(growing.fileno())
        partial.rename(place)


def _blocks(system: "AbstractFileSystem", file: RemoteFile, start: int) -> Iterator[bytes]:
    """The content of a file from some byte on, in spite of faults.

    Raises:
        DataError: if it cannot be read to its end, or changed.
    """
    faults = 0
    while True:
        try:
            for block in _read_on(system, file, start):
                start, faults = start + len(block), 0
                yield block
            _refuse_changed(system, file)
            return
        except DataError:
            raise
        except Exception as error:
            faults += 1
            try:
                _refuse_changed(system, file)
            except DataError:
                raise
            except Exception as other:  # noqa: BLE001 - no answer does not say that it changed
                logger.debug("%s: no answer (%s)", file.url, in_words(other))
            if faults == MAX_FAULTS or is_hopeless(error):
                raise _given_up(file, start, faults, error) from error
            wait_sec = FIRST_WAIT_SEC * 2 ** (faults - 1)
            logger.warning(
                "%s: broke off after %d of %d bytes (%s); trying again in %g s",
                file.url, start, file.size_bytes, in_words(error), wait_sec,
            )  # fmt: skip
            time.sleep(wait_sec)


def _read_on(system: "AbstractFileSystem", file: RemoteFile, start: int) -> Iterator[bytes]:
    """Blocks from some byte to the end; raises what the package raises."""
    if start == file.size_bytes:
        return
    # without a cache in between: each block is one request for a range
    with system.open(file.path, "rb", block_size=BLOCK_BYTES, cache_type="none") as remote:
        remote.seek(start)
        while start < file.size_bytes:
            block = remote.read(min(BLOCK_BYTES, file.size_bytes - start))
            if not block:
                raise EOFError(f"the content ends after {start} bytes")
            start += len(block)
            yield block


def _refuse_changed(system: "AbstractFileSystem", file: RemoteFile) -> None:
    """Drop what has arrived of a file that is another one by now: it may be of both.

    Raises:
        DataError: naming it; else what the package raises, if the store does not answer.
    """
    try:
        is_same = version_now(system, file) == (file.size_bytes, file.version)
    except Exception as error:
        if not is_gone(error):
            raise
        is_same = False
    if not is_same:
        _partial(file).unlink()
        raise DataError(
            f"{file.url}: another version than when it was looked at; expected a file that stays "
            "as it is while it is fetched. Start again when it has been written."
        )


def _given_up(file: RemoteFile, start: int, faults: int, error: Exception) -> DataError:
    """A file that cannot be read to its end."""
    return DataError(
        f"{file.url}: content = broke off after {start} of {file.size_bytes} bytes, {faults} "
        f"time(s) in a row ({in_words(error)}); expected a store that sends it to its end. Look at "
        "the network and the store, and start again: reading goes on where it stopped."
    )


def _linked(remote: RemoteFiles) -> str:
    """A folder of links that is laid out as the store is, and what names the files in it.

    Raises:
        OSError: if it cannot be made.
    """
    listed = [(str(file.below), file.version) for file in remote.files]
    folder = place_in_cache(f"links|{remote.url}|{listed}", str(remote.folder)).absolute()
    for file in remote.files:
        link = folder / file.below
        link.parent.mkdir(parents=True, exist_ok=True)
        try:
            # relative, as the cache may be moved
            link.symlink_to(os.path.relpath(place_of(file), link.parent))
        except FileExistsError:
            continue  # of another process, or an earlier run: the same link
    if not remote.pattern:
        return str(folder)
    is_file = len(remote.files) == 1 and remote.pattern == str(remote.files[0].below)
    return (
        str(folder / remote.pattern) if is_file else f"{glob.escape(str(folder))}/{remote.pattern}"
    )
