"""DeepSpeed's access to checkpoint files, made safe in both directions.

Writing keeps a fault of the disk until all ranks can agree on it: raised at once, on one rank, it
would leave the others waiting in DeepSpeed's barriers. Reading builds tensors, plain containers
and DeepSpeed's own classes, and executes nothing that a file asks for.
"""

import contextlib
import errno
import pickle
import shutil
from pathlib import Path
from typing import Any

import torch
from deepspeed.runtime.checkpoint_engine.torch_checkpoint_engine import TorchCheckpointEngine
from deepspeed.runtime.fp16.loss_scaler import DynamicLossScaler, LossScaler
from deepspeed.runtime.zero.config import ZeroStageEnum
from deepspeed.utils.tensor_fragment import fragment_address
from torch.serialization import safe_globals

from trainer.errors import CheckpointError

OWN_CLASSES = [ZeroStageEnum, LossScaler, DynamicLossScaler, fragment_address]
"""Of DeepSpeed, in its checkpoints; their constructors only store."""


def _by_value(member: ZeroStageEnum, protocol: int) -> tuple[type[ZeroStageEnum], tuple[int]]:
    """A member of an enum as Python pickles it from 3.11.4 on.

    Earlier releases write a call of `getattr`, which no reader that runs no code takes.
    """
    return ZeroStageEnum, (member.value,)


ZeroStageEnum.__reduce_ex__ = _by_value


class CheckpointFiles(TorchCheckpointEngine):
    """What `engine.checkpoint_engine` is while this project saves or loads."""

    def __init__(self) -> None:
        """Start without a failure."""
        super().__init__()
        self.failure: OSError | None = None
        """The first fault of the disk; nothing was written after it."""

    def makedirs(self, path: str, exist_ok: bool = False) -> None:
        """Create a folder, or keep why not."""
        try:
            super().makedirs(path, exist_ok=exist_ok)
        except OSError as error:
            self.failure = self.failure or error

    def save(self, state_dict: dict[str, Any], path: str) -> None:
        """Write a file, or keep why not."""
        if self.failure is not None:
            return
        try:
            torch.save(state_dict, path)
        except OSError as error:
            self.failure = error
        except RuntimeError as error:
            self.failure = OSError(errno.EIO, _described(error, Path(path)), path)

    def load(self, path: str, map_location: Any = None) -> Any:
        """Read a file.

        Raises:
            CheckpointError: it names something else than tensors and DeepSpeed's own classes.
        """
        try:
            with safe_globals(OWN_CLASSES):
                return torch.load(path, map_location=map_location, weights_only=True)
        except pickle.UnpicklingError as error:
            reason = str(error).split("\n", 1)[0][:200]
            raise CheckpointError(
                f"{path}: content = unsafe or damaged ({reason}); expected tensors and DeepSpeed's "
                f"own classes. Nothing of the file was run; use another checkpoint."
            ) from error


def _described(error: RuntimeError, path: Path) -> str:
    """Why torch's zip writer failed, as its own words do not mention the disk."""
    with contextlib.suppress(OSError):
        free = shutil.disk_usage(path.parent).free
        return f"writing failed with {free / 1e9:.3f} GB of free disk"
    return str(error).split("\n", 1)[0][:120]
