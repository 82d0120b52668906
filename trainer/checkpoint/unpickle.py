"""Read pickled checkpoint files as data; it must not run anything that a file asks for.

A pickle may name any function to be called. Here it may name tensors, plain containers and the
classes of DeepSpeed in `ALLOWED`, for which inert stand-ins are built; anything else is refused by
name before a single object is made.
"""

import pickle
import re
import struct
import zipfile
from collections.abc import Collection
from pathlib import Path
from typing import Any

import torch
from torch.serialization import get_unsafe_globals_in_checkpoint, safe_globals

from trainer.errors import CheckpointError


class _Inert:
    """Stands for a DeepSpeed class: keeps the state it is given and does nothing with it."""

    def __init__(self, *state: Any) -> None:
        self.state = state


ALLOWED = (
    "deepspeed.runtime.zero.config.ZeroStageEnum",
    "deepspeed.runtime.fp16.loss_scaler.LossScaler",
    "deepspeed.runtime.fp16.loss_scaler.DynamicLossScaler",
    "deepspeed.utils.tensor_fragment.fragment_address",
)
"""Classes of DeepSpeed that its checkpoints hold; their code is never imported."""
MEMBER = "builtins.getattr"
"""How Python up to 3.11.3 names a member of an enum. What stands for it here looks nothing up."""

GROWING = re.compile(rb"\n(bytearray|encode)\n")
"""Calls that torch allows and that make gigabytes of a few bytes: `bytearray(n)` of nothing, and
encodings of encodings. Neither stands in a checkpoint of tensors, numbers and texts."""
MAX_ZIP_HEADER_BYTES = 1 << 16
"""Before a record: its name and padding."""
UNREADABLE = (RuntimeError, OSError, EOFError, ValueError, LookupError, TypeError, AttributeError,
              ArithmeticError, AssertionError, MemoryError, struct.error, zipfile.BadZipFile,
              pickle.UnpicklingError)  # fmt: skip
"""What torch's readers raise for files that are cut, damaged or of another kind."""


def load_pickled(path: Path) -> dict[str, Any]:
    """Open a file that `torch.save` wrote; its tensors stay on disk, mapped into memory.

    Args:
        path: a `.pt` file in torch's zip format.

    Returns:
        The saved dict; tensors are views of the mapped file.

    Raises:
        CheckpointError: if the file is cut or of another format, names anything but tensors,
            plain containers, `ALLOWED` and `MEMBER`, or holds no dict.
    """
    known = (*ALLOWED, MEMBER)
    refuse_code(path, known)
    try:
        with safe_globals([(_Inert, name) for name in known]):
            content = torch.load(path, map_location="cpu", mmap=True, weights_only=True)
    except UNREADABLE as error:
        raise _unreadable(path, error) from error
    if not isinstance(content, dict):
        raise CheckpointError(
            f"{path}: content = {type(content).__name__}; expected a dict. Is it a checkpoint?"
        )
    return content


def refuse_code(path: Path, known: Collection[str] = ALLOWED) -> None:
    """Look through the pickle of a file for names that it must not have; nothing is built.

    Args:
        path: a `.pt` file in torch's zip format.
        known: names that it may have beside tensors and plain containers.

    Raises:
        CheckpointError: if it names anything else, or is cut or of another format.
    """
    try:
        foreign = sorted({*get_unsafe_globals_in_checkpoint(str(path))} - {*known})
        foreign += _growing(path)
    except UNREADABLE as error:
        raise _unreadable(path, error) from error
    if foreign:
        raise CheckpointError(
            f"{path}: pickled names = {', '.join(foreign)}; expected tensors, plain containers and "
            "DeepSpeed's own classes. Nothing of the file was run; do not load it elsewhere."
        )


def _growing(path: Path) -> list[str]:
    """Names in the pickle by which a small file becomes large in memory.

    Raises:
        ValueError: if a record is compressed, which `torch.save` never does and which hides its
            size.
    """
    names: set[str] = set()
    with zipfile.ZipFile(path) as archive, path.open("rb") as file:
        for record in archive.infolist():
            if record.compress_type != zipfile.ZIP_STORED:
                raise ValueError(f"record {record.filename!r:.60} is compressed")
            if record.filename.endswith("/data.pkl"):
                file.seek(record.header_offset)
                raw = file.read(record.file_size + MAX_ZIP_HEADER_BYTES)
                names.update(found.decode() for found in GROWING.findall(raw))
    return sorted(names)


def _unreadable(path: Path, error: Exception) -> CheckpointError:
    reason = str(error).split("\n", 1)[0][:200] or type(error).__name__
    return CheckpointError(
        f"{path}: content = unreadable ({reason}); expected a whole file of torch.save. Copy it "
        "again, or use an older checkpoint."
    )
