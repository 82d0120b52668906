"""What the page cache holds of a file, and how it gets out of there."""

import ctypes
import mmap
import os
from pathlib import Path

import numpy as np
import pytest


def resident_bytes(path: Path) -> int:
    """How much of a file is in the page cache."""
    size = path.stat().st_size
    libc = ctypes.CDLL(None)
    libc.mincore.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_void_p]
    pages = np.zeros(-(-size // mmap.PAGESIZE), np.uint8)
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as mapped:
        data = np.frombuffer(mapped, np.uint8)
        assert libc.mincore(data.ctypes.data, size, pages.ctypes.data) == 0
        del data
    return int((pages & 1).sum()) * mmap.PAGESIZE


def empty_page_cache(path: Path) -> None:
    """Bring a file to disk and out of the page cache; skips the test where that cannot be."""
    descriptor = os.open(path, os.O_RDONLY)
    os.fsync(descriptor)
    os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
    os.close(descriptor)
    if resident_bytes(path):
        pytest.skip("this file system keeps its files in memory")
