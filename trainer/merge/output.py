"""Write a model's shards tensor by tensor into a folder that looks unfinished until it is done.

Files lie in `<output>.partial-<id>` and are renamed in one move. Their headers are written last,
so that even a shard of full size opens nowhere before its tensors are complete. A journal names
the finished tensors with a checksum of their bytes: `--resume` reads these again before trusting
them.
"""

import errno
import fcntl
import json
import os
import shutil
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from threading import Event
from types import TracebackType
from typing import Any

import numpy as np
from torch import Tensor, uint8

from trainer.checkpoint.dense_files import DENSE_TENSORS
from trainer.checkpoint.names import projection_name
from trainer.checkpoint.open import INDEX, SINGLE
from trainer.checkpoint.safetensors_file import PLAIN, Slot, encode_header, read_header
from trainer.errors import CheckpointError
from trainer.merge.output_file import BLOCK_BYTES, Bytes, OutputFile, WordSum
from trainer.merge.stream import MergeItem

JOURNAL = ".journal.jsonl"
FLUSH_SEC = 0.2
"""Pause between two rounds of bringing to disk what was written through the page cache."""
FLUSH_BYTES = 1 << 20
"""Less of a file can wait for its end."""
DISK_ERRORS = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES, errno.ENOTDIR,
               errno.EEXIST)  # fmt: skip
"""What a full or closed disk raises; a mistake of the user, not a fault."""


@dataclass(frozen=True)
class ShardFile:
    """One file of weights."""

    name: str
    """File name."""
    header: bytes
    """What it begins with."""
    slots: dict[str, Slot]
    """Where its tensors lie."""
    prefix: str = ""
    """What the names of tensors have before those in this file: that of a module's own file."""

    @property
    def num_bytes(self) -> int:
        """Size when complete."""
        return len(self.header) + sum(slot.num_bytes for slot in self.slots.values())


def plan_shards(
    items: Sequence[MergeItem], max_shard_bytes: int, *, form: str = PLAIN, dense: str = ""
) -> list[ShardFile]:
    """Cut tensors, in their order, into files of at most `max_shard_bytes` where they fit.

    Args:
        items: what is written.
        max_shard_bytes: size of a file.
        form: what the files say of their format.
        dense: folder of the dense layer behind the pooling, whose tensors have a file there.
    """
    projected = [item for item in items if projection_name(item.name)]
    backbone = [item for item in items if not projection_name(item.name)]
    shards = _backbone_shards(backbone, max_shard_bytes, form)
    if projected:
        shards.append(_lay_out(f"{dense}/{SINGLE}", projected, PLAIN, prefix=DENSE_TENSORS))
    return shards


def _backbone_shards(
    items: Sequence[MergeItem], max_shard_bytes: int, form: str
) -> list[ShardFile]:
    shards: list[list[MergeItem]] = [[]]
    used = 0
    for item in items:
        if shards[-1] and used + item.num_bytes > max_shard_bytes:
            shards.append([])
            used = 0
        shards[-1].append(item)
        used += item.num_bytes
    if len(shards) == 1:
        return [_lay_out(SINGLE, shards[0], form)]
    names = [f"model-{i + 1:05d}-of-{len(shards):05d}.safetensors" for i in range(len(shards))]
    return [_lay_out(name, shard, form) for name, shard in zip(names, shards, strict=True)]


def _lay_out(name: str, items: Sequence[MergeItem], form: str, *, prefix: str = "") -> ShardFile:
    # whole blocks first are all written directly; then wide dtypes first, aligned to their size
    ordered = sorted(
        items, key=lambda item: (item.num_bytes % BLOCK_BYTES != 0, -item.dtype.itemsize)
    )
    header = encode_header(
        [(item.name.removeprefix(prefix), item.dtype, item.base.shape) for item in ordered],
        multiple=BLOCK_BYTES,
        form=form,
    )
    start, slots = len(header), {}
    for item in ordered:
        slots[item.name.removeprefix(prefix)] = Slot(item.dtype, tuple(item.base.shape), start)
        start += item.num_bytes
    return ShardFile(name, header, slots, prefix)


