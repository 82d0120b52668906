"""Settings that the rows of a source carry, taken into the recipe before anything else reads it.

FlagEmbedding writes into each row how it is to be trained: its instruction, and a type that says
which sides get it and how many negatives count. It must not change what a recipe says itself.
"""

import dataclasses

from trainer.data.fetching import at_hand
from trainer.data.fields import shown
from trainer.data.formats import header_of
from trainer.data.formats.adapter import Adapter, RowSettings
from trainer.data.scan import parsed_rows
from trainer.data.table_source import find_format
from trainer.data.tables import Table, open_table
from trainer.errors import DataError
from trainer.recipe.schema import Recipe, SourceRecipe


def with_row_settings(recipe: Recipe) -> Recipe:
    """The recipe, its sources with `row_settings` completed by what their rows carry.

    What is completed stays as it is when it is completed again.

    Raises:
        DataError: if a file is missing or malformed, its rows carry no settings or several, or the
            recipe has others.
    """
    data = recipe.data
    sources = tuple(_completed(one, recipe) if one.row_settings else one for one in data.sources)
    if sources == data.sources:
        return recipe
    return dataclasses.replace(recipe, data=dataclasses.replace(data, sources=sources))


def _completed(source: SourceRecipe, recipe: Recipe) -> SourceRecipe:
    """A source with the settings of its rows."""
    owner = f"data.sources.{source.name}"
    near = at_hand(source, recipe.data.root, owner=owner)
    header = header_of(source, owner=owner)
    table = open_table(near.path or "", recipe.data.root, owner=owner, header=header)
    table, adapter = find_format(source, table, owner)
    found = _settings(table, adapter, owner, skip=recipe.data.on_bad_row == "skip")
    values: dict[str, str | int] = {}
    for key, carried in (
        ("query_instruction", found.query_instruction),
        ("passage_instruction", found.passage_instruction),
    ):
        own = getattr(source, key)
        if carried and own not in ("", carried):
            raise DataError(
                f"{owner}: {key} = {shown(own)}; expected {shown(carried)}, which its rows carry, "
                "or none where row_settings is true. Remove one of the two keys."
            )
        values |= {key: carried} if carried else {}
    most = getattr(recipe.tasks[source.task], "negatives", 0)
    if found.num_negatives is not None and source.negatives is None:
        values |= {"negatives": min(found.num_negatives, most)}
    return dataclasses.replace(source, **values)  # type: ignore[arg-type]


def _settings(table: Table, adapter: Adapter, owner: str, *, skip: bool) -> RowSettings:
    """What all rows of a source carry alike, with the fewest negatives that one has.

    Raises:
        DataError: naming the first row that carries something else.
    """
    read = adapter.settings
    if read is None:
        raise DataError(
            f"{owner}: row_settings = true for rows of format {adapter.name}; expected those of "
            "flag-embedding, which carry a prompt and a type. Remove the key."
        )
    first: RowSettings | None = None
    place = 0
    for row, found in parsed_rows(table, lambda index: read(table.row(index)), skip=skip):
        if first is None:
            first, place = found, row
        for name in ("prompt", "type"):
            got, expected = getattr(found, name), getattr(first, name)
            if got != expected:
                raise DataError(
                    f"{table.place(row)}: {name} = {shown(got)}; expected {shown(expected)}, as at "
                    f"{table.place(place)}: a source has one (row_settings). Make a source of the "
                    f"rows of each {name}, or set row_settings=false."
                )
        first = first.with_negatives(found)
    if first is None or not (first.prompt or first.type):
        raise DataError(
            f"{table.name}: prompt and type = nothing in any row; expected rows that carry one "
            "where row_settings is true. Remove the key."
        )
    return first
