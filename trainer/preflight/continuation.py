"""Whether a run may be continued as the recipe and its data are now; it must not create a file.

Asked before torch is imported, of the newest checkpoint that there is. When the group is up it is
asked again, of the checkpoint that is continued.
"""

import logging
from collections.abc import Sequence
from pathlib import Path

from trainer.checkpoint.changes import keep_changes
from trainer.checkpoint.compare import compare_runs
from trainer.checkpoint.continued import Continued, continue_run
from trainer.checkpoint.record import read_record
from trainer.data.sources import Source
from trainer.errors import CheckpointError
from trainer.evaluation.recorded import read_evaluations
from trainer.recipe.load import plain_recipe, recipe_of
from trainer.recipe.schema import Recipe
from trainer.run_folder.layout import RunFolder

logger = logging.getLogger(__name__)


def continued_recipe(recipe: Recipe, named: Sequence[str]) -> Recipe:
    """The recipe that a run goes on with: what was changed by name before stays changed.

    Args:
        recipe: as loaded, with the changes that are made now.
        named: their keys.

    Raises:
        CheckpointError: another change was not named, or cannot be made.
    """
    record = read_record(_folder(recipe))
    if record is None:
        return recipe
    given = plain_recipe(recipe)
    kept, lines = keep_changes(record.stretches, given, named)
    for line in lines:
        logger.info("the run goes on with %s", line)
    compare_runs(record.tag, record.stretches[-1], kept, named=named, added={})
    return recipe if kept == given else recipe_of(kept)


def continued_run(
    recipe: Recipe, sources: Sequence[Source], named: Sequence[str]
) -> Continued | None:
    """The run as it goes on from its newest checkpoint; None where there is none.

    Args:
        recipe: from `continued_recipe`.
        sources: opened.
        named: keys that are changed now.

    Raises:
        CheckpointError: other rows than the run began with, more rows that are not named, a run
            that ends before the checkpoint, or changes of one that `eval.patience` has ended.
        RecipeError: the recipe does not fit the data.
    """
    folder = _folder(recipe)
    record = read_record(folder)
    if record is None:
        return None
    found = continue_run(record, recipe, sources, named)
    _refuse_ended(found, recipe, folder)
    return found


def _refuse_ended(found: Continued, recipe: Recipe, folder: RunFolder) -> None:
    """Refuse to begin a stretch that would end before its first step."""
    begins = found.stretches[-1].first_step == found.step
    done = read_evaluations(folder.evaluations, recipe.eval, found.step)
    if not (begins and done.best is not None and done.has_ended(recipe.eval.patience)):
        return
    raise CheckpointError(
        f"checkpoint {found.tag}: eval.patience = {recipe.eval.patience}, which ended the run at "
        f"step {found.step}; expected one that lets the run go on with its changes "
        f"({', '.join(found.stretches[-1].changed)}). Add eval.patience=null or "
        f"eval.patience={done.best.num_worse + 1} to --change, or change nothing by name."
    )


def _folder(recipe: Recipe) -> RunFolder:
    return RunFolder(Path(recipe.output_dir).expanduser())
