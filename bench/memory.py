"""Memory of processes: anonymous pages and resident ones, or torch's allocator on a GPU; bytes.

Anonymous pages are no file's. Resident memory as a whole also has pages of libraries and data
files, which the system takes back when it likes: what something needs may be less than nothing.
"""

from pathlib import Path
from threading import Event, Thread
from types import TracebackType

SAMPLE_SEC = 0.005


def anonymous_bytes(pid: int | str = "self") -> int:
    """Anonymous resident pages of a process; 0 once it has ended.

    Raises:
        SystemExit: if the system does not report them.
    """
    try:
        status = Path(f"/proc/{pid}/status").read_text(encoding="ascii", errors="replace")
    except (FileNotFoundError, ProcessLookupError):
        return 0
    for line in status.splitlines():
        if line.startswith("RssAnon:"):
            return int(line.split()[1]) * 1024
    if "VmSize:" in status:
        raise SystemExit(f"/proc/{pid}/status has no RssAnon: memory cannot be measured here")
    return 0  # it has ended, and nobody waited for it yet


def children(pid: int) -> list[int]:
    """Processes that a process has started, and theirs; none once it has ended."""
    try:
        listed = Path(f"/proc/{pid}/task/{pid}/children").read_text(encoding="ascii")
    except (FileNotFoundError, ProcessLookupError):
        return []
    found = [int(child) for child in listed.split()]
    return found + [each for child in found for each in children(child)]


class Peak:
    """Most memory of this process while a `with` block runs, and what it held at its start.

    On a CPU, where the kernel keeps no such mark, a thread samples it.
    """

    def __init__(self) -> None:
        self.held = self.bytes = 0
        self._stopped = Event()
        self._thread = Thread(target=self._watch, daemon=True)

    @property
    def above(self) -> int:
        """What was needed above what was held."""
        return self.bytes - self.held

    def __enter__(self) -> "Peak":
        import torch

        if torch.cuda.is_available():
            torch.cuda.reset_peak_memory_stats()
            self.held = torch.cuda.memory_allocated()
        else:
            self.held = self.bytes = anonymous_bytes()
            self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        import torch

        if torch.cuda.is_available():
            self.bytes = torch.cuda.max_memory_allocated()
            return
        self._stopped.set()
        self._thread.join()
        self.bytes = max(self.bytes, anonymous_bytes())

    def _watch(self) -> None:
        while not self._stopped.wait(SAMPLE_SEC):
            self.bytes = max(self.bytes, anonymous_bytes())


def in_use() -> int:
    """Resident now."""
    import torch

    if torch.cuda.is_available():
        return torch.cuda.memory_allocated()
    return _status_bytes("VmRSS")


def reset_peak() -> int:
    """Resident now, from where the kernel's mark of the most counts."""
    import torch

    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
    else:
        # 5 resets the kernel's high-water mark of resident pages
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
    return in_use()


def peak() -> int:
    """Most that was resident since the mark was reset."""
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
