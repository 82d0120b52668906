"""Scores of several models on the same held-out sets, each model scored once."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

from bench.kept import Kept
from tools.evaluate import Results, evaluate, without_nan
from trainer.data.remote import placed
from trainer.recipe.schema import EvalSetRecipe, Recipe
from trainer.run_folder.layout import FINISHED, MERGE_RECORD

SCORES = "scores"
"""Folder of what was scored, a file for each model."""


def sets_of(recipe: Recipe) -> list[EvalSetRecipe]:
    """Held-out sets of a recipe with absolute paths, or addresses."""
    root = recipe.data.root
    return [
        one if one.path is None else replace(one, path=placed(one.path, root))
        for one in recipe.eval.sets
    ]


def score_models(
    models: Mapping[str, Path], sets: Sequence[EvalSetRecipe], folder: Path
) -> dict[str, Results]:
    """Metrics of every model on every set, as `tools/evaluate.py` has them.

    Args:
        models: exported or merged folders, by name.
        sets: from `sets_of`.
        folder: of results, from which a later call takes what was scored already.

    Returns:
        Metrics by set, of each model.

    Raises:
        RecipeError: if there is no model.
        DataError: if a set is wrong.
    """
    kept = Kept(folder)
    found: dict[str, Results] = {}
    for name, path in models.items():
        made_from = [str(path), _identity(path), *map(repr, sets)]
        result = kept.get(name, made_from)
        if result is None:
            result = kept.make(name, made_from, partial(evaluate, str(path), sets))
        found[name] = result
    return found


def as_plain(scores: Mapping[str, Results]) -> dict[str, dict[str, dict[str, float | None]]]:
    """The same for JSON, which has no number for what is not defined."""
    return {name: without_nan(results) for name, results in scores.items()}


def _identity(model: Path) -> str:
    """Another one for a model that was merged or trained anew."""
    records = (model / MERGE_RECORD, model.parent / FINISHED)
    return next((file.read_text(encoding="utf-8") for file in records if file.is_file()), "")
