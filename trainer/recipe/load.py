"""Recipe file + overrides -> `Recipe`, refusing what it cannot mean; it must not read data.

The file's text becomes values with their places (`document`), the values become dataclasses by
the schema (`typed`), and the pairs that contradict each other are refused (`rules`).
"""

import copy
import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from trainer.recipe.document import Document, apply_overrides, read_document
from trainer.recipe.rules import check_rules
from trainer.recipe.schema import DataRecipe, Recipe
from trainer.recipe.typed import build


def load_recipe(path: str | Path, overrides: Sequence[str] = ()) -> Recipe:
    """Read and check a recipe.

    Args:
        path: the YAML file.
        overrides: `key.path=value`, applied in order; the values are parsed as YAML.
    Returns:
        The recipe with every default filled in.
    Raises:
        RecipeError: on the first mistake; the message names file and line, or the override.
    """
    document = read_document(path)
    if any(override.startswith("data.pattern.") for override in overrides):
        document = _with_pattern(document)
    document = _with_pattern(apply_overrides(document, overrides))
    recipe = build(Recipe, document)
    check_rules(recipe, document.place)
    return recipe


def dump_recipe(recipe: Recipe) -> str:
    """The resolved recipe as YAML, every key written out; `load_recipe` reads back an equal one."""
    return yaml.safe_dump(
        _plain(dataclasses.asdict(recipe)), sort_keys=False, allow_unicode=True, width=100
    )


def _plain(value: Any) -> Any:
    """Tuples as lists, all the way down: YAML has no tuples."""
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    return [_plain(item) for item in value] if isinstance(value, list | tuple) else value


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
