"""The safetensors container: its header, and tensors mapped from it; it must not know models.

Layout: 8 bytes little-endian length of the header, the header (JSON), then the tensors' bytes
without gaps. Everything is checked before a tensor is touched, because a mapped file that ends
early would kill the process instead of raising.
"""

import hashlib
import json
import mmap
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from trainer.checkpoint.safetensors_dtypes import BITS, num_bytes, refuse_unsupported
from trainer.checkpoint.tensors import StoredTensor, numel
from trainer.errors import CheckpointError

DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}
"""Dtypes by their name in a header; all others of the format are refused by name."""

MAX_HEADER_BYTES = 100_000_000
"""Longest header that the format allows."""
PLAIN = "pt"
"""What files of torch's tensors say of their format."""
NEEDS_RELEASE_5 = "pt, of a decoder with bidirectional attention, which needs transformers 5"
"""What they say where transformers 4 would close the attention without a word: it loads no file of
a format that it does not know, and repeats this in its error. Others do not look at it."""


@dataclass(frozen=True)
class Slot:
    """Where one tensor lies in a file."""

    dtype: torch.dtype
    """Dtype on disk."""
    shape: tuple[int, ...]
    """Sizes."""
    start: int
    """First byte, from the beginning of the file."""

    @property
    def num_bytes(self) -> int:
        """Bytes on disk."""
        return numel(self.shape) * self.dtype.itemsize

    @property
    def stop(self) -> int:
        """First byte after it."""
        return self.start + self.num_bytes


@dataclass(frozen=True)
class Header:
    """What a file holds."""

    slots: dict[str, Slot]
    """Tensors by name, in the order of their bytes."""
    file_bytes: int
    """Size of the file."""


def read_header(path: Path) -> Header:
    """Read and check the header of a file.

    Raises:
        CheckpointError: if the file is cut, the header is damaged or does not fit the file, or a
            dtype is not supported.
    """
    file_bytes = path.stat().st_size
    with path.open("rb") as file:
        prefix = file.read(8)
        length = int.from_bytes(prefix, "little")
        if len(prefix) < 8 or length > min(MAX_HEADER_BYTES, file_bytes - 8):
            raise _damaged(path, f"header of {length} bytes in a file of {file_bytes}")
        raw = file.read(length)
    entries = _entries(path, _parse(path, raw))
    _check_gapless(path, entries, 8 + length, file_bytes)
    refuse_unsupported(path, {name: entry.dtype for name, entry in entries.items()})
    slots = {name: Slot(DTYPES[entry.dtype], entry.shape, 8 + length + entry.start)
             for name, entry in entries.items()}  # fmt: skip
    return Header(slots, file_bytes)


def header_hash(path: Path) -> str:
    """sha256 of a header that `read_header` accepted, with its length, hexadecimal."""
    with path.open("rb") as file:
        prefix = file.read(8)
        return hashlib.sha256(prefix + file.read(int.from_bytes(prefix, "little"))).hexdigest()


def _parse(path: Path, raw: bytes) -> dict[str, Any]:
    def no_twins(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        if len(dict(pairs)) < len(pairs):
            raise ValueError("a name stands twice")
        return dict(pairs)

    try:
        content = json.loads(raw.decode("utf-8"), object_pairs_hook=no_twins)
    except (ValueError, RecursionError) as error:
        raise _damaged(path, f"header is not JSON: {error}") from error
    if not isinstance(content, dict):
        raise _damaged(path, "header is no JSON object")
    metadata = content.pop("__metadata__", {"format": PLAIN})
    if not isinstance(metadata, dict) or metadata.get("format") not in (PLAIN, NEEDS_RELEASE_5):
        raise _damaged(path, f"metadata = {metadata!r:.80}")
    return content


@dataclass(frozen=True)
class _Entry:
    """What a header says of one tensor, of any dtype of the format."""

    dtype: str
    shape: tuple[int, ...]
    start: int
    """First byte, from the end of the header."""
    stop: int


def _entries(path: Path, content: Mapping[str, Any]) -> dict[str, _Entry]:
    """Entries in the order of their bytes."""
    entries = {}
    for name, content_of_one in content.items():
        try:
            start, stop = (int(offset) for offset in content_of_one["data_offsets"])
            shape = tuple(map(int, content_of_one["shape"]))
            entry = _Entry(str(content_of_one["dtype"]), shape, start, stop)
        except (KeyError, TypeError, ValueError, OverflowError) as error:
            raise _damaged(path, f"entry {name!r} = {content_of_one!r:.120}") from error
        if entry.dtype not in BITS:
            raise _damaged(path, f"{name!r} dtype = {entry.dtype!r:.40}, which the format has not")
        if min((*shape, 0)) < 0 or num_bytes(entry.dtype, shape) != stop - start:
            raise _damaged(path, f"entry {name!r} = {content_of_one!r:.120}")
        entries[name] = entry
    return dict(sorted(entries.items(), key=lambda item: item[1].start))


def _check_gapless(
    path: Path, entries: Mapping[str, _Entry], data_start: int, file_bytes: int
) -> None:
    end = data_start
    for name, entry in entries.items():
        if data_start + entry.start != end:
            raise _damaged(
                path, f"{name!r} starts at byte {data_start + entry.start} where {end} ends"
            )
        end = data_start + entry.stop
    if end != file_bytes:
        raise _damaged(path, f"tensors end at byte {end} of {file_bytes}")


def _damaged(path: Path, what: str) -> CheckpointError:
    return CheckpointError(
        f"{path}: {what}; expected a whole safetensors file. Copy or save it again."
    )


def map_tensors(path: Path, header: Header) -> dict[str, StoredTensor]:
    """The tensors of a file, mapped; nothing is read yet.

    Args:
        path: the file.
        header: what `read_header` gave for it.

    Returns:
        Tensors by name.
    """
    with path.open("rb") as file:
        mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    return {name: StoredTensor(slot.shape, (_view(mapped, slot),)) for name, slot in
            header.slots.items()}  # fmt: skip


def _view(mapped: mmap.mmap, slot: Slot) -> torch.Tensor:
    count = numel(slot.shape)
    if count == 0:
        return torch.empty(0, dtype=slot.dtype)
    with warnings.catch_warnings():
        # torch warns that the buffer is read-only; nobody writes to it
        warnings.filterwarnings("ignore", message="The given buffer is not writable")
        return torch.frombuffer(mapped, dtype=slot.dtype, count=count, offset=slot.start)


def encode_header(
    tensors: Sequence[tuple[str, torch.dtype, tuple[int, ...]]],
    *,
    multiple: int = 8,
    form: str = PLAIN,
) -> bytes:
    """Header of a file that holds `tensors` in this order, with its length, padded by blanks.

    Args:
        tensors: name, dtype and shape of each; put wide dtypes first, to keep them aligned.
        multiple: of which its size in bytes is one, itself a multiple of 8.
        form: what the file says of its format.
    """
    names = {dtype: name for name, dtype in DTYPES.items()}
    content: dict[str, Any] = {"__metadata__": {"format": form}}
    stop = 0
    for name, dtype, shape in tensors:
        start, stop = stop, stop + numel(shape) * dtype.itemsize
        content[name] = {"dtype": names[dtype], "shape": shape, "data_offsets": [start, stop]}
    raw = json.dumps(content, separators=(",", ":")).encode()
    raw += b" " * (-(8 + len(raw)) % multiple)
    return len(raw).to_bytes(8, "little") + raw
