"""Take files that were read through mappings out of the page cache; it must not know formats.

Only Linux lists what is mapped where. Elsewhere, and where a file cannot be opened again, nothing
happens: all of this is advice.
"""

import ctypes
import mmap
import os
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

MAPS = Path("/proc/self/maps")
FOLIO_BYTES = 2 << 20
"""Pages go in groups of up to this size, and a group goes as a whole."""


@dataclass(frozen=True)
class Mapping:
    """A part of a file and where it lies in memory."""

    address: int
    """Of its first byte."""
    stop: int
    """Address after its last byte."""
    offset: int
    """Its first byte in the file."""
    path: str
    """The file."""


def file_mappings() -> list[Mapping]:
    """Every part of a file that this process has mapped now."""
    lines = MAPS.read_text(errors="surrogateescape").splitlines() if MAPS.is_file() else []
    found = []
    for line in lines:
        # address-address permissions offset device inode path
        fields = line.split(maxsplit=5)
        if len(fields) == 6 and fields[5].startswith("/"):
            start, stop = (int(address, 16) for address in fields[0].split("-"))
            found.append(Mapping(start, stop, int(fields[2], 16), fields[5]))
    return found


def drop_pages(values: Tensor, mappings: list[Mapping]) -> None:
    """Forget the pages of a tensor that lies in mapped files; the next access reads them again.

    Pages that others have mapped stay, and so do memory that belongs to no file and tensors of less
    than `FOLIO_BYTES`. Up to as many bytes beside the tensor go with it.

    Args:
        values: contiguous; if it lies in a file, nothing may have been written to that mapping.
        mappings: what `file_mappings` gave since the tensor was mapped.
    """
    if values.nbytes < FOLIO_BYTES:
        # it goes with what lies beside it, which may be being read
        return
    for part in _parts(values, mappings):
        count = part.stop - part.address
        _libc().madvise(part.address, count, mmap.MADV_DONTNEED)
        with suppress(OSError):
            descriptor = os.open(part.path, os.O_RDONLY)
            try:
                os.posix_fadvise(descriptor, part.offset, count, os.POSIX_FADV_DONTNEED)
            finally:
                os.close(descriptor)


def _parts(values: Tensor, mappings: list[Mapping]) -> Iterator[Mapping]:
    """Where a tensor lies in mapped files, with the groups that begin before or end after it."""
    first = values.data_ptr() // mmap.PAGESIZE * mmap.PAGESIZE
    last = values.data_ptr() + values.nbytes
    for one in mappings:
        if max(first, one.address) < min(last, one.stop):
            # never beyond this mapping: what lies beside it may have been written to
            start = max(first - FOLIO_BYTES, one.address)
            stop = min(last + FOLIO_BYTES, one.stop)
            yield Mapping(start, stop, one.offset + start - one.address, one.path)


def _libc() -> ctypes.CDLL:
    libc = ctypes.CDLL(None)
    libc.madvise.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
    return libc
