"""The identity of the frozen base of an adapter run: size and sha256 of each file it consists of.

The files are read once at the start of a run, each rank its share of its host's copy, so that a
base that was changed by one byte, or that differs between hosts, is reported before the first step.
"""

import logging
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch.distributed as dist
from transformers.utils.hub import cached_file, get_checkpoint_shard_files

from trainer.checkpoint.json_files import read_object
from trainer.checkpoint.manifest import BaseIdentity, FileEntry, digest
from trainer.checkpoint.open import ADAPTER_BASE, base_fingerprint, open_checkpoint
from trainer.checkpoint.safetensors_dtypes import check_base_dtypes, weights_in
from trainer.distributed.agree import on_first_rank
from trainer.distributed.group import Ranks
from trainer.errors import CheckpointError

logger = logging.getLogger(__name__)

WEIGHTS = ("model.safetensors", "model.safetensors.index.json",
           "pytorch_model.bin", "pytorch_model.bin.index.json")  # fmt: skip
"""Names under which transformers looks for weights, in its order."""
CONFIG = "config.json"


def base_files(path: str, revision: str | None) -> list[Path]:
    """The config and weight files that transformers loads, config first.

    Args:
        path: resolved folder, or a hub id that was loaded before.
        revision: of the hub model.

    Raises:
        CheckpointError: no weights in a format that transformers loads.
    """
    weights = _weight_files(path, revision)
    if not weights:
        raise CheckpointError(
            f"{path}: weights = none; expected one of {', '.join(WEIGHTS)}. Save the base again."
        )
    config = _file(path, CONFIG, revision)
    return weights if config is None else [config, *weights]


def _weight_files(path: str, revision: str | None) -> list[Path]:
    """Weights, their index first; empty where there are none."""
    for name in WEIGHTS:
        weights = _file(path, name, revision)
        if weights is None:
            continue
        if not name.endswith(".index.json"):
            return [weights]
        shards, _ = get_checkpoint_shard_files(path, str(weights), revision=revision)
        return [weights, *map(Path, sorted(shards))]
    return []


def check_dtypes(path: str, revision: str | None) -> None:
    """Refuse a base whose weights are quantised, before it is loaded.

    One without weights is left to those who load it.

    Args:
        path: resolved folder or hub id.
        revision: of the hub model.

    Raises:
        CheckpointError: naming the dtype that was found and those that are supported.
    """
    folder = Path(path)
    check_base_dtypes(weights_in(folder) if folder.is_dir() else _weight_files(path, revision))


def _file(path: str, name: str, revision: str | None) -> Path | None:
    """A file of a model folder or of the hub's cache, or None where the model has none."""
    found = cached_file(
        path,
        name,
        revision=revision,
        _raise_exceptions_for_missing_entries=False,
        _raise_exceptions_for_connection_errors=False,
    )
    return None if found is None else Path(found)


def identify_base(
    name: str, path: str, ranks: Ranks, *, revision: str | None = None
) -> BaseIdentity:
    """Hash the base's files; each rank reads a share of them.

    Args:
        name: `model.path` of the recipe.
        path: resolved.
        ranks: this process.
        revision: of a hub model.

    Raises:
        CheckpointError: no weights, or a file that is not the same on all hosts.
    Collective: yes.
    """
    files = base_files(path, revision)
    num_local = int(os.environ.get("LOCAL_WORLD_SIZE") or os.environ.get("LOCAL_SIZE") or "1")
    share = files[int(os.environ.get("LOCAL_RANK", "0")) % num_local :: num_local]
    shares: list[Any] = [None] * ranks.world_size
    dist.all_gather_object(shares, {file.name: digest(file) for file in share})
    entries: dict[str, FileEntry] = {}
    for rank, part in enumerate(shares):
        for file, entry in part.items():
            if entries.setdefault(file, entry) != entry:
                raise CheckpointError(
                    f"{path}/{file}: sha256 = {entry.sha256[:16]} on the host of rank {rank}; "
                    f"expected {entries[file].sha256[:16]}, as on the first host. Copy the same "
                    f"base to all hosts."
                )
    return BaseIdentity(
        path=name,
        files={file.name: entries[file.name] for file in files},
        fingerprint=on_first_rank(lambda: _fingerprint(files), ranks),
    )


def identity_of_files(
    name: str, files: Sequence[Path], entries: Mapping[str, FileEntry]
) -> BaseIdentity:
    """The identity of a base whose files this process has read.

    Args:
        name: what messages call the base.
        files: from `base_files`.
        entries: size and hash of each by name.
    """
    return BaseIdentity(path=name, files=entries, fingerprint=_fingerprint(files))


def _fingerprint(files: Sequence[Path]) -> str | None:
    """Of the weights as merging computes it, or None where they are pickled."""
    if not any(file.suffix == ".safetensors" for file in files):
        return None
    return base_fingerprint(open_checkpoint(files[0].parent))


def check_same_base(tag: str, saved: BaseIdentity | None, current: BaseIdentity) -> None:
    """Refuse to continue adapters on another base.

    Args:
        tag: name of the checkpoint, for messages.
        saved: from its manifest.
        current: the base that was loaded.

    Raises:
        CheckpointError: naming the base, and the file that differs.
    """
    if saved is None:
        raise CheckpointError(
            f"checkpoint {tag}: base = absent; expected the identity of {current.path}. The "
            f"manifest is not of an adapter run; use another checkpoint."
        )
    for name in sorted({*saved.files, *current.files}):
        was, now = saved.files.get(name), current.files.get(name)
        if was != now:
            raise CheckpointError(
                f"checkpoint {tag}: base {current.path}/{name} = {_shown(now)}; expected "
                f"{_shown(was)}, as when its adapters were trained on {saved.path}. Point "
                f"model.path to that base, or start anew in another output_dir."
            )


def check_recorded_base(adapter: Path, current: BaseIdentity) -> None:
    """Refuse a base that is not the one which an adapter's folder says it was trained on.

    The trainer's exports record size and hash of each file, merged adapters a fingerprint of the
    weights, folders of others nothing: then the base counts by its name.

    Args:
        adapter: folder of the adapter.
        current: the base that its config names.

    Raises:
        CheckpointError: naming what differs.
    """
    file = adapter / ADAPTER_BASE
    if not file.is_file():
        logger.info("%s: does not record its base's content; %s is taken by its name",
                    adapter, current.path)  # fmt: skip
        return
    recorded = read_object(file)
    saved, now = recorded.get("files"), asdict(current)["files"]
    if isinstance(saved, dict):
        for name in sorted({*saved, *now}):
            if saved.get(name) != now.get(name):
                raise _other_base(file, f"{name} of {current.path}")
    elif recorded.get("fingerprint") != current.fingerprint:
        raise _other_base(file, f"weights of {current.path}")


def _other_base(file: Path, what: str) -> CheckpointError:
    return CheckpointError(
        f"{file}: base = {what} differ from those that the adapter was trained on; expected the "
        "same base. Name that one as base_model_name_or_path in the adapter's config."
    )


def _shown(entry: FileEntry | None) -> str:
    """A file in a few words."""
    return "absent" if entry is None else f"{entry.size} bytes, sha256 {entry.sha256[:16]}"
