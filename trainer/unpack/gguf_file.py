"""A GGUF file, opened and checked before any of its weights is used; it must not write.

The package `gguf` reads the file and dequantises its tensors; transformers makes config and
tokenizer of its metadata.
"""

import importlib.util
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trainer.errors import CheckpointError

if TYPE_CHECKING:
    from gguf import ReaderTensor
    from transformers import PretrainedConfig

MALFORMED = (
    ArithmeticError, AttributeError, LookupError, MemoryError, TypeError, ValueError, struct.error,
)  # fmt: skip
"""What readers raise for bytes that are no GGUF."""
SCALED_POSITIONS = ("rope_freqs.", "rope_factors_long.", "rope_factors_short.")
"""Tensors that scale rotary positions, which transformers does not read."""
SCALING_TYPE = "rope.scaling.type"
KEPT_LISTS = ("general.languages",)
"""Lists of texts that are read; of others, such as the vocabulary, the length is enough here."""


@dataclass(frozen=True, kw_only=True)
class GgufFile:
    """What a file says of itself; its tensors are mapped, and none is read yet."""

    path: Path
    """The file."""
    metadata: Mapping[str, Any]
    """Values by key; lists of texts but those of `KEPT_LISTS` are replaced by their lengths."""
    tensors: Sequence["ReaderTensor"]
    """In the order of the file."""

    @property
    def architecture(self) -> str:
        """What llama.cpp calls the kind of model."""
        return str(self.metadata["general.architecture"])

    @property
    def types(self) -> list[str]:
        """Quantisations of the tensors, by name."""
        return sorted({tensor.tensor_type.name for tensor in self.tensors})


def open_gguf(path: Path) -> GgufFile:
    """Read the metadata and the table of tensors, and refuse what cannot be unpacked.

    Raises:
        CheckpointError: if the package gguf is missing; the file is missing, cut or damaged, or one
            of several parts; or a tensor is quantised in a way that gguf does not dequantise.
    """
    refuse_without_package(path)
    if not path.is_file():
        raise CheckpointError(f"{path}: file = missing; expected a GGUF file. Check the path.")
    # heavy
    from gguf import GGUFReader
    from transformers.integrations.gguf.reader import read_gguf_metadata

    try:
        # first: it ends at once where a damaged count would keep the other reader busy for ever
        metadata, _ = read_gguf_metadata(str(path), KEPT_LISTS)
        tensors = GGUFReader(path).tensors
    except MALFORMED as error:
        raise damaged(path, f"{type(error).__name__}: {error}") from error
    file = GgufFile(path=path, metadata=metadata, tensors=tensors)
    _refuse_parts(file)
    _refuse_types(file)
    return file


def refuse_without_package(path: Path) -> None:
    """Look for the package gguf, without importing it.

    Raises:
        CheckpointError: if it is not installed.
    """
    if importlib.util.find_spec("gguf") is None:
        raise CheckpointError(
            f"{path}: package gguf = missing; expected it, to read GGUF files. Run: pip install "
            "-e '.[gguf]'"
        )


def _refuse_parts(file: GgufFile) -> None:
    count = file.metadata.get("split.count", 0)
    if count > 1:
        raise CheckpointError(
            f"{file.path}: split.count = {count}; expected a model in one file. Join its parts: "
            "llama-gguf-split --merge FIRST_PART OUTPUT"
        )


def _refuse_types(file: GgufFile) -> None:
    """Dequantise a row of each type, so that no other type is met halfway."""
    from gguf import dequantize

    examples = {tensor.tensor_type: tensor for tensor in file.tensors}
    for kind, tensor in examples.items():
        try:
            dequantize(tensor.data.reshape(-1, tensor.data.shape[-1])[:1], kind)
        except NotImplementedError as error:
            raise CheckpointError(
                f"{file.path}: {tensor.name} = {kind.name}; expected a type that the package gguf "
                "dequantises. Take a file of another type, such as Q8_0 or F16."
            ) from error
        except MALFORMED as error:
            raise damaged(file.path, f"{tensor.name}: {error}") from error


def load_config(file: GgufFile) -> "PretrainedConfig":
    """The config that transformers makes of the metadata, without names of files.

    Raises:
        CheckpointError: if transformers does not know the architecture, or keys are missing.
    """
    from transformers import AutoConfig

    try:
        config = AutoConfig.from_pretrained(file.path.parent, gguf_file=file.path.name)
    except (*MALFORMED, OSError, NotImplementedError) as error:
        raise unreadable(file, error) from error
    # general.name, under a key that no config has
    vars(config).pop("_model_name_or_path", None)
    return config


def unread_scaling(file: GgufFile) -> str | None:
    """What scales rotary positions in the file and not in transformers' reading; None if nothing.

    transformers has a table of the keys that it reads; scaling is in none but that of gpt-oss.
    """
    kind = file.metadata.get(f"{file.architecture}.{SCALING_TYPE}", "none")
    if kind != "none" and file.architecture != "gpt-oss":
        return f"{file.architecture}.{SCALING_TYPE} = {kind}"
    named = (tensor.name for tensor in file.tensors if tensor.name.startswith(SCALED_POSITIONS))
    return next(named, None)


def unreadable(file: GgufFile, error: Exception) -> CheckpointError:
    """The error that transformers cannot make a model of the file."""
    line = (str(error).strip().splitlines() or [type(error).__name__])[0]
    return CheckpointError(
        f"{file.path}: general.architecture = {file.architecture}; expected a decoder that "
        f"transformers reads from GGUF. {line}"
    )


def damaged(path: Path, what: str) -> CheckpointError:
    """The error that a file is no whole GGUF file."""
    return CheckpointError(
        f"{path}: content = {what}; expected a whole GGUF file, of types that the package gguf "
        "knows. Copy or download it again."
    )
