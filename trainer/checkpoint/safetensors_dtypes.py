"""Dtypes of the safetensors format: how long they are, and which are taken; it imports no torch."""

import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from math import prod
from pathlib import Path
from typing import Any

from trainer.errors import CheckpointError

FLOATS = ("F64", "F32", "F16", "BF16")
"""What weights are taken in."""
INTEGERS = ("I64", "I32", "I16", "I8", "U8", "BOOL")
"""What is taken for buffers besides."""
BITS = {
    "F64": 64, "F32": 32, "F16": 16, "BF16": 16, "I64": 64, "I32": 32, "I16": 16, "I8": 8, "U8": 8,
    "BOOL": 8, "C64": 64, "U64": 64, "U32": 32, "U16": 16, "F8_E4M3": 8, "F8_E4M3FNUZ": 8,
    "F8_E5M2": 8, "F8_E5M2FNUZ": 8, "F8_E8M0": 8, "F6_E2M3": 6, "F6_E3M2": 6, "F4": 4,
}  # fmt: skip
"""Bits of an element of every dtype that the format knows."""
SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"


def num_bytes(dtype: str, shape: Sequence[int]) -> int | None:
    """Bytes of a tensor; None where its elements do not fill whole bytes, or of no known dtype."""
    if dtype not in BITS:
        return None
    whole, rest = divmod(prod(shape) * BITS[dtype], 8)
    return None if rest else whole


def refuse_unsupported(path: Path, dtypes: Mapping[str, str]) -> None:
    """Refuse tensors in dtypes that are no weights to compute with.

    Args:
        path: their file.
        dtypes: the format's names of dtypes by names of tensors.

    Raises:
        CheckpointError: naming the dtype, the first tensor and what is supported.
    """
    odd = {name: dtype for name, dtype in dtypes.items() if not _is_taken(name, dtype)}
    if not odd:
        return
    found = ", ".join(f"{dtype} ({count} of {len(dtypes)} tensors)"
                      for dtype, count in Counter(odd.values()).items())  # fmt: skip
    raise CheckpointError(
        f"{path}: dtype = {found}, the first in {next(iter(odd))!r}; expected weights in "
        f"{', '.join(FLOATS[:-1])} or {FLOATS[-1]}, and buffers in these or {', '.join(INTEGERS)}. "
        "Use the model before it was quantised, or convert it to BF16."
    )


def _is_taken(name: str, dtype: str) -> bool:
    # a buffer may be of integers; a weight of integers is a quantised one
    return dtype in FLOATS or (dtype in INTEGERS and "weight" not in name.rsplit(".", 1)[-1])


def check_base_dtypes(files: Iterable[Path]) -> None:
    """Refuse a base whose weights are quantised; what is no header is left to those who load it.

    Args:
        files: of weights; only safetensors are looked into.

    Raises:
        CheckpointError: naming the dtype, the first tensor and what is supported.
    """
    for path in files:
        if path.suffix == ".safetensors" and path.is_file():
            refuse_unsupported(path, _dtypes(path))


def _dtypes(path: Path) -> dict[str, str]:
    """Dtypes by tensors of a file; empty of one that is damaged."""
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        raw = file.read(length) if length <= path.stat().st_size else b""
    try:
        content: dict[str, Any] = json.loads(raw)
        return {name: str(entry["dtype"]) for name, entry in content.items()
                if name != "__metadata__"}  # fmt: skip
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError):
        return {}


def weights_in(folder: Path) -> list[Path]:
    """The safetensors files of a model folder that transformers reads, as far as it names them."""
    if (folder / SINGLE).is_file() or not (folder / INDEX).is_file():
        return [folder / SINGLE]
    try:
        names = json.loads((folder / INDEX).read_text(encoding="utf-8"))["weight_map"].values()
        return [folder / Path(name).name for name in sorted(set(names))]
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError):
        return []
