"""Sets of the hub that are read row by row, once, into a file of lines in the cache.

For sets that can only be streamed, or that are too large to be downloaded and converted. The file
is kept under the commit of the set, and is from then on a local file like others. What was read
before an interruption is kept.
"""

import gc
import itertools
import json
import logging
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import date, time
from decimal import Decimal
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tqdm import tqdm

from trainer.data.cache import cache_root, locked, place_in_cache
from trainer.data.remote import in_words
from trainer.errors import DataError

if TYPE_CHECKING:
    from datasets import IterableDataset

logger = logging.getLogger(__name__)

KEPT_ROWS = 10_000
"""After so many rows it is noted how far the reading is."""
GB = 10**9


@dataclass(frozen=True, kw_only=True)
class _Set:
    """A split of a set at a commit."""

    hub: str
    """As in the recipe."""
    split: str
    """As the set names it."""
    commit: str
    """What its content follows from."""
    owner: str
    """Recipe key of the source, for messages."""

    @property
    def place(self) -> Path:
        """The file of lines; it may not be there yet."""
        identity = f"streamed|{self.hub}|{self.split}|{self.commit}"
        folder = place_in_cache(identity, "hub").absolute()
        return folder.joinpath(*self.hub.replace(":", "/").split("/"), f"{self.split}.jsonl")

    def error(self, got: str, expected: str, advice: str) -> DataError:
        """What is wrong with it."""
        return DataError(f"{self.owner}: hub = {self.hub} ({got}); expected {expected}. {advice}")


def streamed(hub: str, split: str, *, owner: str) -> Path:
    """The file with a row of a set on each line, made by one process of a host while others wait.

    Args:
        hub: `organisation/set`, or `organisation/set:configuration`.
        split: as the set names it.
        owner: recipe key of the source, for messages.

    Raises:
        DataError: if set, configuration or split is not there, it breaks off, a value is none of
            JSON, or the cache has no room.
    """
    found = _Set(hub=hub, split=split, commit=_commit(hub, owner), owner=owner)
    place = found.place
    try:
        place.parent.mkdir(parents=True, exist_ok=True)
        with locked(place.with_suffix(".lock")):
            if not place.exists():
                _make(found, place)
        known = _known_commit(hub)
        known.parent.mkdir(parents=True, exist_ok=True)
        known.write_text(found.commit, encoding="utf-8")
    except OSError as error:
        got = f"not kept in {cache_root()}: {error.strerror or error}"
        advice = "Free space, or set TRAINER_CACHE_DIR to a folder on a larger disk."
        raise found.error(got, "room in the cache", advice) from error
    return place


def _commit(hub: str, owner: str) -> str:
    """The commit that a set is at; without a network, that of its last reading.

    Raises:
        DataError: if the hub does not say it, and nothing was read before.
    """
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError

    try:
        return str(HfApi().dataset_info(hub.partition(":")[0]).sha)
    except Exception as error:
        known = _known_commit(hub)
        if known.exists() and not isinstance(error, HfHubHTTPError):
            return known.read_text(encoding="utf-8")
        raise DataError(
            f"{owner}: hub = {hub} ({in_words(error)}); expected a set of the hub that can be "
            "reached, as stream is true. Correct hub, look at the network, or set stream=false."
        ) from error


def _known_commit(hub: str) -> Path:
    """A file with the commit of the last reading of a set."""
    return place_in_cache(f"streamed|{hub}", "commit")


