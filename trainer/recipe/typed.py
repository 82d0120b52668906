"""Plain values -> the schema's frozen dataclasses, by their annotations; it must not read files."""

import dataclasses
import difflib
import math
import types
import typing
from collections.abc import Iterable, Mapping
from typing import Annotated, Any, Literal, TypeVar, Union, get_args, get_origin

from trainer.errors import RecipeError
from trainer.recipe.document import LONG_NUMBER, Document, KeyPath, dotted, shorten, spelt
from trainer.recipe.fields import NumberOf, NumbersByName, OneOf, SectionsByName
from trainer.recipe.renamed import KEYS, WORDS
from trainer.recipe.secrets import has_secret

DataclassT = TypeVar("DataclassT")

MAX_NAME = 255
"""Bytes of a file name, on every common file system."""
MAX_TEXT = 1000
"""Characters of a path in a recipe; a whole one has at most 4096 bytes."""
_PROSE = ("query_instruction", "passage_instruction", "prompt_template")
"""Keys whose text is put before the user's own; all others name something on one line."""
_PROSE_BY_NAME = ("label_texts",)
"""Keys with a mapping whose texts are embedded."""


def build(schema: type[DataclassT], document: Document) -> DataclassT:
    """Make a dataclass of `schema` from the document's values.

    Raises:
        RecipeError: on an unknown or missing key, a wrong type, a number out of bounds, or a word
            that is not among the choices.
    """
    return typing.cast(DataclassT, _Builder(document, schema).section(schema, document.values, ()))


