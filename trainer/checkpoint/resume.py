"""Find the newest valid checkpoint and load it on every rank, the same one."""

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import deepspeed
import torch.distributed as dist

from trainer.checkpoint.agree import on_first_rank
from trainer.checkpoint.manifest import Manifest, verify
from trainer.checkpoint.save import tags_in
from trainer.engine.ranks import Ranks
from trainer.errors import CheckpointError

logger = logging.getLogger(__name__)

FIXED_KEYS = ("seed", "model", "data", "tasks")
"""Sections of the recipe whose change makes it another run."""
FREE_KEYS = {"data.workers", "data.on_bad_row", "data.root", "model.gradient_checkpointing"}
"""Keys inside them that do not shape the numbers."""


@dataclass(frozen=True)
class Found:
    """A checkpoint to continue from."""

    tag: str
    manifest: Manifest


def find_checkpoint(folder: Path, ranks: Ranks) -> Found | None:
    """The newest checkpoint whose files are as its manifest says; None where there is none at all.

    The first rank decides and tells the others; what is skipped is logged.

    Raises:
        CheckpointError: there are checkpoints, and none is valid.
    Collective: yes.
    """
    return on_first_rank(lambda: _newest_valid(folder), ranks)


def _newest_valid(folder: Path) -> Found | None:
    """See `find_checkpoint`; on the first rank."""
    faults = []
    for tag in tags_in(folder):
        try:
            return Found(tag, verify(folder / tag))
        except CheckpointError as error:
            faults.append(str(error))
            logger.warning("checkpoint %s is skipped: %s", tag, error)
    if not faults:
        return None
    raise CheckpointError(
        f"{folder}: no valid checkpoint among {len(faults)}; expected one. {faults[0]} "
        f"Start anew in another output_dir."
    )


def check_same_run(
    found: Found, *, recipe: Mapping[str, Any], sources: Mapping[str, str], world_size: int
) -> None:
    """Refuse to continue a run that the recipe or the data no longer describe.

    Raises:
        CheckpointError: naming the keys or the source that changed, or the number of ranks.
    """
    changed = [
        f"{key} = {new!r} (was {old!r})"
        for section in FIXED_KEYS
        for key, old, new in differences(section, found.manifest.recipe[section], recipe[section])
        if key not in FREE_KEYS
    ]
    changed += [
        f"data of source {name} (other content)"
        for name, fingerprint in found.manifest.sources.items()
        if sources.get(name) != fingerprint
    ]
    if changed:
        raise CheckpointError(
            f"checkpoint {found.tag}: {'; '.join(changed)}; expected the run that wrote it. Undo "
            f"the change, or start anew in another output_dir."
        )
    if found.manifest.world_size != world_size:
        raise CheckpointError(
            f"checkpoint {found.tag}: number of ranks = {world_size}; expected "
            f"{found.manifest.world_size}, as when it was saved. Launch as many ranks."
        )


def differences(key: str, old: object, new: object) -> list[tuple[str, object, object]]:
    """Leaves that differ between two trees of plain values, as (dotted key, old, new)."""
    if isinstance(old, Mapping) and isinstance(new, Mapping):
        return [
            found
            for name in sorted({*old, *new})
            for found in differences(f"{key}.{name}", old.get(name), new.get(name))
        ]
    if isinstance(old, list | tuple) and isinstance(new, list | tuple) and len(old) == len(new):
        return [
            found
            for i, (a, b) in enumerate(zip(old, new, strict=True))
            for found in differences(f"{key}.{i}", a, b)
        ]
    return [] if old == new else [(key, old, new)]


def load_checkpoint(
    engine: deepspeed.DeepSpeedEngine, folder: Path, found: Found, ranks: Ranks
) -> int:
    """Restore parameters and optimizer on every rank.

    Returns:
        Steps done.

    Raises:
        CheckpointError: a rank loaded something else than the others.
    Collective: yes.
    """
    adapters = hasattr(engine.module.backbone, "peft_config")
    path, state = engine.load_checkpoint(
        str(folder),
        tag=found.tag,
        load_module_strict=not adapters,
        load_lr_scheduler_states=False,
    )
    steps: list[Any] = [None] * ranks.world_size
    dist.all_gather_object(steps, None if path is None else state["steps_done"])
    if set(steps) != {found.manifest.step}:
        raise CheckpointError(
            f"checkpoint {found.tag}: steps done by rank = {steps}; expected "
            f"{found.manifest.step} on all. Check that all hosts see the same files."
        )
    return found.manifest.step
