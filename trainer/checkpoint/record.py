"""What a run folder says of the stretches of its run; it must not compare them with a recipe.

Each checkpoint's manifest has the stretches of its own steps. `run.json` has those that began since
then too: it counts where it agrees with the manifest.
"""

import logging
from collections.abc import Sequence
from dataclasses import dataclass

from trainer.checkpoint.compare import is_same
from trainer.checkpoint.differences import by_name
from trainer.checkpoint.manifest import Manifest, read_manifest
from trainer.checkpoint.tags import tags_in
from trainer.data.growth import SourceState
from trainer.data.stretch import Stretch
from trainer.errors import CheckpointError
from trainer.recipe.completed import completed
from trainer.recipe.schema import Recipe
from trainer.run_folder.facts import read_run_stretches
from trainer.run_folder.layout import RunFolder

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Record:
    """The run as its newest checkpoint has it."""

    tag: str
    """Name of the checkpoint."""
    stretches: tuple[Stretch, ...]
    """At least one."""


def read_record(run: RunFolder) -> Record | None:
    """The stretches of a run, by its newest checkpoint whose manifest can be read.

    None where there is no such checkpoint. Whether a checkpoint is whole is not looked at.

    Raises:
        CheckpointError: the manifest's recipe is none.
    """
    for tag in tags_in(run.checkpoints):
        try:
            manifest = read_manifest(run.checkpoints / tag)
        except CheckpointError:
            continue
        return Record(tag, recorded_stretches(manifest, run))
    return None


def recorded_stretches(manifest: Manifest, run: RunFolder) -> tuple[Stretch, ...]:
    """The stretches of a run that has a checkpoint, those that follow the checkpoint too.

    Raises:
        CheckpointError: the manifest's recipe is none.
    """
    own, known = stretches_of(manifest), read_run_stretches(run.root)
    if not _are_recipes(own):
        raise CheckpointError(
            f"checkpoint step-{manifest.step}: recipe = not one of this project; expected that of "
            "its run. The checkpoint is not complete; start anew in another output_dir."
        )
    earlier = [one for one in known if one.first_step < manifest.step]
    if _are_recipes(known) and _agree(own, earlier):
        return known
    if known:
        logger.warning("%s: stretches = those of another continuation; %s counts",
                       run.facts, f"checkpoint step-{manifest.step}")  # fmt: skip
    return own


def stretches_of(manifest: Manifest) -> tuple[Stretch, ...]:
    """The stretches of a checkpoint's steps."""
    if manifest.stretches:
        return manifest.stretches
    # an older release: one stretch, and numbers of rows that were not kept
    sources = {
        name: SourceState(fingerprint=fingerprint, num_rows=0)
        for name, fingerprint in manifest.sources.items()
    }
    return (Stretch(first_step=0, recipe=manifest.recipe, sources=sources),)


def _are_recipes(stretches: Sequence[Stretch]) -> bool:
    """Whether recipes can be compared: they have the sections and sources of one."""
    try:
        trees = [by_name(completed(Recipe, one.recipe)) for one in stretches]
        return all(isinstance(tree["train"]["schedule"], str) for tree in trees)
    except (LookupError, TypeError, AttributeError):
        return False


def _agree(own: Sequence[Stretch], known: Sequence[Stretch]) -> bool:
    return len(own) == len(known) and all(map(is_same, own, known))
