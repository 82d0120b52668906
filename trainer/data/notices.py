"""What the rows of a source ask for that training will not do: said once, before it starts."""

import logging
from collections.abc import Sequence

from trainer.data.fields import Row, shown
from trainer.data.formats.adapter import Adapter
from trainer.data.tables import Table
from trainer.recipe.eval_kinds import row_kind
from trainer.recipe.per_source import NO_IN_BATCH_NEGATIVES, forbids_in_batch
from trainer.recipe.schema import EvalSetRecipe, SourceRecipe

logger = logging.getLogger(__name__)

AnySource = SourceRecipe | EvalSetRecipe


def warn_of_ignored(recipe: AnySource, adapter: Adapter, table: Table, usable: Row | None) -> None:
    """Logs what the rows ask for that will not happen.

    Args:
        recipe: the source.
        adapter: of its rows.
        table: its rows.
        usable: the first row that is used, if any.
    """
    if usable is not None:
        for key, carried in (
            ("query_instruction", adapter.instruction(usable)),
            ("passage_instruction", adapter.passage_instruction(usable)),
        ):
            keys = key if adapter.settings is None else f"{key} or row_settings"
            _warn_of_instruction(table, carried, recipe, key, keys)
    for sentence in (*adapter.ignored(table.sample(), recipe), *_named_in_path(recipe, table)):
        logger.warning("%s: %s", table.name, sentence)


def _warn_of_instruction(
    table: Table, carried: str, recipe: AnySource, key: str, keys: str
) -> None:
    used = recipe.query_instruction if key == "query_instruction" else recipe.passage_instruction
    if carried and carried != used:
        logger.warning(
            "%s: rows carry the instruction %s, which is not used; set %s of %s to train with it",
            table.name,
            shown(carried),
            keys,
            recipe.name,
        )


def _named_in_path(recipe: AnySource, table: Table) -> Sequence[str]:
    """In-batch negatives, where some of the files say by their names that there should be none.

    A path that says it itself is taken at its word, see `trainer.recipe.per_source`.
    """
    if not row_kind(recipe.task).has_corpus or getattr(recipe, "in_batch", None) is not None:
        return ()
    if forbids_in_batch(recipe.path or ""):
        return ()
    if not any(forbids_in_batch(str(file.name)) for file in table.files):
        return ()
    return (
        f"the name of a file says {NO_IN_BATCH_NEGATIVES} and path does not, so the passages of "
        "other rows of a batch are negatives, also those of the same class: make a source of its "
        f"own of the file, or set data.sources.{recipe.name}.in_batch=false, which needs hard "
        "negatives",
    )
