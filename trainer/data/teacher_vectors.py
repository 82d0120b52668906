"""Vectors of a teacher on disk, found by text; it must not know who learns from them.

A folder holds `embeddings.npy`, which stays memory-mapped, and `texts.jsonl` with the text of each
row. Texts are known by 64 bits each: nothing of the texts is held in memory.
"""

import hashlib
import tokenize
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from trainer.data.cache import Arrays, cached_arrays, file_identity
from trainer.data.fields import RowError, check_string, shown
from trainer.data.files import (
    CACHE_FROM_BYTES,
    TextFile,
    decode_value,
    digest_of,
    index_lines,
    map_file,
    open_text_file,
)
from trainer.data.scan import text_key
from trainer.data.unchanged import Mark
from trainer.errors import DataError

VECTORS, TEXTS = "embeddings.npy", "texts.jsonl"
"""Files of a folder."""
DTYPES = (np.dtype(np.float16), np.dtype(np.float32))
"""What the vectors may be stored in."""
BLOCK_NUMBERS = 1 << 22
"""Numbers of the vectors that are checked at a time."""
NO_ROW = -1
"""In place of the row of a text that is not there."""


@dataclass(frozen=True, kw_only=True)
class TeacherVectors:
    """Vectors of n texts."""

    folder: Path
    """Where they are."""
    vectors: np.ndarray = field(repr=False)
    """Finite, none of norm 0, memory-mapped [n, D], float16 or float32."""
    keys: np.ndarray = field(repr=False)
    """Keys of the texts [n], uint64, ascending."""
    rows: np.ndarray = field(repr=False)
    """Row of the text of each key [n], int64; of equal texts the first row comes first."""
    sha256: str
    """Of the content of both files, hexadecimal."""
    marks: tuple[Mark, ...]
    """What the files were like when they were checked."""

    def __len__(self) -> int:
        return len(self.vectors)

    @property
    def size(self) -> int:
        """D."""
        return int(self.vectors.shape[1])

    def find(self, texts: Sequence[str]) -> np.ndarray:
        """Row of each text, the first of equal ones, or NO_ROW [len(texts)], int64."""
        return self._find_keys(np.fromiter(map(text_key, texts), np.uint64, len(texts)))

    def _find_keys(self, wanted: np.ndarray) -> np.ndarray:
        """Row of the text of each key [n], uint64, or NO_ROW [n], int64."""
        places = np.minimum(np.searchsorted(self.keys, wanted), len(self.keys) - 1)
        return np.where(self.keys[places] == wanted, self.rows[places], NO_ROW)

    def of(self, texts: Sequence[str]) -> np.ndarray:
        """Vectors of texts that are all there [len(texts), D], in the dtype of the file."""
        return self.of_keys(np.fromiter(map(text_key, texts), np.uint64, len(texts)))

    def of_keys(self, keys: np.ndarray) -> np.ndarray:
        """Vectors of texts that are all there, by their keys [n], uint64; see `of` [n, D]."""
        rows = self._find_keys(keys)
        assert NO_ROW not in rows, "a text was not there when the source was checked"
        return self.vectors.view(np.ndarray)[rows]


