"""Read pickled checkpoint files as data; it must not run anything that a file asks for.

A pickle may name any function to be called. Here it may name tensors, plain containers and the
classes of DeepSpeed in `ALLOWED`, for which inert stand-ins are built; anything else is refused by
name before a single object is made.
"""

import pickle
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


UNREADABLE = (RuntimeError, OSError, EOFError, ValueError, LookupError, TypeError, AttributeError,
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
            plain containers and `ALLOWED`, or holds no dict.
    """
    refuse_code(path)
    try:
        with safe_globals([(_Inert, name) for name in ALLOWED]):
            content = torch.load(path, map_location="cpu", mmap=True, weights_only=True)
    except UNREADABLE as error:
        raise _unreadable(path, error) from error
    if not isinstance(content, dict):
        raise CheckpointError(
            f"{path}: content = {type(content).__name__}; expected a dict. Is it a checkpoint?"
        )
    return content


def refuse_code(path: Path) -> None:
    """Look through the pickle of a file for names that it must not have; nothing is built.

    Args:
        path: a `.pt` file in torch's zip format.

    Raises:
        CheckpointError: if it names anything but tensors, plain containers and `ALLOWED`, or is
            cut or of another format.
    """
    try:
        foreign = sorted(set(get_unsafe_globals_in_checkpoint(str(path))) - set(ALLOWED))
    except UNREADABLE as error:
        raise _unreadable(path, error) from error
    if foreign:
        raise CheckpointError(
            f"{path}: pickled names = {', '.join(foreign)}; expected tensors, plain containers and "
            "DeepSpeed's own classes. Nothing of the file was run; do not load it elsewhere."
        )


def _unreadable(path: Path, error: Exception) -> CheckpointError:
    reason = str(error).split("\n", 1)[0][:200]
    return CheckpointError(
        f"{path}: content = unreadable ({reason}); expected a whole file of torch.save. Copy it "
        "again, or use an older checkpoint."
    )
