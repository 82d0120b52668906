"""The known formats of raw rows. A new one is one file here and one line in `ADAPTERS`."""

from collections.abc import Sequence

from trainer.data.fields import Row
from trainer.data.formats import (
    by_order,
    codiemb,
    dpr,
    flag_embedding,
    gritlm,
    held_out,
    mteb,
    nomic,
    own,
    sentence_transformers,
    swift,
    tevatron,
    tevatron_ids,
    texts,
)
from trainer.data.formats.adapter import Adapter
from trainer.errors import DataError
from trainer.recipe.eval_kinds import row_kind
from trainer.recipe.schema import EvalKindName, Task

ADAPTERS: list[Adapter] = [
    *codiemb.ADAPTERS,
    *own.ADAPTERS,
    *nomic.ADAPTERS,
    *tevatron_ids.ADAPTERS,
    *tevatron.ADAPTERS,
    *dpr.ADAPTERS,
    *swift.ADAPTERS,
    *gritlm.ADAPTERS,
    *flag_embedding.ADAPTERS,
    *sentence_transformers.ADAPTERS,
    *texts.ADAPTERS,
    *by_order.ADAPTERS,
    *held_out.ADAPTERS,
    *mteb.ADAPTERS,
]
"""The first that fits is taken; narrower ones come first."""


def header_of(task: Task | EvalKindName, name: str | None) -> tuple[str, ...] | None:
    """Column names of a format whose files do not begin with them; None for all others."""
    named = (a.header for a in ADAPTERS if a.task == task and a.name == name)
    return next(named, None)


def find_adapter(
    task: Task | EvalKindName, name: str | None, rows: Sequence[Row], *, owner: str
) -> Adapter:
    """The adapter that a source names, or the first that fits its rows.

    Args:
        task: the source's task, or the kind of a held-out set.
        name: `format` of the recipe, or None to go by the rows.
        rows: the first rows.
        owner: recipe key or file of the rows, for messages.

    Raises:
        DataError: if there is no such adapter, or none fits.
    """
    columns = frozenset(column for row in rows for column in row.values)
    adapters = [adapter for adapter in ADAPTERS if adapter.task == task]
    named = [adapter for adapter in adapters if adapter.name == name]
    for adapter in named or adapters:
        if adapter.columns <= columns and (named or adapter.is_found) and _fits(adapter, rows):
            return adapter
    if named:
        return named[0]
    if name is not None:
        names = ", ".join([*_names(adapters), *(["beir"] if row_kind(task).has_corpus else [])])
        raise DataError(
            f"{owner}: format = {name}; expected one of {names} for task {task}. Correct the name, "
            "or leave it out to go by the columns."
        )
    known = "; ".join(f"{name}: {shapes}" for name, shapes in _names(adapters).items())
    others = "."
    if any(not adapter.is_found for adapter in adapters):
        others = (
            ": `by-order` takes columns in their order, `msmarco-triples` takes tab-separated "
            "files without a header line."
        )
    raise DataError(
        f"{owner}: columns = {_shown(columns)}; expected those of a format of task {task} "
        f"({known}). Rename the columns, or set task or format{others}"
    )


def _fits(adapter: Adapter, rows: Sequence[Row]) -> bool:
    """Whether the first row that has the columns is of the format."""
    whole = (row for row in rows if all(map(row.has, adapter.columns)))
    return next((adapter.fits(row) for row in whole), adapter.fits(rows[0]))


def _names(adapters: Sequence[Adapter]) -> dict[str, str]:
    """Each format with the columns of its first shapes."""
    shapes: dict[str, list[str]] = {}
    for adapter in adapters:
        shapes.setdefault(adapter.name, []).append(", ".join(sorted(adapter.columns)))
    return {name: " or ".join(filter(None, found[:2])) for name, found in shapes.items()}


def _shown(columns: frozenset[str]) -> str:
    names = ", ".join(sorted(columns))
    return names[:200] or "none"
