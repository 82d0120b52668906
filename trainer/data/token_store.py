"""Token ids of a source on disk: lengths and digests of all texts, ids of those that are read.

A store is one folder: pieces with the ids of some rows each, and an index over all of them. What
the index holds of a text stands in its slot: the slots of a record follow each other, texts encoded
as queries first. It must not know how records become texts.
"""

import hashlib
import json
import math
import os
from collections import OrderedDict
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any
from zlib import crc32

import numpy as np

from trainer.errors import DataError

FORMAT = 3
"""Raised when the form of the files changes: older stores are made anew."""
INDEX, FACTS = "index", "facts.json"
DIGESTS = "digests"
OPEN_PIECES = 128
"""Files that a process keeps open."""
HASHED_WHEN_OPENED = 64 << 20
"""An index of so many bytes or fewer is read and compared with its hashes whenever it is opened."""
Forms = dict[str, tuple[np.dtype[Any], tuple[int, ...]]]
"""Dtype and shape of one entry of arrays, by name."""
SLOT_ARRAYS: Forms = {
    DIGESTS: (np.dtype(np.uint64), (2,)),
    "places": (np.dtype(np.int64), ()),
    "lengths": (np.dtype(np.int32), ()),
    "checksums": (np.dtype(np.uint32), ()),
    "keys": (np.dtype(np.uint64), ()),
    "scores": (np.dtype(np.float32), ()),
}
"""What the index holds of a slot: digest of its ids, where they begin in their piece, how many they
are, CRC-32 of them as they are stored, key of the text, and its score."""
REPEATS = "repeats"
"""What the index holds of a slot beside that: whether another one may have the same digest, bool.

It is true of all that another one has, and of few others."""
ROW_ARRAYS: Forms = {"sizes": (np.dtype(np.int32), ()), "num_positives": (np.dtype(np.int32), ())}
"""What a piece holds of a row: its slots, and how many of them are positives."""
SLOT_BYTES = sum(dtype.itemsize * math.prod(shape) for dtype, shape in SLOT_ARRAYS.values())


def digest_ids(ids: Any, num_prompt_tokens: int) -> bytes:
    """128 bits of what is embedded: the ids, and how many of them pooling leaves out.

    Args:
        ids: int32, a contiguous array or a view of its bytes.
        num_prompt_tokens: leading tokens that a mean leaves out.
    """
    prompt = num_prompt_tokens.to_bytes(8, "little")
    return hashlib.blake2b(ids, digest_size=16, person=prompt).digest()


