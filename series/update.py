"""An update of a finished run: what it is, what it trains on, and whether a folder holds it.

It must not train, merge or score.
"""

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from series.commands import MERGED, base_of, merge_command, train_command
from series.gains import OLD, UPDATED
from series.joined import Settings, new_sets
from series.old_run import OldRun
from series.plan import check_plan, check_unused, plan_of_work, write_plan, writing_into
from series.scores import sets_of
from trainer.checkpoint.json_files import read_object, write_whole
from trainer.data.plan import Exposure
from trainer.data.planned import plan_of
from trainer.preflight.checks import (
    check_model,
    check_output_dir,
    check_packages,
    near_data,
    open_data,
)
from trainer.recipe.load import dump_recipe
from trainer.recipe.resolve import resolve
from trainer.recipe.schema import EvalSetRecipe, Recipe
from trainer.report.merge_search import RECORD as SEARCH_RECORD
from trainer.run_folder.layout import RunFolder

RUN, RECIPE = "run", "update.yaml"
"""In the output folder: the training and its recipe."""


@dataclass(frozen=True, kw_only=True)
class Update:
    """All that an update will do."""

    old: OldRun
    """The run that is updated."""
    new: Recipe
    """The recipe of the new sources, as given."""
    recipe: Recipe
    """What is trained."""
    settings: Settings
    """How."""
    output: Path
    """Folder of everything, absolute."""
    chosen: tuple[str, ...]
    """Options of the merge."""
    search: tuple[str, ...]
    """Held-out sets that choose the merge, if they do."""
    launcher: str
    """Command before `trainer/run.py`."""

    @property
    def models(self) -> dict[str, Path]:
        """Where the three models are."""
        updated = RunFolder(self.settings.folder).model
        return {OLD: self.old.model, UPDATED: updated, MERGED: self.output / MERGED}

    @property
    def new_sets(self) -> list[EvalSetRecipe]:
        """Held-out sets of the new recipe alone."""
        return new_sets(self.old.recipe, self.new)

    @property
    def old_sets(self) -> list[EvalSetRecipe]:
        """Held-out sets of the old run."""
        return sets_of(self.old.recipe)

    @property
    def train_command(self) -> list[str]:
        """How the training is started."""
        recipe, folder = self.output / RECIPE, self.settings.folder
        return train_command(recipe, (), folder, launcher=self.launcher)

    @property
    def merge_command(self) -> list[str]:
        """How the models are merged."""
        # the updated model first: it has the prompts of both
        inputs = [self.models[UPDATED], self.models[OLD]]
        base = base_of(self.old.recipe.model)
        return merge_command(base, inputs, self.models[MERGED], self.chosen)


def rows_of(update: Update) -> list[dict[str, Any]]:
    """What is trained on: rows and steps of each source, every row that is at hand checked.

    Raises:
        RecipeError: if model, batches or packages are wrong, or a batch has more rows than a part.
        DataError: if a file or a row is wrong.
    """
    recipe, steps = update.recipe, update.settings.steps
    resolve(recipe, world_size=1)
    check_model(recipe)
    check_packages(recipe)
    check_output_dir(recipe.output_dir, resume=True)
    sources = open_data(near_data(recipe)).sources
    sizes = {source.name: len(source) for source in sources}
    # the rows of a source that is not here are counted when the training starts
    seen: dict[str, Exposure] = {}
    if len(sizes) == len(recipe.data.sources):
        seen = {one.source: one for one in plan_of(recipe, sources).exposure(steps)}
    new = {one.name for one in update.new.data.sources}
    return [
        {
            "name": source.name,
            "of": "new" if source.name in new else "old",
            "task": source.task,
            "rows": seen[source.name].num_rows if seen else None,
            "all_rows": sizes.get(source.name),
            "steps": seen[source.name].steps if seen else None,
        }
        for source in recipe.data.sources
    ]


def as_trained(update: Update, sources: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """The same when the training is done, and the rows of all sources are counted.

    Args:
        update: whose run is finished.
        sources: from `rows_of`.
    """
    facts = read_object(RunFolder(update.settings.folder).facts)
    seen = {one["source"]: one for one in facts["exposure"]}
    return [
        {
            **source,
            "rows": seen[source["name"]]["num_rows"],
            "steps": seen[source["name"]]["steps"],
        }
        for source in sources
    ]


def identity(update: Update) -> dict[str, Any]:
    """What an update is: one that goes on has the same."""
    return plan_of_work(
        update.recipe,
        run=str(update.old.folder),
        model_sha256=update.old.sha256,
        merge=list(update.chosen),
    )


def check_folder(update: Update) -> None:
    """Refuse an output folder that holds anything but this update.

    Raises:
        RecipeError: naming what was found.
    """
    check_output_dir(str(update.output), resume=True)
    check_unused(update.output)
    check_plan(update.output, identity(update))


def begin(update: Update) -> None:
    """Note in the output folder what the update is, and write its recipe.

    Raises:
        RecipeError: if it cannot be written.
    """
    write_plan(update.output, identity(update))
    with writing_into(update.output):
        write_whole(update.output / RECIPE, dump_recipe(update.recipe))


def chosen_merge(update: Update) -> str:
    """How the models were merged, in a few words: what was asked for, or what held-out sets chose.

    Raises:
        CheckpointError: if what the search left is damaged.
    """
    if not update.search:
        return shlex.join(update.chosen)
    return str(read_object(update.models[MERGED] / SEARCH_RECORD)["best"])


def facts_of(update: Update) -> dict[str, str]:
    """What was done, in a few words each."""
    settings = update.settings
    return {
        "old run": f"{update.old.folder}, {update.old.steps:,} steps",
        "trained from": str(update.recipe.model.path),
        "steps": f"{settings.steps:,}",
        "part of the old rows": f"{settings.share:g}, seed {settings.seed}",
        "result": str(update.models[MERGED]),
    }
