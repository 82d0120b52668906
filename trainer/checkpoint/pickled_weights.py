"""Weights that `torch.save` wrote, as tensors mapped from the file; nothing of it is run."""

from pathlib import Path

import torch
from torch import Tensor

from trainer.checkpoint.safetensors_dtypes import refuse_unsupported
from trainer.checkpoint.safetensors_file import DTYPES
from trainer.checkpoint.tensors import StoredTensor
from trainer.checkpoint.unpickle import load_pickled
from trainer.errors import CheckpointError

NAMES = {dtype: name for name, dtype in DTYPES.items()}


def map_pickled(path: Path) -> dict[str, StoredTensor]:
    """The tensors of a file of weights by name.

    Args:
        path: in torch's zip format, as `torch.save` has written it since release 1.6.

    Raises:
        CheckpointError: if the file is cut or of another format, names anything but tensors and
            plain containers, or holds something else than dense tensors of supported dtypes.
    """
    tensors: dict[str, Tensor] = {}
    for name, value in load_pickled(path).items():
        if not isinstance(value, Tensor) or value.layout != torch.strided or value.is_meta:
            kind = str(value.layout) if isinstance(value, Tensor) else type(value).__name__
            raise CheckpointError(
                f"{path}: {name!s:.80} = {kind}; expected dense tensors by name. Is it a file of "
                "weights? Save the model with save_pretrained."
            )
        tensors[str(name)] = value.detach()
    kinds = {
        name: NAMES.get(value.dtype, str(value.dtype).removeprefix("torch."))
        for name, value in tensors.items()
    }
    refuse_unsupported(path, kinds)
    return {
        name: StoredTensor(tuple(value.shape), (value.contiguous().view(-1),))
        for name, value in tensors.items()
    }