def take_pairs(pairs: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """Rows of an array of pairs [n, 2], uint64; numpy is ten times as fast with one-number rows."""
    whole = pairs.reshape(-1).view(np.complex128)  # 128 bits that are copied as they are
    return whole.take(rows).view(np.uint64).reshape(-1, 2)


def piece_path(folder: Path, number: int) -> Path:
    """Where a piece of a store is."""
    return folder / f"piece-{number:06d}.tokens"


@dataclass(frozen=True, kw_only=True)
class TokenStore:
    """Tokens of all texts of a source."""

    folder: Path
    """Where the pieces are."""
    arrays: dict[str, np.ndarray] = field(repr=False)
    """Memory-mapped: those of `SLOT_ARRAYS` and `REPEATS`, `starts` and `num_positives` of rows."""
    piece_starts: np.ndarray = field(repr=False)
    """First slot of each piece [n], int64."""
    ids_dtype: np.dtype[Any]
    """uint16 or uint32."""
    num_prompt_tokens: tuple[int, ...]
    """Leading tokens that a mean leaves out, of queries and of passages."""
    has_scores: bool
    """Whether any slot has a score."""
    files: "OrderedDict[int, tuple[IO[bytes], int]]" = field(
        default_factory=OrderedDict, repr=False, compare=False
    )
    """Open pieces with their descriptors, by number, in the order in which they were opened."""

    def __len__(self) -> int:
        return len(self.arrays["num_positives"])

    def __getstate__(self) -> dict[str, Any]:
        """Without open files, which no other process has."""
        return self.__dict__ | {"files": OrderedDict()}

    def spans(self, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """First slot and number of slots of each row [n], int64."""
        starts = self._array("starts")
        first = starts[rows]
        return first, starts[rows + 1] - first

    def owners(self, slots: np.ndarray) -> np.ndarray:
        """Which source of a step slots are of [n], int64: there is one."""
        return np.zeros(len(slots), np.int64)

    def num_positives(self, rows: np.ndarray) -> np.ndarray:
        """Passages of each row that are positives [n], int64."""
        return self._array("num_positives")[rows].astype(np.int64)

    def digests(self, slots: np.ndarray) -> np.ndarray:
        """Digest of the ids of each slot [n, 2], uint64."""
        return take_pairs(self._array(DIGESTS), slots)

    def may_repeat(self, slots: np.ndarray) -> np.ndarray:
        """Whether another slot may have the digest of each slot [n], bool; see `REPEATS`."""
        return self._array(REPEATS).take(slots)

    def lengths(self, slots: np.ndarray) -> np.ndarray:
        """Tokens of each slot [n], int32."""
        return self._array("lengths").take(slots)

    def keys(self, slots: np.ndarray) -> np.ndarray:
        """Key of the text of each slot, as `trainer.data.scan.text_key` makes it [n], uint64."""
        return self._array("keys")[slots]

    def scores(self, slots: np.ndarray) -> np.ndarray:
        """Score of each slot, NaN where it has none, float32, in the shape of `slots`."""
        return self._array("scores")[slots]

    def read(self, slots: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Token ids of some slots, each checked by its checksum.

        Returns:
            Ids of one slot after another, uint16 or uint32, and the end of each [n], int64.

        Raises:
            DataError: if they are not those that were written.
        """
        lengths, width = self.lengths(slots).astype(np.int64), self.ids_dtype.itemsize
        pieces = np.searchsorted(self.piece_starts, slots, side="right") - 1
        wanted = zip(
            pieces.tolist(),
            (lengths * width).tolist(),
            (self._array("places")[slots] * width).tolist(),
            self._array("checksums")[slots].tolist(),
            strict=True,
        )
        parts = []
        for piece, size, place, checksum in wanted:
            content = os.pread(self._file(piece), size, place)
            if crc32(content) != checksum:
                raise self._error(piece, "other token ids than its index says")
            parts.append(content)
        return np.frombuffer(b"".join(parts), self.ids_dtype), np.cumsum(lengths)

    def _array(self, name: str) -> np.ndarray:
        """A plain view of an array of the index, which is read faster than a memory map."""
        return self.arrays[name].view(np.ndarray)

    def _file(self, piece: int) -> int:
        """Descriptor of an open piece."""
        if piece not in self.files:
            try:
                file = piece_path(self.folder, piece).open("rb", buffering=0)
            except OSError as error:
                raise self._error(piece, error.strerror or "unreadable") from error
            self.files[piece] = (file, file.fileno())
            if len(self.files) > OPEN_PIECES:
                self.files.popitem(last=False)[1][0].close()
        return self.files[piece][1]

    def _error(self, piece: int, got: str) -> DataError:
        return damaged(piece_path(self.folder, piece), got)


def damaged(path: Path, got: str) -> DataError:
    """A file of a store that is not as it was written."""
    return DataError(
        f"{path}: content = {got}; expected a file as it was written. Delete the folder "
        f"{path.parent if path.parent.name != INDEX else path.parent.parent}: its tokens are made "
        "anew when they are needed."
    )


def open_store(folder: Path) -> TokenStore | None:
    """The store in a folder; None if it is not finished.

    Raises:
        DataError: if a file is missing, or has another size than when it was written; if the index
            is small, also if it has another content.
    """
    index = folder / INDEX
    if not index.is_dir():
        return None
    facts = read_facts(index / FACTS)
    if facts["format"] != FORMAT:
        raise damaged(index / FACTS, f"format {facts['format']}, not {FORMAT}")
    for number, piece in enumerate(facts["pieces"]):
        path = piece_path(folder, number)
        num_bytes = path.stat().st_size if path.is_file() else None
        if num_bytes != piece["bytes"]:
            got = "missing" if num_bytes is None else f"{num_bytes} bytes, not {piece['bytes']}"
            raise damaged(path, got)
    arrays = {}
    for name in facts["arrays"]:
        path = index / f"{name}.npy"
        try:
            arrays[name] = np.load(path, mmap_mode="r")
        except (OSError, ValueError) as error:
            raise damaged(path, str(error)) from error
        size = {"starts": facts["num_rows"] + 1, "num_positives": facts["num_rows"]}
        if len(arrays[name]) != size.get(name, facts["num_slots"]):
            raise damaged(path, f"{len(arrays[name])} entries")
    if sum(array["bytes"] for array in facts["arrays"].values()) <= HASHED_WHEN_OPENED:
        check_index(folder)
    return TokenStore(
        folder=folder,
        arrays=arrays,
        piece_starts=np.array([piece["first_slot"] for piece in facts["pieces"]], np.int64),
        ids_dtype=np.dtype(facts["ids_dtype"]),
        num_prompt_tokens=tuple(facts["num_prompt_tokens"]),
        has_scores=facts["has_scores"],
    )


def check_index(folder: Path) -> dict[str, Any]:
    """Read the index of a finished store and compare its hashes; what it says of itself.

    Raises:
        DataError: naming a file that is not as it was written.
    """
    facts = read_facts(folder / INDEX / FACTS)
    for name, array in facts["arrays"].items():
        path = folder / INDEX / f"{name}.npy"
        try:
            found = hash_of(path)
        except OSError as error:
            raise damaged(path, error.strerror or "unreadable") from error
        if found != array["sha256"]:
            raise damaged(path, "another hash than when it was written")
    return facts


def hash_of(path: Path) -> str:
    """SHA-256 of a file, hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def read_facts(path: Path) -> dict[str, Any]:
    """What the index says of itself.

    Raises:
        DataError: if it cannot be read.
    """
    try:
        facts: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise damaged(path, str(error)) from error
    return facts
