"""What an exported folder says of itself, read for its card; it must not import torch."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from trainer.checkpoint.dense_files import dense_config, dense_folder
from trainer.errors import CheckpointError
from trainer.export.dims import dims_of

POOLING = {
    "pooling_mode_lasttoken": "last",
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_weightedmean_tokens": "weighted_mean",
    "pooling_mode_cls_token": "cls",
    "lasttoken": "last",
    "mean": "mean",
    "weightedmean": "weighted_mean",
    "cls": "cls",
}
"""sentence-transformers' words for a pooling, as keys and, since release 6, as values."""
ADAPTER = "adapter_config.json"
PARITY = "parity.json"


@dataclass(frozen=True, kw_only=True)
class ExportedFolder:
    """One folder that clients load."""

    place: str
    """How commands name it: a path or a hub id."""
    is_adapter: bool
    """Whether it holds an adapter alone."""
    dimensions: int | None
    """Size of a vector; None where the folder does not say."""
    dense: Mapping[str, Any] | None
    """Settings of the one dense layer behind the pooling; None where there is none."""
    dense_path: str
    """Its folder inside this one; empty where there is none."""
    pooling: str | None
    """A word of `model.pooling`; None for any other, or where the folder does not say."""
    include_prompt: bool
    """Whether pooling includes the prompt's tokens."""
    is_normalized: bool
    """Whether vectors are scaled to norm 1."""
    max_tokens: int | None
    """Longest text, tokens; None where the folder does not say."""
    prompts: Mapping[str, str]
    """By name."""
    runs_code: bool
    """Whether loading it runs code that comes with it."""
    dims: tuple[int, ...]
    """Sizes of the prefixes that config.json allows, descending; an adapter's folder names none."""
    has_parity: bool
    """Whether it holds texts with the vectors that a client should give."""

    @property
    def is_embedder(self) -> bool:
        """Whether sentence-transformers finds its files there."""
        return self.dimensions is not None


def read_exported(folder: Path, place: str) -> ExportedFolder:
    """Read the small files of an export.

    Args:
        folder: where it lies now.
        place: how commands name it.

    Raises:
        CheckpointError: a file of it is no JSON.
    """
    pooling = _read(folder / "1_Pooling" / "config.json") or {}
    sentence = _read(folder / "sentence_bert_config.json") or {}
    prompts = (_read(folder / "config_sentence_transformers.json") or {}).get("prompts")
    modules = _read(folder / "modules.json") or []
    config = _read(folder / "config.json") or {}
    dense, layer = dense_config(folder), dense_folder(folder)
    pooled = pooling.get("word_embedding_dimension") or pooling.get("embedding_dimension")
    return ExportedFolder(
        place=place,
        is_adapter=(folder / ADAPTER).is_file(),
        dimensions=pooled if dense is None else dense.get("out_features"),
        dense=dense,
        dense_path="" if layer is None else layer.relative_to(folder).as_posix(),
        pooling=_pooling(pooling),
        include_prompt=pooling.get("include_prompt") is not False,
        is_normalized=any(str(one.get("type")).endswith("Normalize") for one in modules),
        max_tokens=sentence.get("max_seq_length"),
        prompts=prompts or {},
        runs_code="auto_map" in config,
        dims=tuple(sorted(dims_of(config), reverse=True)),
        has_parity=(folder / PARITY).is_file(),
    )


def _pooling(config: Mapping[str, Any]) -> str | None:
    """The one way of pooling, where there is one."""
    modes = [key for key, value in config.items() if key.startswith("pooling_mode_") and value]
    named = config.get("pooling_mode")
    modes += named if isinstance(named, list) else [named] if named else []
    return POOLING.get(modes[0]) if len(modes) == 1 else None


def _read(path: Path) -> Any:
    """Content of a JSON file; None without a file."""
    if not path.is_file():
        return None
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise CheckpointError(
            f"{path}: content = not JSON ({error}); expected the file as the export wrote it. "
            "Export the model again."
        ) from error
