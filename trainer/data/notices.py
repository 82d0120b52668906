"""What the rows of a source ask for that training will not do: said once, before it starts."""

import logging
from collections.abc import Sequence
from pathlib import Path

from trainer.data.fields import Row, shown
from trainer.data.formats.adapter import Adapter
from trainer.data.tables import Table
from trainer.recipe.eval_kinds import row_kind
from trainer.recipe.schema import EvalSetRecipe, SourceRecipe

logger = logging.getLogger(__name__)

AnySource = SourceRecipe | EvalSetRecipe
NO_IN_BATCH_NEGATIVES = "no_in_batch_neg"
"""End of a file's or folder's name by which FlagEmbedding switches in-batch negatives off."""


def warn_of_ignored(recipe: AnySource, adapter: Adapter, table: Table, usable: Row | None) -> None:
    """Logs what the rows ask for that will not happen.

    Args:
        recipe: the source.
        adapter: of its rows.
        table: its rows.
        usable: the first row that is used, if any.
    """
    if usable is not None:
        _warn_of_instruction(table, adapter.instruction(usable), recipe, "query_instruction")
        carried = adapter.passage_instruction(usable)
        _warn_of_instruction(table, carried, recipe, "passage_instruction")
    for sentence in (*adapter.ignored(table.sample(), recipe), *_named_in_path(recipe, table)):
        logger.warning("%s: %s", table.name, sentence)


def _warn_of_instruction(table: Table, carried: str, recipe: AnySource, key: str) -> None:
    used = recipe.query_instruction if key == "query_instruction" else recipe.passage_instruction
    if carried and carried != used:
        logger.warning(
            "%s: rows carry the instruction %s, which is not used; set %s of %s to train with it",
            table.name,
            shown(carried),
            key,
            recipe.name,
        )


def _named_in_path(recipe: AnySource, table: Table) -> Sequence[str]:
    """In-batch negatives, where the name of a file or its folder says that there should be none."""
    if not row_kind(recipe.task).has_corpus or getattr(recipe, "in_batch", None) is not None:
        return ()
    if not any(_without_in_batch(file.name) for file in table.files):
        return ()
    return (
        f"the name says {NO_IN_BATCH_NEGATIVES}, but the passages of other rows of a batch are "
        "negatives here, also those of the same class, unless tasks.ir.in_batch is false: set "
        f"data.sources.{recipe.name}.in_batch=false, which needs hard negatives",
    )


def _without_in_batch(name: Path) -> bool:
    stem = name.name.partition(".")[0]
    return any(part.endswith(NO_IN_BATCH_NEGATIVES) for part in (stem, name.parent.name))
