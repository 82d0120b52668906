"""The known formats of raw rows. A new one is one file here and one line in `ADAPTERS`."""

from trainer.data.formats import codiemb, flag_embedding, own, sentence_transformers, tevatron
from trainer.data.formats.adapter import Adapter
from trainer.errors import DataError
from trainer.recipe.schema import Task

ADAPTERS: tuple[Adapter, ...] = (
    *codiemb.ADAPTERS,
    *own.ADAPTERS,
    *sentence_transformers.ADAPTERS,
    *flag_embedding.ADAPTERS,
    *tevatron.ADAPTERS,
)
"""The first whose columns are all there is taken; narrower ones come first."""


def find_adapter(task: Task, name: str | None, columns: frozenset[str], *, owner: str) -> Adapter:
    """The adapter that a source names, or the first that fits its columns.

    Args:
        task: the source's task.
        name: `format` of the recipe, or None to go by the columns.
        columns: field names of the first row.
        owner: recipe key or file of the rows, for messages.

    Raises:
        DataError: if there is no such adapter, or none fits.
    """
    adapters = [adapter for adapter in ADAPTERS if adapter.task == task]
    for adapter in adapters:
        if adapter.name == name or (name is None and adapter.columns <= columns):
            return adapter
    if name is not None:
        names = ", ".join([adapter.name for adapter in adapters] + ["beir"] * (task == "ir"))
        raise DataError(
            f"{owner}: format = {name}; expected one of {names} for task {task}. Correct the name, "
            "or leave it out to go by the columns."
        )
    known = "; ".join(f"{a.name}: {', '.join(sorted(a.columns))}" for a in adapters)
    raise DataError(
        f"{owner}: columns = {', '.join(sorted(columns)) or 'none'}; expected those of a format of "
        f"task {task} ({known}). Rename the columns, or set task or format."
    )
