"""Which sources have a teacher's scores and hard negatives: asked before a loss needs them."""

import logging
from collections.abc import Sequence

from trainer.data.formats import ADAPTERS
from trainer.data.sources import Source
from trainer.errors import DataError
from trainer.recipe.per_source import settings_of
from trainer.recipe.schema import Recipe
from trainer.recipe.tasks import TASKS

LOOKED_AT = 1000
"""Rows of a source that are looked at for hard negatives."""

logger = logging.getLogger(__name__)


def require_teacher(source: Source, key: str) -> None:
    """Refuse a source none of whose rows has scores; those of only some rows are enough.

    Args:
        source: one that is trained on.
        key: of the recipe, which needs the scores, such as `tasks.ir.distillation`.

    Raises:
        DataError: naming the source, its rows, and where scores are looked for.
    """
    if source.num_scored:
        return
    columns = source.teacher_columns
    if columns:
        looked, advice = f"in {columns}", "Add them"
    else:
        names = dict.fromkeys(one.name for one in ADAPTERS if one.teacher_columns)
        looked = "but its format has none"
        advice = f"Write its rows in a format that has them ({', '.join(names)})"
    raise DataError(
        f"data.sources.{source.name}: rows with a teacher's scores = 0 of {len(source)}; expected "
        f"at least one for {key}, {looked}. {advice}, or remove {key} or the source."
    )


def check_teachers(sources: Sequence[Source], recipe: Recipe) -> None:
    """Refuse a recipe that learns from a teacher where no row of the task has its scores.

    A source without scores beside one that has them is told of: its rows train the other terms.

    Raises:
        DataError: naming the key and the first source.
    """
    for task, settings in recipe.tasks.items():
        key = TASKS[task].teacher_key(settings)
        if key is None:
            continue
        names = {one.name for one in recipe.data.sources if one.task == task}
        asked = [source for source in sources if source.name in names]
        without = [source for source in asked if not source.num_scored]
        if without and len(without) == len(asked):
            require_teacher(without[0], key)
        for source in without:
            logger.warning(
                "data.sources.%s: no row has a teacher's scores; %s counts for other sources alone",
                source.name, key,
            )  # fmt: skip


def check_negatives(sources: Sequence[Source], recipe: Recipe) -> None:
    """Refuse a source without hard negatives where a term of its steps is nothing without them.

    Rows are looked at until one has a negative; of a large source, some that lie far apart.

    Raises:
        DataError: naming the key and the source.
    """
    for source in sources:
        task = next(one.task for one in recipe.data.sources if one.name == source.name)
        key = TASKS[task].negatives_key(settings_of(recipe, source.name))
        if key is None:
            continue
        rows = sorted({len(source) * i // LOOKED_AT for i in range(LOOKED_AT)})
        if not any(getattr(source.record(row), "negatives", ()) for row in rows):
            raise DataError(
                f"data.sources.{source.name}: rows with hard negatives = 0 of {len(rows)} that "
                f"were looked at; expected some for {key}. Mine negatives, or remove {key} or the "
                "source."
            )


def scored_rows(sources: Sequence[Source]) -> dict[str, int]:
    """Number of rows with a teacher's scores of each source that has any, by name."""
    return {source.name: source.num_scored for source in sources if source.num_scored}