@dataclasses.dataclass(frozen=True)
class _Builder:
    """Converts values of one document; holds it for the messages."""

    document: Document
    root: type

    def section(self, schema: type, value: Any, path: KeyPath) -> Any:
        """A mapping as a dataclass; an empty section is all defaults."""
        value = {} if value is None else value
        if not isinstance(value, dict):
            known = ", ".join(field.name for field in dataclasses.fields(schema))
            raise self._error(path, value, f"a section with keys among {known}", "Indent them.")
        hints = typing.get_type_hints(schema, include_extras=True)
        fields = {field.name: field for field in dataclasses.fields(schema)}
        for key in value:
            if key not in fields:
                raise self._unknown(key, value[key], path, fields)
        arguments = {}
        for name, field in fields.items():
            if name in value:
                converted = self.convert(value[name], hints[name], (*path, name))
                self._check_bounds(converted, field.metadata, (*path, name))
                arguments[name] = converted
            elif _is_required(field):
                self._refuse_missing(name, hints[name], path)
                arguments[name] = self.section(hints[name], {}, (*path, name))
        return schema(**arguments)

    def convert(self, value: Any, hint: Any, path: KeyPath) -> Any:
        """A value as the type that the annotation `hint` asks for."""
        origin = get_origin(hint)
        if origin in (Union, types.UnionType):
            return self._union(value, hint, path)
        if origin is Annotated:
            return self._by_table(value, get_args(hint)[1], path)
        if origin is Literal:
            return self._choice(value, get_args(hint), path)
        if origin is tuple:
            return self._tuple(value, get_args(hint), path)
        if origin is dict:
            return self._mapping(value, get_args(hint), path)
        if dataclasses.is_dataclass(hint):
            return self.section(typing.cast(type, hint), value, path)
        return self._scalar(value, hint, path)

    def _union(self, value: Any, hint: Any, path: KeyPath) -> Any:
        """Null where it is allowed; else the one member whose form the value has."""
        members = [member for member in get_args(hint) if member is not type(None)]
        if value is None and len(members) < len(get_args(hint)):
            return None
        words = [
            word for member in members if get_origin(member) is Literal for word in get_args(member)
        ]
        if len(members) == 1 or isinstance(value, list):
            return self.convert(value, members[0], path)
        mappings = [member for member in members if get_origin(member) is dict]
        if mappings:
            others = [member for member in members if member not in mappings]
            return self.convert(value, (mappings if isinstance(value, dict) else others)[0], path)
        sections = [member for member in members if dataclasses.is_dataclass(member)]
        if sections and isinstance(value, dict):
            return self.convert(value, sections[0], path)
        if value in words or (bool in members and isinstance(value, bool)):
            return value
        if int in members and str in members:
            is_whole = isinstance(value, int) and not isinstance(value, bool)
            return value if is_whole else self._scalar(value, str, path)
        if int in members:
            return self._whole(value, words, path)
        if bool in members:
            words = ["true", "false", *words]
        if sections:
            example = ", ".join(f"{field.name}: ..." for field in dataclasses.fields(sections[0]))
            expected = f"{' or '.join(words)}, or {{{example}}}"
            raise self._error(path, value, expected, "Use one of them.")
        if bool in members:
            raise self._error(path, value, f"one of {', '.join(words)}", "Use one of them.")
        raise self._error(path, value, f"a list, or {' or '.join(words)}", "Write [a, b].")

    def _whole(self, value: Any, words: list[str], path: KeyPath) -> int:
        """An integer where words may stand as well."""
        if isinstance(value, int) and not isinstance(value, bool):
            return value
        expected = f"an integer, or {' or '.join(words)}"
        raise self._error(path, value, expected, "Write it without quotes, point or unit.")

    def _by_table(self, value: Any, table: Any, path: KeyPath) -> Any:
        """A value whose names a table gives."""
        if isinstance(table, OneOf):
            return self._choice(value, table.names(), path)
        if isinstance(table, SectionsByName):
            return self._sections(value, table.schemas(), path)
        return self._numbers(value, table, path)

    def _sections(self, value: Any, schemas: Mapping[str, type], path: KeyPath) -> Any:
        """Sections by name, in the table's order; one that is null is left out."""
        given = self._named(value, schemas, path)
        return {
            name: self.section(schema, given[name], (*path, name))
            for name, schema in schemas.items()
            if given.get(name) is not None
        }

    def _numbers(self, value: Any, table: NumbersByName, path: KeyPath) -> dict[str, float]:
        """Numbers by name, those that are left out with their default."""
        numbers: Mapping[str, NumberOf] = table.numbers()
        given = self._named(value, numbers, path)
        found = {}
        for name, number in numbers.items():
            converted = self._number(given.get(name, number.default), (*path, name))
            self._check_bounds(converted, table.bounds, (*path, name))
            found[name] = converted
        return found

    def _named(self, value: Any, known: Iterable[str], path: KeyPath) -> Mapping[str, Any]:
        """A mapping all of whose keys are known; null is an empty one."""
        value = {} if value is None else value
        if not isinstance(value, dict):
            expected = f"a section with keys among {', '.join(known)}"
            raise self._error(path, value, expected, "Indent them.")
        for key in value:
            if key not in known:
                raise self._unknown(key, value[key], path, known)
        return value

    def _choice(self, value: Any, choices: tuple[Any, ...], path: KeyPath) -> Any:
        if value is False and "off" in choices:
            return "off"  # as YAML reads the word without quotes
        if value in choices and not isinstance(value, bool):
            return value
        renamed = WORDS.get(".".join(path), {}).get(spelt(value))
        nearest = _nearest(spelt(value), choices)
        advice = f"Did you mean {nearest}?" if nearest else "Use one of them."
        if renamed is not None:
            advice = f"It is called {renamed} now."
        raise self._error(path, value, f"one of {', '.join(map(str, choices))}", advice)

    def _tuple(self, value: Any, hints: tuple[Any, ...], path: KeyPath) -> tuple[Any, ...]:
        if not isinstance(value, list):
            raise self._error(path, value, "a list", "Write [a, b], or one `- item` per line.")
        if hints[-1] is Ellipsis:
            hints = (hints[0],) * len(value)
        if len(value) != len(hints):
            raise self._error(path, value, f"a list of {len(hints)} values", "Give all of them.")
        items = enumerate(zip(value, hints, strict=True))
        return tuple(self.convert(item, hint, (*path, str(index))) for index, (item, hint) in items)

    def _mapping(self, value: Any, hints: tuple[Any, ...], path: KeyPath) -> dict[str, Any]:
        if not isinstance(value, dict):
            raise self._error(path, value, "`key: value` pairs", "Indent them under the key.")
        for key in value:
            if not isinstance(key, str):
                raise self._error((*path, spelt(key)), key, "a word as the key", "Quote it.")
        return {
            key: self.convert(item, hints[1], (*path, spelt(key))) for key, item in value.items()
        }

    def _scalar(self, value: Any, hint: Any, path: KeyPath) -> Any:
        if hint is float:
            return self._number(value, path)
        if hint is str and value is not None and not isinstance(value, str):
            value = self.document.raw.get(path, value)
        if isinstance(value, str) and hint is str:
            return self._text(value, path)
        if hint is int and spelt(value) == LONG_NUMBER:
            # it could not be saved with the resolved recipe
            raise self._error(path, value, "an integer of at most 4300 digits", "Shorten it.")
        if isinstance(value, hint) and (hint is bool or not isinstance(value, bool)):
            return value
        expected, advice = {
            int: ("an integer", "Write it without quotes, point or unit."),
            bool: ("true or false", "Write one of the two without quotes."),
            str: ("text", "Put it in quotes."),
        }[hint]
        raise self._error(path, value, expected, advice)

    def _text(self, value: str, path: KeyPath) -> str:
        """A text that files, messages and reports may repeat."""
        if has_secret(value):
            expected = "no password or token, as recipes are saved with checkpoints and reports"
            advice = "Remove it and revoke it; put tokens into the environment, such as HF_TOKEN."
            raise self._error(path, value, expected, advice)
        if path[-1] in _PROSE or (path[-2:-1] and path[-2] in _PROSE_BY_NAME):
            if any("\ud800" <= character <= "\udfff" for character in value):
                raise self._error(path, value, "whole characters", "Remove half a surrogate pair.")
            return value
        if not value.isprintable():
            expected = "text of one line, without control characters"
            raise self._error(path, value, expected, "Remove them.")
        longest = max(len(part.encode()) for part in value.split("/"))
        if longest > MAX_NAME or len(value) > MAX_TEXT:
            expected = f"at most {MAX_TEXT} characters, {MAX_NAME} bytes between slashes"
            raise self._error(path, value, expected, "Shorten it.")
        return value

    def _number(self, value: Any, path: KeyPath) -> float:
        """A finite float; YAML 1.1 reads `1e-5` as text, so text that spells a number counts."""
        if isinstance(value, int | float | str) and not isinstance(value, bool):
            try:
                number = float(value)
            except (ValueError, OverflowError):
                number = math.nan
            if math.isfinite(number):
                return number
        raise self._error(path, value, "a finite number", "Write for example 0.00001 or 1e-5.")

    def _check_bounds(self, value: Any, bounds: Mapping[str, float | None], path: KeyPath) -> None:
        if isinstance(value, bool) or not isinstance(value, int | float):
            return
        low, high, above = bounds.get("low"), bounds.get("high"), bounds.get("above")
        inside = (
            (low is None or value >= low)
            and (high is None or value <= high)
            and (above is None or value > above)
        )
        if not inside:
            rules = [
                f"{word} {limit if isinstance(limit, int) else f'{limit:g}'}"
                for word, limit in (("of at least", low), ("above", above), ("at most", high))
                if limit is not None
            ]
            kind = "an integer" if isinstance(value, int) else "a number"
            raise self._error(path, value, f"{kind} {' and '.join(rules)}", "Set it within.")

    def _refuse_missing(self, name: str, hint: Any, path: KeyPath) -> None:
        """Say that a required key is absent, unless it is a section that can be all defaults."""
        if dataclasses.is_dataclass(hint) and not any(map(_is_required, dataclasses.fields(hint))):
            return
        if dataclasses.is_dataclass(hint):
            needed = [field.name for field in dataclasses.fields(hint) if _is_required(field)]
            expected = f"a section{' with ' + ', '.join(needed) if needed else ''}"
        else:
            expected = {str: "text", int: "an integer", float: "a number"}.get(hint, "a value")
        where = ".".join((*path, name))
        place = self.document.place(path) if path else self.document.file
        raise RecipeError(f"{place}: {where} = (missing); expected {expected}. Add {where}.")

    def _unknown(self, key: Any, value: Any, path: KeyPath, known: Iterable[str]) -> RecipeError:
        where = dotted((*path, spelt(key)))
        section = ".".join(path) or "the recipe"
        expected = f"a known key; {section} has {', '.join(known)}"
        nearest = _nearest(spelt(key), known)
        far = [name for name in _all_keys(self.root) if name.rsplit(".", 1)[-1] == key]
        if where in KEYS:
            advice = f"It is called {KEYS[where]} now."
        elif "." in spelt(key):
            advice = "Nest it under its section: dots are for overrides on the command line."
        elif nearest or far:
            advice = f"Did you mean {nearest or far[0]}?"
        else:
            advice = f"Remove {where}."
        return self._error((*path, spelt(key)), value, expected, advice)

    def _error(self, path: KeyPath, got: Any, expected: str, advice: str) -> RecipeError:
        return RecipeError(
            f"{self.document.place(path)}: {dotted(path)} = {shorten(got)}; "
            f"expected {expected}. {advice}"
        )