def open_teacher_vectors(folder: str, root: str, *, owner: str) -> TeacherVectors:
    """The vectors of a folder, every number checked.

    Args:
        folder: as in the recipe; relative to `root`.
        root: `data.root`.
        owner: recipe key of the source, for messages.

    Raises:
        DataError: if folder or file is missing or unreadable, the vectors are not [n, D] of float16
            or float32, the texts are not n, a number is not finite, or a vector is 0.
    """
    path = (Path(root).expanduser() / Path(folder).expanduser()).absolute()
    for name in (VECTORS, TEXTS):
        if not (path / name).is_file():
            raise DataError(
                f"{owner}: teacher_embeddings = {folder}; expected a folder with {VECTORS} and "
                f"{TEXTS}, but {path / name} is missing. Correct the path or data.root, or make "
                "the file (docs/data.md)."
            )
    vectors = _mapped(path / VECTORS)
    texts = open_text_file(path / TEXTS, _decode_text, index_lines, kind="lines")
    if len(texts) != len(vectors):
        raise DataError(
            f"{path / TEXTS}: lines = {len(texts)}; expected {len(vectors)}, one for each row of "
            f"{VECTORS}. Write both from the same list of texts."
        )

    def build() -> Arrays:
        _check_numbers(vectors, path / VECTORS, texts)
        return _indexed(texts) | {"sha256": digest_of(map_file(path / VECTORS))}

    if vectors.nbytes + texts.data.size() < CACHE_FROM_BYTES:
        arrays = build()
    else:
        files = [file_identity(path / name) for name in (VECTORS, TEXTS)]
        arrays = cached_arrays(f"teacher|{'|'.join(files)}", build)
    digests = {VECTORS: arrays["sha256"].tobytes().hex(), TEXTS: texts.sha256}
    return TeacherVectors(
        folder=path,
        vectors=vectors,
        keys=arrays["keys"],
        rows=arrays["rows"],
        sha256=hashlib.sha256("".join(digests.values()).encode()).hexdigest(),
        marks=tuple(Mark.of(path / name, digest) for name, digest in digests.items()),
    )


def _mapped(path: Path) -> np.ndarray:
    """The array of a file, memory-mapped.

    Raises:
        DataError: if it is no array [n, D] of an allowed dtype.
    """
    expected = f"an array [n, D] of {' or '.join(map(str, DTYPES))}, as numpy.save writes it"
    advice = f"Save the teacher's vectors into {path.name} again."
    try:
        vectors = np.lib.format.open_memmap(path, mode="r")
    except (OSError, ValueError, OverflowError, SyntaxError, tokenize.TokenError) as error:
        got = str(error).strip().partition("\n")[0]
        message = f"{path}: content = unreadable ({got}); expected {expected}. {advice}"
        raise DataError(message) from error
    if vectors.ndim != 2 or vectors.dtype not in DTYPES or 0 in vectors.shape:
        got = f"{list(vectors.shape)} of {vectors.dtype}"
        raise DataError(f"{path}: content = {got}; expected {expected}. {advice}")
    return vectors


def _decode_text(line: bytes) -> Mapping[str, Any]:
    """The text that is written in a line, under `text`.

    Raises:
        RowError: if it is no JSON string.
    """
    value = decode_value(line)
    if not isinstance(value, str):
        raise RowError("row", shown(value), "a JSON string, the text of a row of the vectors")
    return {"text": check_string("row", value)}


def _check_numbers(vectors: np.ndarray, path: Path, texts: TextFile) -> None:
    """Refuse vectors that have no direction.

    Raises:
        DataError: naming the first row.
    """
    step = max(1, BLOCK_NUMBERS // vectors.shape[1])
    for start in range(0, len(vectors), step):
        block = np.asarray(vectors[start : start + step], np.float32)
        with np.errstate(over="ignore", invalid="ignore"):
            norms = np.linalg.norm(block, axis=1)
        for at in np.flatnonzero(~(np.isfinite(norms) & (norms > 0)))[:1]:
            raise DataError(
                f"{path}: norm of row {start + at} = {norms[at]:g}; expected a finite number above "
                f"0. Embed the text of {texts.place(start + int(at))} again."
            )


def _indexed(texts: TextFile) -> Arrays:
    """Keys of all texts in their order, and the row of each.

    Raises:
        DataError: naming file and line of one that is no text.
    """
    keys = np.empty(len(texts), np.uint64)
    for row in range(len(texts)):
        try:
            keys[row] = text_key(texts.values(row)["text"])
        except RowError as fault:
            raise DataError(f"{texts.place(row)}: {fault}. Correct the line.") from None
    # stable, so that the first of equal texts is found
    rows = np.argsort(keys, kind="stable")
    return {"keys": keys[rows], "rows": rows}
