"""Whether a file is still the one that was checked before training; it must not read its rows."""

import os
from dataclasses import dataclass
from pathlib import Path

from trainer.data.files import digest_of, map_file
from trainer.data.tables import Table
from trainer.errors import DataError


@dataclass
class Mark:
    """What a file was like when its rows were checked."""

    path: Path
    """What is read."""
    name: Path
    """What messages call it."""
    sha256: str
    """Of its content, hexadecimal."""
    size_bytes: int
    """Length of its content."""
    changed_ns: tuple[int, int]
    """When it was last written, and changed in any way, nanoseconds; only the first can be set."""

    @classmethod
    def of(cls, path: Path, sha256: str, name: Path | None = None) -> "Mark":
        """The mark of a file as it is now, with the digest of its content; `name` if not `path`."""
        stat = os.stat(path)
        return cls(path, name or path, sha256, stat.st_size, _changed_ns(stat))

    def check(self) -> None:
        """Refuse a file that was removed or written to; one that was only touched is read again.

        Raises:
            DataError: naming it.
        """
        try:
            stat = os.stat(self.path)
        except OSError as error:
            raise self._error(error.strerror or "unreadable") from error
        if stat.st_size != self.size_bytes:
            raise self._error(f"{stat.st_size} bytes, {self.size_bytes} when the run began")
        changed_ns = _changed_ns(stat)
        if changed_ns != self.changed_ns:
            if digest_of(map_file(self.path)).tobytes().hex() != self.sha256:
                raise self._error("another content than when the run began")
            self.changed_ns = changed_ns

    def _error(self, got: str) -> DataError:
        return DataError(
            f"{self.name}: content = {got}; expected a data file that stays as it is while the run "
            "goes on. Put it back and continue with --resume."
        )


def _changed_ns(stat: os.stat_result) -> tuple[int, int]:
    return stat.st_mtime_ns, stat.st_ctime_ns


def marks_of(table: Table) -> tuple[Mark, ...]:
    """Marks of the files of a table as they are now; a set of the hub has none."""
    return tuple(
        Mark.of(file.path, file.sha256, file.name) for file in table.files if file.path is not None
    )
