"""What changed between a checkpoint's run and this one: what passes with a line, what stops.

Harmful is what makes it another run: the steps to come would not be those that the uninterrupted
run would have taken. It must not read files.
"""

import re
from collections.abc import Mapping
from typing import Any

from trainer.checkpoint.manifest import Manifest
from trainer.errors import CheckpointError
from trainer.recipe.completed import completed
from trainer.recipe.schema import Recipe

HARMLESS = re.compile(
    r"name|output_dir|resume|(log|eval|checkpoint|export|engine)(\..*)?"
    r"|data\.(workers|on_bad_row|root)|data\.sources\.\d+\.(path|hub|split|teacher_embeddings)"
    r"|model\.gradient_checkpointing|train\.max_skipped_steps"
)
"""Recipe keys that do not shape the steps. Where data lies is one: its fingerprint says more."""
LENGTH = ("train.max_steps", "train.epochs")
"""Harmless only where the learning rate does not depend on the length of the run."""
WHOLE = ("data.pattern",)
"""Mappings whose keys are the user's, not the project's."""
SHOWN = 160
"""Characters of a value in a message."""

Change = tuple[str, object, object]
"""Dotted key, old, new."""


def compare_runs(
    tag: str,
    saved: Manifest,
    *,
    recipe: Mapping[str, Any],
    sources: Mapping[str, str],
    versions: Mapping[str, str],
    world_size: int,
) -> list[str]:
    """List what changed since a checkpoint was written.

    Args:
        tag: its name.
        saved: its manifest.
        recipe: resolved, plain values, of this run.
        sources: fingerprint of each source now.
        versions: of the project and its libraries now.
        world_size: ranks now.

    Returns:
        A line for each harmless change.

    Raises:
        CheckpointError: naming every harmful change, old and new.
    """
    changes = differences("", completed(Recipe, saved.recipe), recipe)
    free_length = _constant_rate(saved.recipe) and _constant_rate(recipe)
    harmless = [one for one in changes if _is_harmless(one[0], free_length=free_length)]
    harmful = [
        _described(*one) for one in changes if not _is_harmless(one[0], free_length=free_length)
    ]
    harmful += [
        f"data of source {name} = {_shown(sources.get(name))} (was {_shown(old)})"
        for name, old in saved.sources.items()
        if sources.get(name) != old
    ]
    if harmful:
        raise CheckpointError(
            f"checkpoint {tag}: {'; '.join(harmful)}; expected the run that wrote it. Undo "
            f"the change, or start anew in another output_dir."
        )
    lines = [_described(*one) for one in harmless if one[0] != "resume"]
    lines += [_described(f"version of {key}", old, new) for key, old, new in
              differences("", saved.versions, versions)]  # fmt: skip
    if saved.world_size != world_size:
        lines.append(_described("number of ranks", saved.world_size, world_size))
    return lines


def _is_harmless(key: str, *, free_length: bool) -> bool:
    return HARMLESS.fullmatch(key) is not None or (free_length and key in LENGTH)


def _constant_rate(recipe: Mapping[str, Any]) -> bool:
    """Whether the rate of a step is the same whatever the number of steps."""
    return recipe["train"]["schedule"] == "constant" and recipe["train"]["warmup_ratio"] == 0


def _described(key: str, old: object, new: object) -> str:
    return f"{key} = {_shown(new)} (was {_shown(old)})"


def _shown(value: object) -> str:
    text = repr(value)
    return text if len(text) <= SHOWN else text[:SHOWN] + "..."


def differences(key: str, old: object, new: object) -> list[Change]:
    """Leaves that differ between two trees of plain values.

    A key that one of them does not have is one that this release does not know any more, or that it
    gave no default: no change that anyone made.
    """
    if isinstance(old, Mapping) and isinstance(new, Mapping) and key not in WHOLE:
        return [
            found
            for name in sorted({*old} & {*new})
            for found in differences(f"{key}.{name}".lstrip("."), old[name], new[name])
        ]
    if isinstance(old, list | tuple) and isinstance(new, list | tuple) and len(old) == len(new):
        return [
            found
            for i, (a, b) in enumerate(zip(old, new, strict=True))
            for found in differences(f"{key}.{i}", a, b)
        ]
    return [] if old == new else [(key, old, new)]
