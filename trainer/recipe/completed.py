"""Recipes of older releases with the keys that they lacked; it must not judge values."""

import dataclasses
import typing
from collections.abc import Mapping
from typing import Annotated, Any, get_args, get_origin

from trainer.recipe.fields import NumbersByName, SectionsByName


def completed(schema: type, values: Mapping[str, Any]) -> dict[str, Any]:
    """Plain values with the default of every key that is not among them.

    What a release did before it knew a key is what the default does.

    Args:
        schema: dataclass of the values.
        values: as `dataclasses.asdict` or a recipe's file has them; unknown keys are kept.
    """
    hints = typing.get_type_hints(schema, include_extras=True)
    found = dict(values)
    for field in dataclasses.fields(schema):
        if field.name in values:
            found[field.name] = _completed(hints[field.name], values[field.name])
        elif field.default is not dataclasses.MISSING:
            found[field.name] = _plain(field.default)
        elif field.default_factory is not dataclasses.MISSING:
            found[field.name] = _plain(field.default_factory())
    return found


def _completed(hint: Any, value: Any) -> Any:
    """A value of a key with this annotation."""
    if get_origin(hint) is Annotated and isinstance(value, Mapping):
        return _by_table(get_args(hint)[1], value)
    sections = [one for one in (hint, *get_args(hint)) if dataclasses.is_dataclass(one)]
    if not sections:
        return value
    section = typing.cast(type, sections[0])
    if isinstance(value, Mapping):
        return completed(section, value)
    if isinstance(value, list | tuple):
        return [completed(section, item) for item in value]
    return value


def _by_table(table: Any, value: Mapping[str, Any]) -> Any:
    """Numbers or sections whose names a table gives."""
    if isinstance(table, NumbersByName):
        return {name: number.default for name, number in table.numbers().items()} | dict(value)
    if isinstance(table, SectionsByName):
        schemas = table.schemas()
        return {
            name: completed(schemas[name], section) if name in schemas and section else section
            for name, section in value.items()
        }
    return value


def _plain(default: Any) -> Any:
    return dataclasses.asdict(default) if dataclasses.is_dataclass(default) else default  # type: ignore[arg-type]
