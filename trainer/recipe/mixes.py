"""Rules for sources that share steps (`data.mix`); it must not read files."""

import dataclasses
from typing import Any

from trainer.errors import RecipeError
from trainer.recipe.kind import Fail
from trainer.recipe.per_source import members_of, num_length_buckets, settings_of
from trainer.recipe.schema import Recipe, SourceRecipe
from trainer.recipe.tasks import TASKS


def check_mixes(recipe: Recipe, fail: Fail) -> None:
    """Refuse sources that cannot share steps.

    Args:
        recipe: with names of sources that are unique.
        fail: makes the error of a key.

    Raises:
        RecipeError: naming the mix and what its sources differ in.
    """
    names = {source.name for source in recipe.data.sources}
    owner: dict[str, str] = {}
    for mix, members in recipe.data.mix.items():
        key = f"data.mix.{mix}"
        if mix in names:
            advice = "Give it another name: metrics use it."
            raise fail(key, members, "a name that no source has", advice)
        if not mix or mix.isdecimal() or set(mix) & set("./= \t\n"):
            expected = "a word without dots, slashes, spaces or `=`, and not a number, as its name"
            raise fail(key, members, expected, "Rename it.")
        if len(members) < 2:
            raise fail(key, members, "at least two sources", "Add one, or remove the mix.")
        for index, member in enumerate(members):
            if member not in names:
                expected = f"a source: {', '.join(sorted(names))}"
                raise fail(f"{key}.{index}", member, expected, "Correct the name.")
            if member in owner:
                expected = f"a source that data.mix.{owner[member]} does not have"
                raise fail(f"{key}.{index}", member, expected, "Remove one of the two.")
            owner[member] = mix
        _check_members(recipe, mix, fail)


def _check_members(recipe: Recipe, mix: str, fail: Fail) -> None:
    """The sources of a mix have steps of one kind, and each of them suits a mix."""
    first, *others = members_of(recipe.data, mix)
    key = f"data.mix.{mix}"
    for source in (first, *others):
        why = _reason_against(recipe, source)
        if why is not None:
            expected = f"sources without {why[0]}, as {source.name} has"
            raise fail(key, recipe.data.mix[mix], expected, why[1])
    for other in others:
        if other.task != first.task:
            raise _differs(fail, key, (first, other), "task", (first.task, other.task))
        for name in ("passage_instruction", "teacher_embeddings"):
            both = getattr(first, name), getattr(other, name)
            if both[0] != both[1]:
                raise _differs(fail, key, (first, other), name, both)
        mine, theirs = (settings_of(recipe, one.name) for one in (first, other))
        for field in dataclasses.fields(mine):  # type: ignore[arg-type]
            both = getattr(mine, field.name), getattr(theirs, field.name)
            if both[0] != both[1]:
                raise _differs(fail, key, (first, other), field.name, both)
        compared = TASKS[first.task].compares_queries(mine)
        both = first.query_instruction, other.query_instruction
        if compared is not None and both[0] != both[1]:
            raise _differs(fail, key, (first, other), f"query_instruction under {compared}", both)


def _reason_against(recipe: Recipe, source: SourceRecipe) -> tuple[str, str] | None:
    """What keeps a source out of mixes, and what to do; None: nothing."""
    if TASKS[source.task].has_labels:
        return f"task {source.task}", "Texts with labels are drawn beside each other; remove it."
    if num_length_buckets(recipe.data, source) > 1:
        advice = f"Set data.sources.{source.name}.length_buckets=1."
        return f"length_buckets = {num_length_buckets(recipe.data, source)}", advice
    if source.row_settings:
        return "row_settings", "Write what its rows say into the recipe instead."
    return None


def _differs(
    fail: Fail, key: str, sources: tuple[SourceRecipe, SourceRecipe], name: str, both: Any
) -> RecipeError:
    one, other = sources
    got = f"{name} {both[0]!r} of {one.name}, {both[1]!r} of {other.name}"
    return fail(key, [one.name, other.name], f"sources with one {name}: {got}",
                "Make them alike, or take one of the two out.")  # fmt: skip
