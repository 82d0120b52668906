"""Memory of this process: resident pages on a CPU, torch's allocator on a GPU; bytes."""

from pathlib import Path


def in_use() -> int:
    """Bytes held now."""
    import torch

    if torch.cuda.is_available():
        return torch.cuda.memory_allocated()
    return _status_bytes("VmRSS")


def reset_peak() -> int:
    """Bytes held now, from where the peak counts."""
    import torch

    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
    else:
        # 5 resets the kernel's high-water mark of resident pages
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
    return in_use()


def peak() -> int:
    """Most bytes held since the peak was reset."""
    import torch

    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated()
    return _status_bytes("VmHWM")


def _status_bytes(field: str) -> int:
    """A line of /proc/self/status such as `VmHWM:  1234 kB`."""
    for line in Path("/proc/self/status").read_text(encoding="ascii").splitlines():
        if line.startswith(field + ":"):
            return int(line.split()[1]) * 1024
    raise SystemExit(f"/proc/self/status has no {field}: memory cannot be measured here")
