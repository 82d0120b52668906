"""Recipe file + overrides -> `Recipe`, refusing what it cannot mean; it must not read data.

The file's text becomes values with their places (`document`), the values become dataclasses by
the schema (`typed`), and the pairs that contradict each other are refused (`rules`).
"""

import copy
import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from trainer.recipe.completed import completed
from trainer.recipe.document import Document, apply_overrides, read_document
from trainer.recipe.rules import check_rules
from trainer.recipe.schema import DataRecipe, Recipe
from trainer.recipe.typed import build


def load_recipe(
    path: str | Path, overrides: Sequence[str] = (), changes: Sequence[str] = ()
) -> Recipe:
    """Read and check a recipe.

    Args:
        path: the YAML file.
        overrides: `key.path=value`, applied in order; the values are parsed as YAML.
        changes: applied after them; they may name a source that is not there, which is added.
    Returns:
        The recipe with every default filled in.
    Raises:
        RecipeError: on the first mistake; the message names file and line, or the override.
    """
    document = _with_new_sources(read_document(path), changes)
    overrides = (*overrides, *changes)
    if any(override.startswith("data.pattern.") for override in overrides):
        document = _with_pattern(document)
    document = _with_pattern(apply_overrides(document, overrides))
    recipe = build(Recipe, document)
    check_rules(recipe, document.place)
    return recipe


def dump_recipe(recipe: Recipe) -> str:
    """The resolved recipe as YAML, every key written out; `load_recipe` reads back an equal one."""
    return yaml.safe_dump(plain_recipe(recipe), sort_keys=False, allow_unicode=True, width=100)


def plain_recipe(recipe: Recipe) -> dict[str, Any]:
    """The resolved recipe in the plain values of YAML and JSON; `recipe_of` gives an equal one."""
    plain: dict[str, Any] = _plain(dataclasses.asdict(recipe))
    return plain


def recipe_of(values: Mapping[str, Any], name: str = "recipe of the run") -> Recipe:
    """The recipe that plain values spell.

    Args:
        values: as `plain_recipe` gives them; keys that an older release lacked get their defaults.
        name: what messages call them.
    Raises:
        RecipeError: on the first mistake, such as a key that this release does not know.
    """
    document = Document(file=name, values=_plain(completed(Recipe, values)), places={})
    recipe = _without_idle_turns(build(Recipe, document))
    check_rules(recipe, document.place)
    return recipe


def _plain(value: Any) -> Any:
    """Tuples as lists, all the way down: YAML has no tuples."""
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    return [_plain(item) for item in value] if isinstance(value, list | tuple) else value


def _with_new_sources(document: Document, changes: Sequence[str]) -> Document:
    """Add the sources that are given keys and are not there yet, with nothing but a name."""
    values = copy.deepcopy(document.values)
    data = values.get("data")
    sources = data.get("sources") if isinstance(data, dict) else None
    if not isinstance(sources, list):
        return document
    known = {source.get("name") for source in sources if isinstance(source, dict)}
    for change in changes:
        parts = change.partition("=")[0].split(".")
        is_new = len(parts) == 4 and parts[:2] == ["data", "sources"] and parts[2] not in known
        if is_new and not parts[2].isdecimal():
            sources.append({"name": parts[2]})
            known.add(parts[2])
    return dataclasses.replace(document, values=values)


def _without_idle_turns(recipe: Recipe) -> Recipe:
    """Take turns of tasks without a source out of `data.pattern`: nobody has them.

    A recipe that was made in a program, and not loaded, has the default's.
    """
    tasks = {source.task for source in recipe.data.sources}
    turns = {task: number for task, number in recipe.data.pattern.items() if task in tasks}
    return dataclasses.replace(recipe, data=dataclasses.replace(recipe.data, pattern=turns))


def _with_pattern(document: Document) -> Document:
    """Fill in an absent `data.pattern`: its default, cut to the tasks that have a source."""
    data = document.values.get("data")
    if not isinstance(data, dict) or data.get("pattern") is not None:
        return document
    sources = data.get("sources")
    if not isinstance(sources, list):
        return document
    tasks = [source.get("task") for source in sources if isinstance(source, dict)]
    default = next(field for field in dataclasses.fields(DataRecipe) if field.name == "pattern")
    turns = default.default_factory() if callable(default.default_factory) else {}
    values = copy.deepcopy(document.values)
    values["data"]["pattern"] = {task: turns[task] for task in turns if task in tasks}
    return dataclasses.replace(document, values=values)
