"""Which keys a run may change while it goes on, and which changes it keeps; it must not read files.

A change is made by name (`--change`), and begins a stretch of the run. A key that was changed once
stays changed: a recipe that still has the older value means the run as it is now.
"""

import copy
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from trainer.checkpoint.differences import SOURCES, by_name, differences
from trainer.data.stretch import Stretch
from trainer.errors import RecipeError
from trainer.recipe.completed import completed
from trainer.recipe.document import shorten, shown_override
from trainer.recipe.embedding_distillation import LAYER_KEY
from trainer.recipe.load import plain_recipe
from trainer.recipe.schema import Recipe

HARMLESS = re.compile(
    r"name|output_dir|resume|(log|eval|checkpoint|export|engine)(\..*)?"
    r"|data\.(workers|tokens|on_bad_row|root)"
    r"|data\.sources\.[^.]+\.(path|hub|split|teacher_embeddings)"
    r"|model\.gradient_checkpointing|train\.max_skipped_steps"
)
"""Recipe keys that do not shape the steps. Where data lies is one: its fingerprint says more."""
OVERLAP = "data.overlap"
"""Harmless as long as it leaves no rows out."""
LENGTH = ("train.max_steps", "train.epochs")
"""Harmless only where the learning rate does not depend on the length of the run."""
CHANGEABLE = re.compile(
    r"seed|tasks\.(?!labels\.balance).*|data\.(schedule|pattern|temperature|length_buckets)"
    r"|train\.(max_steps|epochs|learning_rate|schedule|warmup_ratio|min_learning_rate_ratio)"
    r"|data\.sources\.[^.]+\.(weight|global_batch_size|negatives|in_batch|length_buckets)"
)
"""Recipe keys that shape the steps and may change by name."""
REASONS = (
    (
        rf"tasks\.[^.]+\.{re.escape(LAYER_KEY)}",
        "a checkpoint has the layer to the teacher's size among its parameters, or has not",
    ),
    (r"model\..*", "the parameters were trained as those of this model"),
    (
        r"data\.(query_max_tokens|passage_max_tokens|prompt_template|pool_instruction)"
        r"|data\.sources\.[^.]+\.(query|passage)_instruction",
        "the model was trained to read its texts in this way, and an export states one way",
    ),
    (r"data\.overlap", "`drop` leaves rows out, so that others are trained on than without it"),
    (r"data\.subset(\..*)?", "another part of the rows would be trained on"),
    (r"data\.mine(\..*)?", "the steps so far were trained on what was mined with it"),
    (
        r"tasks\.labels\.balance|data\.mix",
        "rows are dealt otherwise, and none would be where it was",
    ),
    (r"train\..*", "the state of the optimizer was made with it"),
    (r"data\.sources\.[^.]+\..*", "the rows trained on so far would be read in another way"),
    (
        r"data\.sources\.[^.]+",
        "the run trains on this source; give it a small data.sources.NAME.weight instead",
    ),
)
"""Why other keys may not change; the first that fits counts."""
OTHERWISE = "it is part of what the run is"


def is_harmless(key: str, was: object, now: object) -> bool:
    """Whether the steps of a run are the same with another value of a key.

    Args:
        key: as differences have it.
        was: its value so far.
        now: its value from now on.
    """
    if key == OVERLAP:
        return "drop" not in (was, now)
    return HARMLESS.fullmatch(key) is not None


def may_change(key: str) -> bool:
    """Whether a run may go on with another value of a key that shapes the steps, if named."""
    return CHANGEABLE.fullmatch(key) is not None


def reason_against(key: str) -> str:
    """Why a key may not change."""
    return next((why for keys, why in REASONS if re.fullmatch(keys, key)), OTHERWISE)


