"""A recipe file as plain values, each with the place it came from; it must not know the schema.

A *path* here is the tuple of keys that leads to a value: `("data", "sources", "0", "name")`.
"""

import copy
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from trainer.errors import RecipeError
from trainer.recipe.secrets import without_secrets

KeyPath = tuple[str, ...]

MAX_BRACKETS = 100
"""Brackets that may be open at the same place."""
MAX_VALUES = 20_000
"""Far more than any recipe has; nested aliases reach any number in a few lines."""

MAX_SHOWN = 200
"""Characters of an override or a path that a message repeats."""
LONG_NUMBER = "a number too long to show"
"""Python writes out no integer of over 4,300 digits, and YAML reads one from hexadecimal."""

UNSPELT = (ValueError, RecursionError, AttributeError, LookupError, TypeError)
"""What PyYAML raises at a value that its rules take for a date or a number and Python does not, at
a tag such as `!!bool x`, and at brackets in brackets without end."""

_PLAIN_TAG = "tag:yaml.org,2002:"
_MERGE_TAG = "tag:yaml.org,2002:merge"
_Pair = tuple[yaml.Node, yaml.Node]


@dataclass(frozen=True, kw_only=True)
class Document:
    """Values of a recipe and where each was written."""

    file: str
    """The recipe file as the user named it."""
    values: dict[str, Any]
    """Mappings, lists and scalars as YAML gave them."""
    places: dict[KeyPath, str]
    """`file:line` or `override key=value` of every value."""
    raw: dict[KeyPath, str] = field(default_factory=dict)
    """Values of overrides as typed, for keys that hold text: a shell eats the quotes of YAML."""

    def place(self, path: KeyPath) -> str:
        """Where the value at `path`, or the nearest value around it, was written."""
        for length in range(len(path), 0, -1):
            if path[:length] in self.places:
                return self.places[path[:length]]
        return self.file


def shorten(value: object) -> str:
    """A value as YAML would write it in one line of a message, cut where it is long."""
    try:
        text = without_secrets(repr(list(value) if isinstance(value, tuple) else value))
    except ValueError:
        text = LONG_NUMBER
    if value is None or isinstance(value, bool):
        text = {None: "null", True: "true", False: "false"}[value]
    return text if len(text) <= 80 else text[:77] + "..."


def shown_override(override: str) -> str:
    """An override as a message names it: without secrets, cut where it is long."""
    return _cut(without_secrets(override))


def dotted(path: KeyPath) -> str:
    """A path as a message names it, cut where it is long."""
    return _cut(".".join(path))


def _cut(text: str) -> str:
    return text if len(text) <= MAX_SHOWN else f"{text[: MAX_SHOWN - 3]}..."


def spelt(value: object) -> str:
    """A key or a value as a word, or what stands for one that Python does not write out."""
    try:
        return str(value)
    except ValueError:
        return LONG_NUMBER


def read_document(file: str | Path) -> Document:
    """Read a YAML file without running anything that it names.

    Raises:
        RecipeError: if the file cannot be read, is not YAML, is not a mapping, holds a key twice
            or a Python object.
    """
    name = str(file)
    text = _read_text(name)
    _refuse_brackets(name, text)
    try:
        places, values = _parse_file(name, text)
    except yaml.YAMLError as error:
        raise RecipeError(_yaml_message(name, error)) from error
    except UNSPELT as error:
        raise RecipeError(
            f"{name}: content = not YAML ({shorten(str(error))}); expected `key: value` lines. Put "
            "quotes around text that looks like a date or a number."
        ) from error
    return Document(file=name, values=values, places=places)


def _refuse_brackets(name: str, text: str) -> None:
    """Brackets in brackets take the parser time that grows with the square of their number."""
    depth = 0
    for found in re.finditer(r"[\[{\]}]", text):
        depth = depth + 1 if found[0] in "[{" else max(0, depth - 1)
        if depth > MAX_BRACKETS:
            line = text.count("\n", 0, found.start()) + 1
            raise RecipeError(
                f"{name}:{line}: content = over {MAX_BRACKETS} open brackets; expected `key: "
                "value` lines. Close them."
            )


def _parse_file(name: str, text: str) -> tuple[dict[KeyPath, str], dict[str, Any]]:
    """Places and values of a YAML text whose root is a mapping."""
    places: dict[KeyPath, str] = {}
    values = plain_values(text, lambda line: f"{name}:{line}", places)
    if not isinstance(values, dict):
        kind = "a list" if isinstance(values, list) else "a single value"
        raise RecipeError(
            f"{name}: content = {'an empty file' if values is None else kind}; expected a mapping "
            "of sections such as `model:` and `data:`. Start from one of the files in recipes/."
        )
    return places, values


