"""The known formats of raw rows. A new one is one file here and one line in `ADAPTERS`."""

from collections.abc import Collection, Sequence

from trainer.data.columns import Columns, listed
from trainer.data.fields import Row
from trainer.data.formats import (
    by_order,
    codiemb,
    dpr,
    flag_embedding,
    gritlm,
    held_out,
    labelled_texts,
    mteb,
    nli,
    nomic,
    own,
    sentence_transformers,
    stsbenchmark,
    swift,
    tevatron,
    tevatron_ids,
    texts,
)
from trainer.data.formats.adapter import Adapter
from trainer.data.formats.nearest import (
    comes_near,
    lacking,
    mapping_hint,
    nearest,
    nearest_name,
    plainest,
)
from trainer.data.header import Header
from trainer.data.tables import Table
from trainer.errors import DataError
from trainer.recipe.eval_kinds import row_kind
from trainer.recipe.schema import EvalSetRecipe, SourceRecipe

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
    *labelled_texts.ADAPTERS,
    *nli.ADAPTERS,
    *texts.ADAPTERS,
    *by_order.ADAPTERS,
    *stsbenchmark.ADAPTERS,
    *held_out.ADAPTERS,
    *mteb.ADAPTERS,
]
"""The first that fits is taken; narrower ones come first."""


def header_of(recipe: SourceRecipe | EvalSetRecipe, *, owner: str) -> Header:
    """What a recipe and the format that it names say of the first row of delimited files.

    Args:
        recipe: of the source or held-out set.
        owner: its recipe key.

    Raises:
        DataError: if the recipe speaks of a header in a format without one.
    """
    named = [one for one in ADAPTERS if (one.task, one.name) == (recipe.task, recipe.format)]
    headerless = next((one.headerless for one in named if one.headerless is not None), None)
    if headerless is not None and recipe.header:
        raise DataError(
            f"{owner}.header = true; expected false or nothing for format {recipe.format}, whose "
            "files have no header. Remove it, or format."
        )
    return Header(
        owner=owner,
        said=recipe.header,
        headerless=headerless,
        must_be_said=any(one.is_by_order for one in named),
    )


def find_adapter(recipe: SourceRecipe | EvalSetRecipe, table: Table, *, owner: str) -> Adapter:
    """The adapter that a source names, or the first that fits its rows.

    Args:
        recipe: of the source or held-out set.
        table: its rows under the recipe's names.
        owner: its recipe key, for messages.

    Raises:
        DataError: if there is no such adapter, none fits, or a column that it needs is missing.
    """
    rows, place, name = table.sample(), table.place(0), recipe.format
    there = frozenset(column for row in rows for column in row.values)
    adapters = [adapter for adapter in ADAPTERS if adapter.task == recipe.task]
    named = [adapter for adapter in adapters if adapter.name == name]
    if name is not None and not named:
        with_corpus = ["beir"] if row_kind(recipe.task).has_corpus else []
        names = ", ".join([*_names(adapters), *with_corpus])
        raise DataError(
            f"{place}: format = {name}; expected one of {names} for task {recipe.task}. Correct "
            "the name, or leave it out to go by the columns."
        )
    _check_names(table.columns, named or adapters, owner=owner)
    adapter = _fitting(named or adapters, there, rows, is_named=bool(named))
    if adapter is None and not named:
        raise _unknown_columns(recipe, adapters, there, owner=owner, table=table)
    if adapter is None or adapter.missing(there):
        chosen = adapter or nearest(named, there)
        found = (one for one in adapters if one.is_found and not one.missing(there))
        others = [one for one in found if _fits(one, rows)]
        fault = lacking(chosen, others, there, owner=owner, place=place)
        raise DataError(f"{fault}{_header_advice(recipe, table, owner)}")
    _check_names(table.columns, [adapter], owner=owner)
    return adapter


def _fitting(
    adapters: Sequence[Adapter], columns: frozenset[str], rows: Sequence[Row], *, is_named: bool
) -> Adapter | None:
    """The first adapter whose columns are there and that the rows fit.

    Of a format that the recipe names, the columns are enough: its rows are then read as such.
    """
    having = [adapter for adapter in adapters if adapter.columns <= columns]
    for adapter in having:
        if (is_named or adapter.is_found) and _fits(adapter, rows):
            return adapter
    return having[0] if having and is_named else None


def _check_names(columns: Columns, adapters: Sequence[Adapter], *, owner: str) -> None:
    """Refuse a name that is mapped to a column and that none of some formats reads.

    Raises:
        DataError: if there is one; names the nearest that is read.
    """
    for name, column in columns.names.items():
        if any(adapter.reads(name) for adapter in adapters):
            continue
        known = list(dict.fromkeys(one for adapter in adapters for one in adapter.names))
        close = nearest_name(name, known)
        formats = ", ".join(dict.fromkeys(adapter.name for adapter in adapters))
        advice = f"Did you mean {close}?" if close else "Use the format's name, or remove it."
        raise DataError(
            f"{owner}.columns.{name} = {column}; expected a name that a format reads ({formats}): "
            f"{', '.join(known)}. {advice}"
        )


def _unknown_columns(
    recipe: SourceRecipe | EvalSetRecipe,
    adapters: Sequence[Adapter],
    columns: Collection[str],
    *,
    owner: str,
    table: Table,
) -> DataError:
    """No format has these columns; the message names the nearest."""
    known = "; ".join(f"{name}: {shapes}" for name, shapes in _names(adapters).items())
    found = [adapter for adapter in adapters if adapter.is_found]
    close, how = nearest(found, columns), "Nearest is {}, which also needs"
    if not comes_near(close, columns):
        close, how = plainest(found), "None comes near; {} needs"
    hint = f"{how.format(close.name)} {' and '.join(close.missing(columns))}. "
    hint += mapping_hint(close, columns, owner=owner)
    ways = [
        "`by-order` takes columns in their order" if one.headerless is None else
        f"`{one.name}` takes tab-separated files without a header line "
        f"({', '.join(one.headerless.names)})"
        for one in adapters
        if not one.is_found
    ]  # fmt: skip
    others = f": {'; '.join(dict.fromkeys(ways))}" if ways else ""
    return DataError(
        f"{table.place(0)}: columns = {listed(columns)}; expected those of a format of task "
        f"{recipe.task} ({known}). {hint}, or set task or format{others}."
        f"{_header_advice(recipe, table, owner)}"
    )


def _header_advice(recipe: SourceRecipe | EvalSetRecipe, table: Table, owner: str) -> str:
    """What to do if the first row, which was taken for a header, is none; empty: it was not."""
    header = header_of(recipe, owner=owner)
    return f" {header.advice}." if table.is_delimited and header.said is None else ""


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