def named_keys(changes: Sequence[str], recipe: Recipe) -> tuple[str, ...]:
    """The keys that `--change` names, sources by their names.

    Args:
        changes: `key.path=value`, or `key.path` for what the recipe itself has changed.
        recipe: with these values.

    Raises:
        RecipeError: if there is no such key, or one is given two values.
    """
    tree = by_name(plain_recipe(recipe))
    _refuse_two_values(changes)
    return tuple(_known(change.partition("=")[0], tree, recipe) for change in changes)


def _refuse_two_values(changes: Iterable[str]) -> None:
    """Refuse a key with two values, of which the run would take one."""
    values: dict[str, str] = {}
    for change in changes:
        key, equals, value = change.partition("=")
        if equals and values.setdefault(key, value) != value:
            raise RecipeError(
                f"--change {shown_override(key)}: value = {shorten(values[key])} and "
                f"{shorten(value)}; expected one value of each key. Remove one of the two."
            )


def _known(key: str, tree: Mapping[str, Any], recipe: Recipe) -> str:
    """A key as differences have it."""
    parts = key.split(".")
    sources = dict(enumerate(recipe.data.sources))
    if parts[:2] == SOURCES.split(".") and len(parts) > 2 and parts[2].isdecimal():
        parts[2] = sources[int(parts[2])].name if int(parts[2]) in sources else parts[2]
    place: Any = tree
    for part in parts:
        if place is None:
            break
        if not isinstance(place, Mapping) or part not in place:
            raise RecipeError(
                f"--change {shown_override(key)}: key = (missing); expected a key of the recipe, "
                "such as train.max_steps=800, or data.sources.NAME for a source with further "
                "rows. Correct it."
            )
        place = place[part]
    return ".".join(parts)


def covers(named: Iterable[str], key: str) -> bool:
    """Whether a key, one above it or one below it is named."""
    return any(
        key == one or key.startswith(f"{one}.") or one.startswith(f"{key}.") for one in named
    )


def keep_changes(
    stretches: Sequence[Stretch], given: Mapping[str, Any], named: Sequence[str]
) -> tuple[dict[str, Any], list[str]]:
    """A recipe with what was changed by name before and is given as it was before that.

    Args:
        stretches: of the run so far.
        given: recipe that the run is to go on with, plain values.
        named: keys that are changed now, which count as given.

    Returns:
        The recipe, its sources in the run's order, and a line for each value that was kept.
    """
    current, *earlier = (by_name(completed(Recipe, one.recipe)) for one in reversed(stretches))
    changed = {key for stretch in stretches for key in stretch.changed}
    tree = copy.deepcopy(by_name(given))
    lines = []
    for key, now, new in differences("", current, tree):
        was_changed = covers(changed, key) and not covers(named, key)
        if was_changed and any(_value(one, key) == new for one in earlier):
            _set(tree, key, now)
            lines.append(f"{key} = {shorten(now)}, as it was changed to (the recipe says {new!r})")
    sources, known = tree["data"]["sources"], current["data"]["sources"]
    for name in known.keys() - sources.keys():
        if f"{SOURCES}.{name}" in changed and f"{SOURCES}.{name}" not in named:
            sources[name] = known[name]
            tree["tasks"].setdefault(known[name]["task"], current["tasks"][known[name]["task"]])
            lines.append(f"{SOURCES}.{name} stays, as it was added (the recipe lacks it)")
    order = [*(name for name in known if name in sources)]
    order += [name for name in sources if name not in known]
    tree["data"]["sources"] = [sources[name] for name in order]
    return tree, lines


def _value(tree: Any, key: str) -> Any:
    """The value of a key; None where it has none."""
    for part in key.split("."):
        if isinstance(tree, list) and part.isdecimal() and int(part) < len(tree):
            tree = tree[int(part)]
        elif isinstance(tree, Mapping):
            tree = tree.get(part)
        else:
            return None
    return tree


def _set(tree: Any, key: str, value: Any) -> None:
    """Replace the value of a key that is there."""
    *path, leaf = key.split(".")
    for part in path:
        tree = tree[int(part)] if isinstance(tree, list) else tree[part]
    tree[int(leaf) if isinstance(tree, list) else leaf] = value
