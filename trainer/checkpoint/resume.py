"""Find the newest checkpoint that is valid everywhere and load it, the same one on every rank."""

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import deepspeed
import torch.distributed as dist

from trainer.checkpoint.deepspeed_files import CheckpointFiles
from trainer.checkpoint.manifest import Manifest, read_manifest, verify
from trainer.checkpoint.repartition import load_repartitioned
from trainer.checkpoint.storage import Storage
from trainer.checkpoint.tags import step_of, tags_in
from trainer.checkpoint.unpickle import load_pickled, refuse_code
from trainer.distributed.agree import on_all_ranks
from trainer.distributed.group import Ranks
from trainer.errors import CheckpointError

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Found:
    """A checkpoint to continue from."""

    tag: str
    manifest: Manifest
    """As this rank's storage has it."""


def find_checkpoint(folder: Path, storage: Storage) -> Found | None:
    """The newest checkpoint that every rank finds as its manifest says; None where there is none.

    Ranks share the reading of files that they all see. Where hosts have a disk each, a checkpoint
    counts only if it is valid on all of them. What is skipped is logged.

    Args:
        folder: `checkpoints/` of the run.
        storage: of that folder.

    Raises:
        CheckpointError: there are checkpoints, and none is valid.
    Collective: yes.
    """
    seen = on_all_ranks(lambda: tags_in(folder), storage.ranks)
    faults = []
    for tag in sorted({tag for tags in seen for tag in tags}, key=step_of, reverse=True):
        manifest, fault = _try(folder / tag, storage)
        if manifest is not None and fault is None:
            return Found(tag, manifest)
        faults.append(f"{fault}")
        logger.warning("checkpoint %s is skipped: %s", tag, fault)
    if not faults:
        return None
    raise CheckpointError(
        f"{folder}: no valid checkpoint among {len(faults)}; expected one. {faults[0]} "
        f"Start anew in another output_dir."
    )


def find_tag(folder: Path, tag: str, storage: Storage) -> Found | None:
    """A certain checkpoint, if every rank finds it as its manifest says.

    Args:
        folder: `checkpoints/` of the run.
        tag: name of the checkpoint.
        storage: of that folder.

    Collective: yes.
    """
    manifest, fault = _try(folder / tag, storage)
    return Found(tag, manifest) if manifest is not None and fault is None else None


def _try(folder: Path, storage: Storage) -> tuple[Manifest | None, str | None]:
    """Manifest of a checkpoint, and what is wrong with it on any rank. Collective: yes."""
    manifest, fault = None, None
    try:
        manifest = read_manifest(folder)
        verify(folder, manifest, storage.share(sorted(manifest.files)))
    except (CheckpointError, OSError) as error:
        fault = str(error)
    faults: list[Any] = [None] * storage.ranks.world_size
    dist.all_gather_object(faults, fault)
    return manifest, next((one for one in faults if one is not None), None)


def load_checkpoint(
    engine: deepspeed.DeepSpeedEngine, folder: Path, found: Found, ranks: Ranks
) -> int:
    """Restore parameters and optimizer on every rank.

    Ranks and ZeRO settings may be others than when it was saved. Nothing that a file asks for is
    executed.

    Args:
        engine: fresh.
        folder: `checkpoints/` of the run.
        found: what to load.
        ranks: this process.

    Returns:
        Steps done.

    Raises:
        CheckpointError: a file holds code, or a rank could not load it or loaded something else.
    Collective: yes.
    """
    path = folder / found.tag
    on_all_ranks(lambda: _refuse_code(path), ranks)
    same_ranks = found.manifest.world_size == ranks.world_size
    same_zero = all(on_all_ranks(lambda: _zero_settings(path) == _plain_zero(engine), ranks))
    if same_ranks and same_zero:
        done = _load_as_saved(engine, folder, found.tag)
    else:
        logger.info("checkpoint %s was saved by other ranks or ZeRO settings: repartitioned",
                    found.tag)  # fmt: skip
        done = load_repartitioned(engine, path, ranks)
    steps: list[Any] = [None] * ranks.world_size
    dist.all_gather_object(steps, done)
    if set(steps) != {found.manifest.step}:
        raise CheckpointError(
            f"checkpoint {found.tag}: steps done by rank = {steps}; expected "
            f"{found.manifest.step} on all. Check that all hosts see the same files."
        )
    return found.manifest.step


def _refuse_code(folder: Path) -> None:
    """Look through every pickle that this rank sees; it takes no time, as tensors are not read."""
    for path in sorted(folder.glob("*.pt")):
        refuse_code(path)


def _zero_settings(folder: Path) -> Any:
    """ZeRO's settings when a checkpoint was written."""
    path = min(folder.glob("*_model_states.pt"), default=folder / "model_states.pt")
    return load_pickled(path).get("ds_config", {}).get("zero_optimization")


def _plain_zero(engine: deepspeed.DeepSpeedEngine) -> Any:
    """ZeRO's settings now."""
    return engine.config["zero_optimization"]


def _load_as_saved(engine: deepspeed.DeepSpeedEngine, folder: Path, tag: str) -> int | None:
    """Through DeepSpeed, each rank its own files."""
    engine.checkpoint_engine = CheckpointFiles()
    path, state = engine.load_checkpoint(
        str(folder),
        tag=tag,
        load_module_strict=not hasattr(engine.module.backbone, "peft_config"),
        load_lr_scheduler_states=False,
    )
    return None if path is None else int(state["steps_done"])