def index_json(shards: Sequence[ShardFile]) -> str:
    """Content of the index of several shards."""
    total = sum(slot.num_bytes for shard in shards for slot in shard.slots.values())
    weight_map = {name: shard.name for shard in shards for name in shard.slots}
    content = {"metadata": {"total_size": total}, "weight_map": dict(sorted(weight_map.items()))}
    return json.dumps(content, indent=2)


class TensorWriter:
    """Writes one tensor's bytes at its place, in order."""

    def __init__(self, file: OutputFile, slot: Slot) -> None:
        self.file = file
        self.slot = slot
        self.position = slot.start
        self.checksum = WordSum()
        self._ends: dict[str, tuple[int, Bytes]] = {}

    def write(self, values: Tensor) -> None:
        """Append elements [n] of the slot's dtype."""
        data = values.view(uint8).numpy()
        self.checksum.update(data)
        self.file.write(data, self.position)
        self._ends.setdefault("first", (self.position, data[:BLOCK_BYTES].copy()))
        self.position += data.size
        last = data[-BLOCK_BYTES:].copy()
        self._ends["last"] = (self.position - last.size, last)

    def finish(self, *, read_all: bool) -> str:
        """Read back and compare; gives the checksum of all bytes.

        Args:
            read_all: read everything, not both ends alone.

        Raises:
            CheckpointError: if the file does not hold what was written.
        """
        digest = self.checksum.hexdigest()
        as_written = all(
            np.array_equal(self.file.read(position, data.size), data)
            for position, data in self._ends.values()
        )
        if read_all and as_written:
            as_written = self.file.checksum(self.slot.start, self.slot.stop) == digest
        if not as_written:
            raise CheckpointError(
                f"output: bytes {self.slot.start} to {self.position} = other than written; "
                "expected the same. The disk or its driver is faulty."
            )
        return digest