def _is_required(field: dataclasses.Field[Any]) -> bool:
    return field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING


def _nearest(word: str, known: Iterable[Any]) -> str | None:
    """The known word that `word` most likely meant, or None."""
    matches = difflib.get_close_matches(word, [str(name) for name in known], n=1, cutoff=0.6)
    return matches[0] if matches else None


def _all_keys(schema: type, prefix: str = "") -> list[str]:
    """Dotted keys of a schema's sections; items of lists are left out."""
    keys = []
    for name, hint in typing.get_type_hints(schema, include_extras=True).items():
        keys.append(prefix + name)
        for inner, section in _sections_in(hint).items():
            keys += _all_keys(section, f"{prefix}{name}{inner}.")
        keys += [f"{prefix}{name}.{number}" for number in _numbers_in(hint)]
    return keys


def _sections_in(hint: Any) -> dict[str, type]:
    """Sections that an annotation holds, by what stands between its key and theirs."""
    if get_origin(hint) is Annotated:
        table = get_args(hint)[1]
        schemas = table.schemas() if isinstance(table, SectionsByName) else {}
        return {f".{name}": schema for name, schema in schemas.items()}
    members = [member for member in (hint, *get_args(hint)) if dataclasses.is_dataclass(member)]
    has_one = members and get_origin(hint) is not tuple
    return {"": typing.cast(type, members[0])} if has_one else {}


def _numbers_in(hint: Any) -> Iterable[str]:
    """Names of the numbers that an annotation holds."""
    table = get_args(hint)[1] if get_origin(hint) is Annotated else None
    return table.numbers() if isinstance(table, NumbersByName) else ()
