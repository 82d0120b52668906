"""A recipe file as plain values, each with the place it came from; it must not know the schema.

A *path* here is the tuple of keys that leads to a value: `("data", "sources", "0", "name")`.
"""

import copy
import re
from collections.abc import Sequence
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
    loader = yaml.SafeLoader(text)
    node = loader.get_single_node()
    if not isinstance(node, yaml.MappingNode):
        kind = "a list" if isinstance(node, yaml.SequenceNode) else "a single value"
        raise RecipeError(
            f"{name}: content = {'an empty file' if node is None else kind}; expected a mapping of "
            "sections such as `model:` and `data:`. Start from one of the files in recipes/."
        )
    places: dict[KeyPath, str] = {}
    _Walk(name, loader, places).visit(node, ())
    return places, loader.construct_document(node)


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
        "spaces. Mend the line, or quote a value that holds `: ` or ` #`."
    )


@dataclass
class _Walk:
    """Visits every node once before it is constructed: notes lines, refuses what is unsafe."""

    file: str
    loader: yaml.SafeLoader
    places: dict[KeyPath, str]

    def visit(self, node: yaml.Node, path: KeyPath) -> None:
        """Note the line of `node` and of all below it."""
        line = node.start_mark.line + 1
        self._refuse_foreign_tag(node, line)
        if len(self.places) > MAX_VALUES:
            raise self._too_large(line)
        if len(path) > 20:
            raise RecipeError(
                f"{self.file}:{line}: {dotted(path[:4])}... = nested over 20 deep; expected a "
                "recipe. Remove the alias that contains itself."
            )
        if path:
            self.places[path] = f"{self.file}:{line}"
        if isinstance(node, yaml.MappingNode):
            self._visit_mapping(node, path)
        elif isinstance(node, yaml.SequenceNode):
            for index, item in enumerate(node.value):
                self.visit(item, (*path, str(index)))

    def _visit_mapping(self, node: yaml.MappingNode, path: KeyPath) -> None:
        seen: dict[str, int] = {}
        for key, _ in node.value:
            line = key.start_mark.line + 1
            self._refuse_foreign_tag(key, line)
            if not isinstance(key, yaml.ScalarNode):
                raise RecipeError(
                    f"{self.file}:{line}: key = a list or a mapping; expected a word. "
                    "Write `key: value`."
                )
            if key.value in seen and key.tag != _MERGE_TAG:
                raise RecipeError(
                    f"{self.file}:{line}: {dotted((*path, key.value))} = given twice, first in "
                    f"line {seen[key.value]}; expected each key once. Remove one of them."
                )
            seen[key.value] = line
        if _merged_size(node, {}) > MAX_VALUES:
            raise self._too_large(node.start_mark.line + 1)
        self.loader.flatten_mapping(node)
        for key, value in node.value:
            self.visit(value, (*path, key.value))
            self.places[(*path, key.value)] = f"{self.file}:{key.start_mark.line + 1}"

    def _too_large(self, line: int) -> RecipeError:
        return RecipeError(
            f"{self.file}:{line}: content = over {MAX_VALUES} values; expected a recipe. Remove "
            "the aliases that multiply each other."
        )

    def _refuse_foreign_tag(self, node: yaml.Node, line: int) -> None:
        if not node.tag.startswith(_PLAIN_TAG) or "python/" in node.tag:
            tag = node.tag.replace(_PLAIN_TAG, "!!")
            raise RecipeError(
                f"{self.file}:{line}: tag = {tag}; expected plain YAML: a recipe cannot create "
                "objects or run code. Remove the tag."
            )


def _merged_size(node: yaml.Node, sizes: dict[int, int]) -> int:
    """Keys of a mapping once its `<<` are written out; too many where it contains itself."""
    if id(node) not in sizes:
        sizes[id(node)] = MAX_VALUES + 1
        if isinstance(node, yaml.MappingNode):
            pairs = node.value
            merged = [value for key, value in pairs if key.tag == _MERGE_TAG]
            inner = sum(_merged_size(value, sizes) for value in merged)
            sizes[id(node)] = len(pairs) - len(merged) + inner
        elif isinstance(node, yaml.SequenceNode):
            sizes[id(node)] = sum(_merged_size(item, sizes) for item in node.value)
    return sizes[id(node)]


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
    container[slot] = _value(text)
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


def _value(text: str) -> Any:
    """The value that a text spells in YAML, or the text itself where it spells none.

    Raises:
        RecipeError: if it has a tag, which could ask for an object.
    """
    try:
        return yaml.safe_load(text)
    except yaml.constructor.ConstructorError as error:
        raise RecipeError(
            f"override: value = {shorten(text)}; expected plain YAML: an override cannot create "
            f"objects or run code ({shorten(error.problem)}). Remove the tag, or quote the text."
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