def plain_values(
    text: str, place: Callable[[int], str], places: dict[KeyPath, str] | None = None
) -> Any:
    """Values of a YAML text, which may neither ask for objects nor grow without end.

    Args:
        text: one YAML document, or none.
        place: what messages call a line, counted from 1.
        places: filled with the place of every value, where given.
    Raises:
        RecipeError: if a key is given twice or is no word, a tag asks for an object, or aliases
            multiply each other.
        yaml.YAMLError: if the text is not YAML; also what `UNSPELT` lists.
    """
    loader = yaml.SafeLoader(text)
    node = loader.get_single_node()
    if node is None:
        return None
    _Walk(place, {} if places is None else places).visit(node, ())
    return loader.construct_document(node)


def _read_text(name: str) -> str:
    """The file's text, or a message on why there is none."""
    if not Path(name).exists():
        raise RecipeError(
            f"{name}: recipe = (missing); expected a file. Check the path; the recipes that come "
            "with the project lie in recipes/."
        )
    try:
        return Path(name).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8 text"
        raise RecipeError(
            f"{name}: recipe = unreadable ({reason}); expected a YAML text file. Give the path of "
            "a recipe."
        ) from error


def _yaml_message(name: str, error: yaml.YAMLError) -> str:
    """One line for a parser's complaint, with the line number where it has one."""
    mark = getattr(error, "problem_mark", None)
    place = name if mark is None else f"{name}:{mark.line + 1}"
    problem = getattr(error, "problem", None) or str(error).splitlines()[0]
    return (
        f"{place}: content = not YAML ({problem}); expected `key: value` lines, indented with "
        "spaces. Fix the line, or quote a value that holds `: ` or ` #`."
    )


@dataclass
class _Walk:
    """Visits every node once before it is constructed: notes lines, refuses what is unsafe."""

    place: Callable[[int], str]
    places: dict[KeyPath, str]
    num_values: int = 0
    """Values visited and keys merged, an alias as often as it is used."""
    merging: set[int] = field(default_factory=set)
    """Mappings whose `<<` are being written out, by id."""

    def visit(self, node: yaml.Node, path: KeyPath) -> None:
        """Note the line of `node` and of all below it."""
        line = node.start_mark.line + 1
        self._refuse_foreign_tag(node, line)
        self._count(line)
        if len(path) > 20:
            raise RecipeError(
                f"{self.place(line)}: {dotted(path[:4])}... = nested over 20 deep; expected a "
                "recipe. Remove the alias that contains itself."
            )
        if path:
            self.places[path] = self.place(line)
        if isinstance(node, yaml.MappingNode):
            self._write_out(node, path)
            for key, value in node.value:
                self.visit(value, (*path, key.value))
                self.places[(*path, key.value)] = self.place(key.start_mark.line + 1)
        elif isinstance(node, yaml.SequenceNode):
            for index, item in enumerate(node.value):
                self.visit(item, (*path, str(index)))

    def _write_out(self, node: yaml.MappingNode, path: KeyPath) -> None:
        """Replace the `<<` of a mapping by what they name, so that each key is there once.

        PyYAML would do it too, but its releases differ in which of several mappings wins. Here the
        specification of `<<` holds: the mapping's own keys win, then the mapping named first.
        """
        if id(node) in self.merging:
            raise RecipeError(
                f"{self.place(node.start_mark.line + 1)}: << = the mapping that it stands in; "
                "expected another mapping. Remove the alias that contains itself."
            )
        self.merging.add(id(node))
        merged: dict[str, _Pair] = {}
        own: dict[str, _Pair] = {}
        for key, value in node.value:
            self._check_key(key, own, path)
            if key.tag == _MERGE_TAG:
                merged |= self._merged(value, path)
            else:
                own[key.value] = (key, value)
        node.value = list((merged | own).values())
        self.merging.remove(id(node))

    def _merged(self, value: yaml.Node, path: KeyPath) -> dict[str, _Pair]:
        """Pairs that the value of one `<<` stands for."""
        pairs: dict[str, _Pair] = {}
        for part in self._merged_mappings(value):
            self._count(part.start_mark.line + 1)
            self._write_out(part, path)
            for key, inner in part.value:
                self._count(key.start_mark.line + 1)
                pairs.setdefault(key.value, (key, inner))
        return pairs

    def _merged_mappings(self, value: yaml.Node) -> Iterator[yaml.MappingNode]:
        for part in value.value if isinstance(value, yaml.SequenceNode) else [value]:
            line = part.start_mark.line + 1
            self._refuse_foreign_tag(part, line)
            if not isinstance(part, yaml.MappingNode):
                raise RecipeError(
                    f"{self.place(line)}: << = a value that is no mapping; expected an alias of a "
                    "mapping, or a list of them. Write `<<: *name`."
                )
            yield part

    def _check_key(self, key: yaml.Node, known: dict[str, _Pair], path: KeyPath) -> None:
        line = key.start_mark.line + 1
        self._refuse_foreign_tag(key, line)
        if not isinstance(key, yaml.ScalarNode):
            raise RecipeError(
                f"{self.place(line)}: key = a list or a mapping; expected a word. "
                "Write `key: value`."
            )
        if key.value in known and key.tag != _MERGE_TAG:
            first = known[key.value][0].start_mark.line + 1
            raise RecipeError(
                f"{self.place(line)}: {dotted((*path, key.value))} = given twice, first in "
                f"line {first}; expected each key once. Remove one of them."
            )

    def _count(self, line: int) -> None:
        self.num_values += 1
        if self.num_values > MAX_VALUES:
            raise RecipeError(
                f"{self.place(line)}: content = over {MAX_VALUES} values; expected a recipe. "
                "Remove the aliases that multiply each other."
            )

    def _refuse_foreign_tag(self, node: yaml.Node, line: int) -> None:
        if not node.tag.startswith(_PLAIN_TAG) or "python/" in node.tag:
            tag = node.tag.replace(_PLAIN_TAG, "!!")
            raise RecipeError(
                f"{self.place(line)}: tag = {tag}; expected plain YAML: a recipe cannot create "
                "objects or run code. Remove the tag, or quote the text."
            )


