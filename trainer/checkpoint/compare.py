"""What changed between a run and its continuation: what passes with a line, what stops.

Harmful is what makes it another run: the steps to come would not be those that the uninterrupted
run would have taken. Some of it passes by name, and begins a stretch. It must not read files.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from trainer.checkpoint.changes import LENGTH, covers, is_harmless, may_change, reason_against
from trainer.checkpoint.differences import SOURCES, by_name, differences
from trainer.checkpoint.manifest import Manifest
from trainer.data.growth import SourceState
from trainer.data.stretch import Stretch
from trainer.errors import CheckpointError
from trainer.recipe.completed import completed
from trainer.recipe.embedding_distillation import LAYER_KEY, TERM
from trainer.recipe.schema import Recipe

SHOWN = 160
"""Characters of a value in a message."""


@dataclass
class Comparison:
    """What differs between a stretch of a run and what the run is to go on with."""

    lines: list[str] = field(default_factory=list)
    """For the log, one for each difference that passes."""
    changed: list[str] = field(default_factory=list)
    """Keys that differ and were named: they begin a stretch."""
    refused: list[str] = field(default_factory=list)
    """What does not pass, old and new."""
    nameable: list[str] = field(default_factory=list)
    """Keys of that which would pass by name."""
    fixed: list[str] = field(default_factory=list)
    """Keys of that which would not."""

    def settle(self, key: str, line: str, *, named: bool, allowed: bool) -> None:
        """Take in a harmful difference."""
        if named and allowed:
            self.changed.append(key)
            self.lines.append(line)
            return
        self.refused.append(line)
        (self.nameable if allowed else self.fixed).append(key)

    def error(self, tag: str) -> CheckpointError:
        """What is refused, why, and what to do."""
        parts = [f"checkpoint {tag}: {'; '.join(self.refused)}; expected the run that wrote it."]
        parts += [f"{key} cannot change: {reason_against(key)}." for key in self.fixed]
        advice = "Undo the change, or start anew in another output_dir."
        if self.nameable:
            keys = " ".join(self.nameable)
            advice = f"Undo the change, name it (--resume --change {keys}), {advice[17:]}"
        return CheckpointError(" ".join([*parts, advice]))


def compare_runs(
    tag: str,
    current: Stretch,
    recipe: Mapping[str, Any],
    *,
    named: Sequence[str] = (),
    added: Mapping[str, int | str],
) -> Comparison:
    """List what changed since a stretch of a run.

    Args:
        tag: name of its checkpoint.
        current: the stretch.
        recipe: resolved, plain values, of what is to follow.
        named: keys that may differ where that is possible at all.
        added: rows that each source has more now, or why its first ones are not those that it had;
            a source that is not among them was not looked at.

    Returns:
        Lines for the log, and the named keys that differ.

    Raises:
        CheckpointError: naming every harmful change that was not named or cannot be, old and new.
    """
    old, new = by_name(completed(Recipe, current.recipe)), by_name(recipe)
    found = Comparison()
    free_length = _constant_rate(old) and _constant_rate(new)
    layer_keys = _compare_teacher_layer(found, old, new)
    for key, was, now in differences("", old, new):
        if key in layer_keys:
            continue
        line = _described(key, was, now)
        is_free = is_harmless(key, was, now)
        if (is_free and covers(named, key)) or _follows_sources(key, was, now, old, new):
            found.changed.append(key)
        elif not (is_free or (free_length and key in LENGTH)):
            found.settle(key, line, named=covers(named, key), allowed=may_change(key))
            continue
        if key != "resume":
            found.lines.append(line)
    _compare_sources(found, old, new, named)
    for name, number in added.items():
        _compare_rows(found, name, current.sources[name].num_rows, number, named)
    if found.refused:
        raise found.error(tag)
    return found


def _compare_teacher_layer(
    found: Comparison, old: Mapping[str, Any], new: Mapping[str, Any]
) -> list[str]:
    """Refuse to go on with or without a layer to a teacher's size; the keys that ask for it."""
    had, has = _projected_tasks(old), _projected_tasks(new)
    if bool(had) == bool(has):
        return []
    keys = []
    for task in sorted(had | has):
        key = f"tasks.{task}.{LAYER_KEY}"
        found.settle(key, _described(key, task in has, task in had), named=False, allowed=False)
        keys.append(key)
    return keys


def _projected_tasks(recipe: Mapping[str, Any]) -> set[str]:
    """Tasks whose steps train a layer to a teacher's size."""
    sources = recipe["data"]["sources"].values()
    taught = {one["task"] for one in sources if one["teacher_embeddings"] is not None}
    sections = {task: (recipe["tasks"][task] or {}).get(TERM.name) for task in taught}
    return {task for task, one in sections.items() if one is not None and one["projection"]}


