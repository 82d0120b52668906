"""What memory a rank may use: of its GPU, or its share of the machine and of the limits set on it.

It must not know models.
"""

import os
import resource
from pathlib import Path

import torch

RESERVED_BYTES = 2 * 2**30
"""CUDA context, cuBLAS workspaces and fragmentation of the allocator, per GPU."""
MEMINFO = Path("/proc/meminfo")
"""Where Linux reports how much memory is free."""
CGROUP = Path("/proc/self/cgroup")
"""Where Linux says which control group limits this process: `0::/path` with version 2."""
CGROUPS = Path("/sys/fs/cgroup")
"""Where the groups' files are."""
STATM = Path("/proc/self/statm")
"""Sizes of this process in pages; the first is its address space."""


def usable(gpu_bytes: int) -> int:
    """What tensors may take of a GPU's memory, bytes."""
    return gpu_bytes - RESERVED_BYTES


def device_memory(num_local_ranks: int) -> int | None:
    """Bytes that a rank's tensors may take: of its GPU, or of its share of the free memory.

    A control group's limit is shared as the machine is; a limit on address space is a process's.

    Args:
        num_local_ranks: ranks that share this machine's memory; a GPU belongs to one rank.
    """
    if torch.cuda.is_available():
        free, total = torch.cuda.mem_get_info()
        return min(usable(int(total)), int(free))
    if not MEMINFO.exists():
        return None
    lines = MEMINFO.read_text().splitlines()
    kibibytes = next(int(line.split()[1]) for line in lines if line.startswith("MemAvailable"))
    shared = min([kibibytes * 1024, *_left_of_groups()])
    return min([shared // num_local_ranks, *_left_of_process()])


def _left_of_groups() -> list[int]:
    """Bytes that this process's control group, and each one around it, may still take."""
    if not CGROUP.exists():
        return []
    lines = (line.split(":", 2) for line in CGROUP.read_text().splitlines())
    name = next((path for number, _, path in lines if number == "0"), None)
    if name is None:
        return []
    inner = CGROUPS / name.lstrip("/")
    folders = [folder for folder in (inner, *inner.parents) if folder.is_relative_to(CGROUPS)]
    return [left for folder in folders if (left := _left_of_group(folder)) is not None]


def _left_of_group(folder: Path) -> int | None:
    """Bytes left of one group's limit; None where it has none. Its file cache can be freed."""
    try:
        limit = (folder / "memory.max").read_text().strip()
        taken = int((folder / "memory.current").read_text())
        parts = dict(line.split() for line in (folder / "memory.stat").read_text().splitlines())
    except OSError:
        return None
    return None if limit == "max" else max(0, int(limit) - taken + int(parts["inactive_file"]))


def _left_of_process() -> list[int]:
    """Bytes of address space that this process may still take, where that is limited."""
    limit, _ = resource.getrlimit(resource.RLIMIT_AS)
    if limit == resource.RLIM_INFINITY or not STATM.exists():
        return []
    taken = int(STATM.read_text().split()[0]) * os.sysconf("SC_PAGE_SIZE")
    return [max(0, limit - taken)]
