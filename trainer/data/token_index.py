"""The index over all pieces of a store, which makes the store valid; it must not tokenise."""

import json
import math
import os
import secrets
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, NamedTuple

import numpy as np

from trainer.data.token_pieces import BUILDING, COPY_BYTES, TokenJob, read_footer, replaced
from trainer.data.token_store import (
    DIGESTS,
    FACTS,
    FORMAT,
    INDEX,
    REPEATS,
    ROW_ARRAYS,
    SLOT_ARRAYS,
    damaged,
    hash_of,
    piece_path,
)

LEAST_BUCKET_BITS, MOST_BUCKET_BITS, BUCKETS_PER_SLOT = 24, 29, 16
"""Buckets of digests: a power of two that is so many times the number of slots, within bounds."""
BLOCK_SLOTS = 1 << 20
"""Digests that are held in memory at a time."""
SEVERAL = 2
"""Slots of a bucket, or more."""
Footers = Sequence[dict[str, Any]]


class Form(NamedTuple):
    """One array of the pieces."""

    name: str
    dtype: np.dtype[Any]
    shape: tuple[int, ...]
    """Of one entry."""
    total: str
    """What a footer calls the number of its entries."""

    @property
    def entry_bytes(self) -> int:
        """Bytes of one entry."""
        return self.dtype.itemsize * math.prod(self.shape)


FORMS = (
    *(Form(name, *form, "num_slots") for name, form in SLOT_ARRAYS.items()),
    *(Form(name, *form, "num_rows") for name, form in ROW_ARRAYS.items()),
)


def join_pieces(job: TokenJob) -> None:
    """Write the index over all pieces, which makes the store valid.

    Raises:
        DataError: if a piece is damaged.
        OSError: if the disk refuses; nothing is left.
    """
    paths = [piece_path(job.folder, number) for number in range(job.num_pieces)]
    footers = [read_footer(path) for path in paths]
    for number, (path, footer) in enumerate(zip(paths, footers, strict=True)):
        if footer["num_rows"] != len(job.rows(number)):
            raise damaged(path, f"{footer['num_rows']} rows")
    index = job.folder / f"{BUILDING}{INDEX}.{secrets.token_hex(4)}"
    try:
        index.mkdir()
        for form in FORMS:
            _join_array(index / f"{form.name}.npy", paths, footers, form)
        _write_starts(index)
        _write_repeats(index)
        with replaced(index / FACTS) as file:
            file.write(json.dumps(_facts(job, footers, index)).encode())
        index.rename(job.folder / INDEX)
    except OSError:
        if not (job.folder / INDEX).is_dir():  # else another process was faster
            raise
    finally:
        shutil.rmtree(index, ignore_errors=True)
    for left in job.folder.glob(f"{BUILDING}*"):
        # of processes that were killed
        if left.is_dir():
            shutil.rmtree(left, ignore_errors=True)
        else:
            left.unlink(missing_ok=True)


def _join_array(path: Path, pieces: Sequence[Path], footers: Footers, form: Form) -> None:
    """One array of all pieces as an .npy file, written in order: no page of it is mapped."""
    total = sum(footer[form.total] for footer in footers)
    with _npy(path, form.dtype, (total, *form.shape)) as file:
        for piece, footer in zip(pieces, footers, strict=True):
            with piece.open("rb") as content:
                content.seek(footer["begins"][form.name])
                _copy(content, file, footer[form.total] * form.entry_bytes, piece)


def _copy(content: IO[bytes], file: IO[bytes], num_bytes: int, piece: Path) -> None:
    while num_bytes:
        block = content.read(min(num_bytes, COPY_BYTES))
        if not block:
            raise damaged(piece, "shorter than its footer says")
        file.write(block)
        num_bytes -= len(block)


def _write_starts(index: Path) -> None:
    """The first slot of each row and the end of the last, in place of their sizes."""
    sizes, end = np.load(index / "sizes.npy", mmap_mode="r"), 0
    with _npy(index / "starts.npy", np.dtype(np.int64), (len(sizes) + 1,)) as file:
        file.write(np.zeros(1, np.int64).tobytes())
        for first in range(0, len(sizes), COPY_BYTES):
            ends = end + np.cumsum(sizes[first : first + COPY_BYTES], dtype=np.int64)
            file.write(ends.tobytes())
            end = int(ends[-1])
    (index / "sizes.npy").unlink()


def _write_repeats(index: Path) -> None:
    """Whether each slot may have the digest of another one.

    Digests fall into buckets, so this takes one byte a bucket however many slots there are, and one
    in `BUCKETS_PER_SLOT` of those that no other has is taken for one that another has.
    """
    digests = np.load(index / f"{DIGESTS}.npy", mmap_mode="r")
    least = BUCKETS_PER_SLOT * len(digests)
    bits = min(MOST_BUCKET_BITS, max(LEAST_BUCKET_BITS, least.bit_length()))
    blocks = range(0, len(digests), BLOCK_SLOTS)

    def buckets(first: int) -> np.ndarray:
        found = digests[first : first + BLOCK_SLOTS, 0] >> np.uint64(64 - bits)
        return found.astype(np.int64)

    num_slots = np.zeros(1 << bits, np.uint8)  # in a bucket, at most SEVERAL
    for first in blocks:
        found = buckets(first)
        ordered = np.sort(found)
        is_there = num_slots[found] > 0
        num_slots[found] = 1
        num_slots[found[is_there]] = SEVERAL
        num_slots[ordered[1:][ordered[1:] == ordered[:-1]]] = SEVERAL
    with _npy(index / f"{REPEATS}.npy", np.dtype(bool), (len(digests),)) as file:
        for first in blocks:
            file.write((num_slots[buckets(first)] == SEVERAL).tobytes())


@contextmanager
def _npy(path: Path, dtype: np.dtype[Any], shape: tuple[int, ...]) -> Iterator[IO[bytes]]:
    """An .npy file to write the content of, on disk when the block ends."""
    descr = np.lib.format.dtype_to_descr(dtype)
    with path.open("wb") as file:
        np.lib.format.write_array_header_1_0(
            file, {"descr": descr, "fortran_order": False, "shape": shape}
        )
        yield file
        file.flush()
        os.fsync(file.fileno())


def _facts(job: TokenJob, footers: Footers, index: Path) -> dict[str, Any]:
    """What the index says of the store."""
    firsts = np.cumsum([0, *(footer["num_slots"] for footer in footers)]).tolist()
    return {
        "format": FORMAT,
        "num_rows": len(job.source),
        "num_slots": firsts[-1],
        "num_ids": sum(footer["num_ids"] for footer in footers),
        "ids_dtype": job.ids_dtype.name,
        "num_prompt_tokens": job.num_prompt_tokens,
        "has_scores": any(footer["has_scores"] for footer in footers),
        "arrays": {
            path.stem: {"bytes": path.stat().st_size, "sha256": hash_of(path)}
            for path in sorted(index.glob("*.npy"))
        },
        "pieces": [
            {"first_slot": first, "bytes": footer["bytes"], "sha256": footer["sha256"]}
            for first, footer in zip(firsts[:-1], footers, strict=True)
        ],
    }