def _compare_sources(
    found: Comparison, old: Mapping[str, Any], new: Mapping[str, Any], named: Sequence[str]
) -> None:
    """Sources that are there only before or only now."""
    before, now = old["data"]["sources"], new["data"]["sources"]
    for name in before.keys() - now.keys():
        key = f"{SOURCES}.{name}"
        found.settle(key, f"{key} = (missing) (was there)", named=False, allowed=False)
    for name in (name for name in now if name not in before):
        key = f"{SOURCES}.{name}"
        line = f"{key} = a further source (was not there)"
        found.settle(key, line, named=covers(named, key), allowed=True)


def _compare_rows(
    found: Comparison, name: str, num_rows: int, added: int | str, named: Sequence[str]
) -> None:
    """Rows of a source that was there before."""
    key = f"{SOURCES}.{name}"
    if isinstance(added, str):
        was = f"{num_rows:,} rows" if num_rows else "rows"
        line = (
            f"data of source {name} = other rows (was {was} that must stay as they are and stand "
            f"first, but {added}; give other rows to a source of another name)"
        )
        found.refused.append(line)
    elif added:
        is_named = any(covers(named, f"{key}.{place}") for place in ("path", "hub", "split"))
        line = (
            f"rows were added to source {name}: {added:,} after the {num_rows:,} that the run "
            "began with"
        )
        advice = "" if is_named else "; name the source in --change to train on them"
        found.settle(f"{key}.path", line + advice, named=is_named, allowed=True)


def _follows_sources(
    key: str, was: Any, now: Any, old: Mapping[str, Any], new: Mapping[str, Any]
) -> bool:
    """Whether a pattern differs only by turns of tasks that had no source before."""
    if key != "data.pattern":
        return False
    had = {source["task"] for source in old["data"]["sources"].values()}
    have = {source["task"] for source in new["data"]["sources"].values()}
    return bool(have - had) and was == {task: now[task] for task in now if task not in have - had}


def describe_environment(
    saved: Manifest, *, versions: Mapping[str, str], world_size: int
) -> list[str]:
    """A line for each release and the number of ranks that differ from those of a checkpoint.

    Args:
        saved: its manifest.
        versions: of the project and its libraries now.
        world_size: ranks now.
    """
    lines = [_described(f"version of {key}", old, new) for key, old, new in
             differences("", saved.versions, versions)]  # fmt: skip
    if saved.world_size != world_size:
        lines.append(_described("number of ranks", saved.world_size, world_size))
    return lines


def next_stretches(
    stretches: Sequence[Stretch], step: int, now: Stretch, changed: Sequence[str]
) -> tuple[Stretch, ...]:
    """The stretches of a run that goes on after some steps.

    Args:
        stretches: so far; those that begin after `step` are yet to come, as after a fall back to an
            older checkpoint.
        step: steps done.
        now: recipe and data that the run goes on with.
        changed: keys that were changed by name; they begin a stretch.
    """
    if not changed:
        last = replace(stretches[-1], recipe=now.recipe, sources=now.sources)
        return (*stretches[:-1], last)
    kept = [one for one in stretches if one.first_step < step]
    # what a stretch without a step had changed is changed still
    keys = {key for one in stretches[len(kept) :] for key in one.changed} | set(changed)
    return (*kept, replace(now, first_step=step if kept else 0, changed=tuple(sorted(keys))))


def is_same(one: Stretch, other: Stretch) -> bool:
    """Whether two records are of one stretch, whatever harmless keys say."""
    found = differences(
        "", by_name(completed(Recipe, one.recipe)), by_name(completed(Recipe, other.recipe))
    )
    names = one.sources.keys() | other.sources.keys()
    return (
        one.first_step == other.first_step
        and all(_as_many_rows(one.sources.get(name), other.sources.get(name)) for name in names)
        and all(key in LENGTH or is_harmless(key, was, now) for key, was, now in found)
    )


def change_lines(before: Stretch, stretch: Stretch) -> list[str]:
    """What a stretch has changed, for a person: a line for each key and each source."""
    old = by_name(completed(Recipe, before.recipe))
    new = by_name(completed(Recipe, stretch.recipe))
    lines = [
        _described(key, was, now)
        for key, was, now in differences("", old, new)
        if covers(stretch.changed, key)
    ]
    for name, state in stretch.sources.items():
        rows = before.sources[name].num_rows if name in before.sources else 0
        if rows != state.num_rows:
            lines.append(f"rows of {name} = {state.num_rows:,} (was {rows:,})")
    return lines


def _as_many_rows(one: SourceState | None, other: SourceState | None) -> bool:
    """Whether two records of a source have the same number of rows; older releases kept none."""
    if one is None or other is None:
        return False
    return one.num_rows == other.num_rows or 0 in (one.num_rows, other.num_rows)


def _constant_rate(recipe: Mapping[str, Any]) -> bool:
    """Whether the rate of a step is the same whatever the number of steps."""
    return recipe["train"]["schedule"] == "constant" and recipe["train"]["warmup_ratio"] == 0


def _described(key: str, old: Any, new: Any) -> str:
    return f"{key} = {_shown(new)} (was {_shown(old)})"


def _shown(value: object) -> str:
    text = repr(value)
    return text if len(text) <= SHOWN else text[:SHOWN] + "..."
