"""What an old run and new sources must have alike to become one model; it must not read data."""

from collections.abc import Iterator, Mapping
from typing import Any

from series.old_run import OldRun
from series.scores import sets_of
from trainer.data.prompts import prompt_prefix
from trainer.data.remote import placed
from trainer.errors import RecipeError
from trainer.recipe.document import shorten
from trainer.recipe.load import plain_recipe
from trainer.recipe.model_path import local_folder
from trainer.recipe.schema import Recipe, SourceRecipe
from trainer.recipe.sides import sides_of_source

ALIKE = (
    "model.path",
    "model.revision",
    "model.pooling",
    "model.attention",
    "model.end_token",
    "model.projection",
    "model.matryoshka",
    "data.query_max_tokens",
    "data.passage_max_tokens",
    "data.prompt_template",
    "data.pool_instruction",
)
"""Keys that say how a text becomes a vector: one model has one way."""
PLACE = ("path", "hub", "split", "format")
"""Keys of a source that say which rows it has."""


def check_agreement(old: OldRun, new: Recipe, file: str, *, start: str) -> None:
    """Refuse new sources that cannot become one model with an old run.

    Args:
        old: the run.
        new: the recipe of the new sources.
        file: where it stands, for messages.
        start: what the update begins with, `old` or `base`.

    Raises:
        RecipeError: naming the key, both values and what to do.
    """
    for key in ALIKE:
        _check_alike(key, old, new, file)
    _check_sources(old, new, file)
    _check_instructions(old, new, file)
    _check_sets(old, new, file)
    if new.checkpoint.export == "adapter":
        raise RecipeError(
            f"{file}: checkpoint.export = adapter; expected merged or both, as whole models are "
            "merged and scored. Change it."
        )
    if start == "base" and new.model.projection is not None:
        raise RecipeError(
            f"{file}: model.projection = {shorten(plain_recipe(new)['model']['projection'])} with "
            "--start base; expected --start old, as this layer begins at random and two that did "
            "cannot be merged. Leave --start out."
        )


def _check_alike(key: str, old: OldRun, new: Recipe, file: str) -> None:
    """One setting is the same in both."""
    was, now = (_value(key, recipe) for recipe in (old.recipe, new))
    if was != now:
        advice = f"Set it so, or train a model of its own with {file}."
        if key == "model.path":
            advice = "Name the backbone of the old run; --start says what training begins with."
        raise RecipeError(
            f"{file}: {key} = {shorten(now)}; expected {shorten(was)}, as in {old.file}. {advice}"
        )


def _value(key: str, recipe: Recipe) -> Any:
    """A setting in plain values; a model of this machine by the folder it lies in."""
    section, name = key.split(".")
    value = plain_recipe(recipe)[section][name]
    if key != "model.path":
        return value
    folder = local_folder(value)
    return value if folder is None else str(folder.resolve())


def _check_sources(old: OldRun, new: Recipe, file: str) -> None:
    """Every new source is one that the old run has not, by name and by rows; mixes too."""
    known = {one.name: one for one in old.recipe.data.sources}
    by_place = {_place(one, old.recipe): one.name for one in known.values()}
    for name in new.data.mix:
        if name in known or name in old.recipe.data.mix:
            raise RecipeError(
                f"{file}: data.mix.{name} = a mix by the name of a mix or source in {old.file}; "
                "expected another name, as steps are counted by it. Rename it."
            )
    for source in new.data.sources:
        if source.name in old.recipe.data.mix:
            raise RecipeError(
                f"{file}: data.sources.{source.name} = a source by the name of a mix in "
                f"{old.file}; expected another name, as steps are counted by it. Rename it."
            )
        if source.name in known:
            raise RecipeError(
                f"{file}: data.sources.{source.name} = a source of the same name in {old.file}; "
                "expected new sources alone, as a part of the old ones is added by itself. Remove "
                "it, or rename it if its rows are others."
            )
        same = by_place.get(_place(source, new))
        if same is not None:
            raise RecipeError(
                f"{file}: data.sources.{source.name} = the rows of source {same} in {old.file}; "
                "expected new sources alone, as a part of the old ones is added by itself. Remove "
                "it."
            )


def _place(source: SourceRecipe, recipe: Recipe) -> tuple[str | None, ...]:
    """What tells the rows of a source from those of others."""
    path = None if source.path is None else placed(source.path, recipe.data.root)
    values: dict[str, str | None] = {key: getattr(source, key) for key in PLACE} | {"path": path}
    return (source.task, *values.values())


def _check_instructions(old: OldRun, new: Recipe, file: str) -> None:
    """A new source has an instruction with which the old run has trained its task, if it has."""
    known: dict[tuple[str, str], dict[str, str]] = {}
    for source in old.recipe.data.sources:
        for key, prefix in _instructions(source, old.recipe):
            known.setdefault((source.task, key), {})[prefix] = getattr(source, key)
    for source in new.data.sources:
        for key, prefix in _instructions(source, new):
            texts = known.get((source.task, key))
            if texts is not None and prefix not in texts:
                raise RecipeError(
                    f"{file}: data.sources.{source.name}.{key} = {getattr(source, key)!r}; "
                    f"expected {' or '.join(map(repr, texts.values()))}, as sources of task "
                    f"{source.task} have it in {old.file}. Set it so: one model reads the texts of "
                    "a task in one way."
                )


def _instructions(source: SourceRecipe, recipe: Recipe) -> Iterator[tuple[str, str]]:
    """Key and prefix of each side that steps of a source have."""
    for side in sides_of_source(recipe, source):
        key = f"{side}_instruction"
        yield key, prompt_prefix(recipe.data.prompt_template, getattr(source, key))


def _check_sets(old: OldRun, new: Recipe, file: str) -> None:
    """A held-out set with the name of an old one is that one; there is one at least."""
    known: Mapping[str, Any] = {one.name: one for one in sets_of(old.recipe)}
    sets = sets_of(new)
    for one in sets:
        if one != known.get(one.name, one):
            raise RecipeError(
                f"{file}: eval.sets.{one.name} = another set than that of the same name in "
                f"{old.file}; expected the same, or another name. Rename it."
            )
    if not sets and not known:
        raise RecipeError(
            f"{file}: eval.sets = none, and none in {old.file}; expected held-out sets, by which "
            "gain and loss are told. Add some."
        )