def apply_overrides(document: Document, overrides: Sequence[str]) -> Document:
    """Apply `key.path=value` overrides in order; the document given is left as it is.

    A list item is named by its index or by its `name`: `data.sources.stsb.path=x`.

    Raises:
        RecipeError: if an override has no `=`, or names an item that a list does not have.
    """
    values = copy.deepcopy(document.values)
    changed = Document(file=document.file, values=values, places=dict(document.places))
    for override in overrides:
        _apply(changed, override)
    return changed


def _apply(document: Document, override: str) -> None:
    """Write one override into the document's values and places."""
    keys, text = _split(override)
    place = f"override {shown_override(override)}"
    container: Any = document.values
    path: KeyPath = ()
    for key in keys[:-1]:
        slot = _slot(container, key, path, override)
        path = (*path, str(slot))
        missing = isinstance(container, dict) and container.get(slot) is None
        if missing:
            container[slot] = {}
            document.places[path] = place
        container = container[slot]
    slot = _slot(container, keys[-1], path, override)
    container[slot] = _value(text, place)
    path = (*path, str(slot))
    for known in [known for known in document.places if known[: len(path)] == path]:
        del document.places[known]
    document.places[path] = place
    document.raw[path] = text


def _split(override: str) -> tuple[list[str], str]:
    """The keys and the text of `key.path=value`."""
    name, equals, text = override.partition("=")
    keys = name.split(".")
    if not equals or not all(keys) or any(character.isspace() for character in name):
        raise RecipeError(
            f"override {shown_override(override)}: form = {shorten(override)}; expected "
            "key.path=value without spaces around the dots and the equals sign. Write for example "
            "train.max_steps=100."
        )
    return keys, text


def _value(text: str, place: str) -> Any:
    """The value that a text spells in YAML, or the text itself where it spells none.

    Raises:
        RecipeError: if it holds what a recipe may not hold, such as a tag that asks for an object.
    """
    try:
        return plain_values(text, lambda line: place)
    except yaml.constructor.ConstructorError as error:
        raise RecipeError(
            f"{place}: value = {shorten(text)}; expected plain YAML ({shorten(error.problem)}). "
            "Remove the tag, or quote the text."
        ) from error
    except (yaml.YAMLError, *UNSPELT):
        return text


def _slot(container: Any, key: str, path: KeyPath, override: str) -> str | int:
    """The key or index under which `key` is found in a mapping or a list."""
    if isinstance(container, dict):
        return key
    where = dotted(path)
    if not isinstance(container, list):
        raise RecipeError(
            f"override {shown_override(override)}: {where} = {shorten(container)}; expected a "
            f"section that can hold `{_cut(key)}`. Override {where} itself, or another key."
        )
    if key.isdecimal() and int(key) < len(container):
        return int(key)
    names = [item.get("name") if isinstance(item, dict) else None for item in container]
    if key in names:
        return names.index(key)
    known = ", ".join(str(name) for name in names if name is not None)
    choices = f" or one of the names {known}" if known else ""
    raise RecipeError(
        f"override {shown_override(override)}: {dotted((*path, key))} = (missing); expected an "
        f"index from 0 to {len(container) - 1}{choices}. Name an item that the recipe has."
    )