def _make(found: _Set, place: Path) -> None:
    """Read the rows that are not there yet.

    Raises:
        DataError: see `streamed`.
        OSError: if the disk refuses them.
    """
    from datasets import load_dataset

    identifier, _, configuration = found.hub.partition(":")
    try:
        rows = load_dataset(
            identifier,
            configuration or None,
            split=found.split,
            revision=found.commit,
            streaming=True,
        )
    except Exception as error:
        expected = f"a set with split {found.split} that can be streamed"
        raise found.error(in_words(error), expected, "Correct hub or split.") from error
    logger.info(
        "%s: streaming split %s of %s once for this host into %s (%.3g GB free)",
        found.owner, found.split, found.hub, place, shutil.disk_usage(place.parent).free / GB,
    )  # fmt: skip
    partial = place.with_suffix(".partial")
    note = _Note.of(place.with_suffix(".note"))
    if not partial.exists() or partial.stat().st_size < note.num_bytes:
        note = _Note(note.path)  # someone made room in the cache
    with partial.open("r+b" if note.num_bytes else "wb") as growing:
        growing.truncate(note.num_bytes)
        growing.seek(note.num_bytes)
        if note.state is not None:
            rows.load_state_dict(note.state)
        _append(found, rows, growing, note)
    partial.rename(place)
    note.path.unlink(missing_ok=True)


@dataclass
class _Note:
    """How far the reading is, on disk."""

    path: Path
    num_rows: int = 0
    num_bytes: int = 0
    state: dict[str, Any] | None = None
    """Where `datasets` goes on; None: at the first row."""

    @classmethod
    def of(cls, path: Path) -> "_Note":
        """The one that an interrupted reading left, or one that says that nothing was read."""
        try:
            return cls(path, **json.loads(path.read_text(encoding="utf-8")))
        except (OSError, ValueError, TypeError):
            return cls(path)

    def write(self, num_rows: int, num_bytes: int, state: dict[str, Any]) -> None:
        """Note that so much has been read and written."""
        self.num_rows, self.num_bytes, self.state = num_rows, num_bytes, state
        text = json.dumps({"num_rows": num_rows, "num_bytes": num_bytes, "state": state})
        building = self.path.with_suffix(".building")
        building.write_text(text, encoding="utf-8")
        building.replace(self.path)


def _append(found: _Set, rows: "IterableDataset", growing: Any, note: _Note) -> None:
    """Write the rest of the rows.

    Raises:
        DataError: if the stream breaks off, or a value is none of JSON.
        OSError: if the disk refuses them.
    """
    stream = iter(rows)
    with (
        _let_go(stream),
        tqdm(desc=found.hub, initial=note.num_rows, unit=" rows", disable=None) as bar,
    ):
        for number in itertools.count(note.num_rows + 1):
            row = _next(stream.__next__, found, note)
            if row is None:
                break
            growing.write(_line(row, number, found))
            bar.update()
            if number % KEPT_ROWS == 0:
                _sync(growing)
                note.write(number, growing.tell(), rows.state_dict())
        _sync(growing)


@contextmanager
def _let_go(stream: Any) -> Iterator[None]:
    """End a stream that may not have been read to its end.

    Arrow's threads hold a file of Parquet while a scan of it is alive. One that still is when
    Python ends aborts the process, whatever its exit code was to be.
    """
    try:
        yield
    finally:
        stream.close()
        gc.collect()


def _next(advance: Callable[[], dict[str, Any]], found: _Set, note: _Note) -> dict[str, Any] | None:
    """The next row; None at the end.

    Raises:
        DataError: if the stream breaks off; `datasets` has tried again by then.
    """
    try:
        return advance()
    except StopIteration:
        return None
    except Exception as error:
        advice = f"Start again: reading goes on after the first {note.num_rows} rows that are kept."
        expected = "a stream that goes on to its end"
        raise found.error(f"broke off, {in_words(error)}", expected, advice) from error


def _line(row: dict[str, Any], number: int, found: _Set) -> bytes:
    """A row as JSON.

    Raises:
        DataError: if a value is none of JSON.
    """
    try:
        return f"{json.dumps(row, default=_plain, ensure_ascii=False)}\n".encode()
    except (TypeError, ValueError) as error:
        advice = "Download the set, leave such columns out, and name the files with path."
        got = f"row {number}: {in_words(error)}"
        raise found.error(got, "texts, numbers, lists and objects", advice) from error


def _plain(value: object) -> str:
    """What JSON has no form for and a text has."""
    if isinstance(value, date | time | Decimal):
        return str(value)
    raise TypeError(f"a value of type {type(value).__name__}")


def _sync(growing: Any) -> None:
    growing.flush()
    os.fsync(growing.fileno())