class PartialFolder(AbstractContextManager["PartialFolder"]):
    """The unfinished output: its files are open while it is entered.

    Left by an error of ours it vanishes; left by an interruption it stays for `--resume`.
    """

    def __init__(
        self,
        output: Path,
        identity: str,
        shards: Sequence[ShardFile],
        *,
        resume: bool = False,
        durable: bool = True,
    ) -> None:
        self.output = output
        self.path = output.with_name(f"{output.name}.partial-{identity}")
        self.shards = shards
        self.resume = resume
        self.durable = durable
        self.files: dict[str, OutputFile] = {}
        self._places = {shard.prefix + name: (shard.name, slot) for shard in shards
                        for name, slot in shard.slots.items()}  # fmt: skip
        self._lock_descriptor: int | None = None

    def __enter__(self) -> "PartialFolder":
        """Make the folder, and the files at their full size; start or keep the journal."""
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            self._lock()
            for shard in self.shards:
                (self.path / shard.name).parent.mkdir(exist_ok=True)
                self.files[shard.name] = OutputFile(
                    self.path / shard.name, shard.num_bytes, direct=self.durable
                )
        except OSError as error:
            self._close()
            shutil.rmtree(self.path, ignore_errors=True)
            if error.errno in DISK_ERRORS:
                raise _disk_error(self.output, error) from error
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Close the files; remove what an error left."""
        self._close()
        if isinstance(error, Exception):
            shutil.rmtree(self.path, ignore_errors=True)
        if isinstance(error, OSError) and error.errno in DISK_ERRORS:
            raise _disk_error(self.output, error) from error

    def allocated_bytes(self) -> int:
        """Disk that an interrupted merge already took."""
        files = self.path.rglob("*") if self.resume else ()
        return sum(512 * file.stat().st_blocks for file in files)

    def _lock(self) -> None:
        """Take the journal; a second merge of the same kind at the same time is refused."""
        descriptor = os.open(self.path / JOURNAL, os.O_RDWR | os.O_CREAT, 0o644)
        self._lock_descriptor = descriptor
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            self._close()
            raise CheckpointError(
                f"{self.path}: writer = another process; expected none. Wait for that merge, or "
                "end it."
            ) from error
        # what follows a line that was cut would not be read
        whole = _journal_lines(self.path / JOURNAL)[1] if self.resume else 0
        os.truncate(self.path / JOURNAL, whole)

    def _close(self) -> None:
        for file in self.files.values():
            file.close()
        self.files.clear()
        if self._lock_descriptor is not None:
            os.close(self._lock_descriptor)
        self._lock_descriptor = None

    def writer(self, name: str) -> TensorWriter:
        """A writer for one tensor."""
        file, slot = self._places[name]
        return TensorWriter(self.files[file], slot)

    def note(self, entry: Mapping[str, Any]) -> None:
        """Add a finished tensor to the journal."""
        with (self.path / JOURNAL).open("a", encoding="utf-8") as journal:
            journal.write(json.dumps(entry) + "\n")

    def finished(self) -> dict[str, dict[str, Any]]:
        """Tensors that the journal names and whose bytes are what it says, by name."""
        entries = {str(one["name"]): one for one in _journal_lines(self.path / JOURNAL)[0]}
        good = {}
        for name, entry in entries.items():
            if name not in self._places:
                continue
            file, slot = self._places[name]
            if self.files[file].checksum(slot.start, slot.stop) == entry.get("checksum"):
                good[name] = entry
        return good

    def flush_until(self, done: Event) -> None:
        """Keep bringing to disk what was written, so that little is left to wait for at the end."""
        while self.durable and not done.wait(FLUSH_SEC):
            for file in self.files.values():
                if file.waiting_bytes >= FLUSH_BYTES:
                    file.sync()

    def seal(self) -> None:
        """Write the headers, bring them to disk, and read them again."""
        for shard in self.shards:
            self.files[shard.name].write(np.frombuffer(shard.header, np.uint8), 0)
            if self.durable:
                self.files[shard.name].sync()
            if read_header(self.path / shard.name).slots != shard.slots:
                raise CheckpointError(
                    f"{self.path / shard.name}: header = other than written; expected the same. "
                    "The disk or its driver is faulty."
                )
        backbone = [shard for shard in self.shards if not shard.prefix]
        if len(backbone) > 1:
            (self.path / INDEX).write_text(index_json(backbone), encoding="utf-8")

    def publish(self) -> None:
        """Give the folder its name; nothing is written afterwards."""
        (self.path / JOURNAL).unlink(missing_ok=True)
        if self.durable:
            for path in (*self.path.rglob("*"), self.path):
                _sync(path)
        if self.output.exists():
            raise CheckpointError(f"{self.output}: folder = present by now; expected none. Merge "
                                  "into another folder.")  # fmt: skip
        self.path.rename(self.output)
        if self.durable:
            _sync(self.output.parent)


def _journal_lines(path: Path) -> tuple[list[dict[str, Any]], int]:
    """Entries of a journal up to a line that was cut, and how many bytes they take."""
    entries, size = [], 0
    for line in path.read_bytes().splitlines(keepends=True):
        try:
            entry = json.loads(line)
        except ValueError:
            break
        if not line.endswith(b"\n"):
            break
        entries.append(entry)
        size += len(line)
    return entries, size


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _disk_error(output: Path, error: OSError) -> CheckpointError:
    return CheckpointError(
        f"{output}: writing = {error.strerror}; expected a folder with room for the result. Free "
        "space, or merge to another disk."
    )


def check_output(output: Path, needed_bytes: int) -> None:
    """Refuse an output that exists or does not fit, before anything is written.

    Args:
        output: folder to make.
        needed_bytes: size of all its files.

    Raises:
        CheckpointError: if it exists, or the disk has less room.
    """
    if output.exists() or output.is_symlink():
        raise CheckpointError(
            f"{output}: folder = present; expected none. Merge into another folder, or move this "
            "one away."
        )
    parent = output.absolute().parent
    while not parent.exists():
        parent = parent.parent
    free = shutil.disk_usage(parent).free
    if free < needed_bytes:
        raise CheckpointError(
            f"{output}: free disk = {free:,} bytes; expected at least {needed_bytes:,}. Free "
            "space, or merge to another disk."
        )
