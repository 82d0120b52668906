"""Print every key of a recipe with type, default and meaning, as Markdown, from the schema itself.

`--write` replaces the reference inside docs/recipe.md, or inside another Markdown file, between the
two marker lines. It must not know any key: names, bounds and sentences are those of
`trainer/recipe/schema.py`.
"""

import argparse
import ast
import dataclasses
import inspect
import sys
import types
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints

from trainer.cli import ending_with_code
from trainer.errors import RecipeError
from trainer.recipe import schema
from trainer.recipe.fields import NumbersByName, SectionsByName
from trainer.recipe.schema import Recipe

PAGE = Path(__file__).resolve().parents[1] / "docs" / "recipe.md"
"""The page that holds the reference."""
BEGIN = "<!-- recipe reference: begin -->"
END = "<!-- recipe reference: end -->"
WORDS = {str: "text", int: "integer", float: "number", bool: "true or false"}
"""Types as a reader of YAML calls them."""


@dataclass(frozen=True, kw_only=True)
class Key:
    """One line of the reference."""

    path: str
    """Dotted; `[]` stands for the items of a list."""
    kind: str
    """Type and bounds in words."""
    default: str
    """As YAML writes it, or `required`."""
    meaning: str
    """The sentence under the field."""


def keys_of(section: type, prefix: str = "") -> Iterator[Key]:
    """Every key of a section and of the sections inside it, in the schema's order."""
    hints, meanings = get_type_hints(section, include_extras=True), meanings_of(section)
    for field in dataclasses.fields(section):
        hint, path = hints[field.name], prefix + field.name
        table = table_of(hint)
        if isinstance(table, SectionsByName):
            yield from task_keys(table, path)
            continue
        if isinstance(table, NumbersByName):
            yield from number_keys(table, path)
            continue
        inner = section_in(hint)
        if inner is None or get_origin(hint) in (Union, types.UnionType, tuple):
            yield Key(
                path=path,
                kind=kind_of(hint, field.metadata),
                default=default_of(field),
                meaning=meanings[field.name],
            )
        if inner is not None:
            is_list = get_origin(hint) is tuple
            yield from keys_of(inner, f"{path}[]." if is_list else f"{path}.")


def task_keys(table: SectionsByName, path: str) -> Iterator[Key]:
    """The sections that a table names, each with its keys."""
    for name, section in table.schemas().items():
        meaning = f"{str(section.__doc__).splitlines()[0]} Required where a source has this task."
        yield Key(path=f"{path}.{name}", kind="section or null", default="`null`", meaning=meaning)
        yield from keys_of(section, f"{path}.{name}.")


def number_keys(table: NumbersByName, path: str) -> Iterator[Key]:
    """The numbers that a table names."""
    for name, number in table.numbers().items():
        yield Key(
            path=f"{path}.{name}",
            kind=kind_of(float, table.bounds),
            default=f"`{_yaml(number.default)}`",
            meaning=number.meaning,
        )


def table_of(hint: Any) -> Any:
    """The table that an annotation takes names from, if any."""
    return get_args(hint)[1] if get_origin(hint) is Annotated else None


def meanings_of(section: type) -> dict[str, str]:
    """The sentence under each field of a dataclass, by field."""
    tree = ast.parse(inspect.getsource(inspect.getmodule(section) or schema))
    body = next(
        node.body
        for node in tree.body
        if isinstance(node, ast.ClassDef) and node.name == section.__name__
    )
    found = {}
    for field, sentence in pairwise(body):
        if isinstance(field, ast.AnnAssign) and isinstance(sentence, ast.Expr):
            text = ast.literal_eval(sentence.value)
            found[ast.unparse(field.target)] = " ".join(str(text).split())
    return found


def section_in(hint: Any) -> type | None:
    """The dataclass that an annotation holds, if any."""
    members = [member for member in (hint, *get_args(hint)) if dataclasses.is_dataclass(member)]
    return members[0] if members and isinstance(members[0], type) else None


def kind_of(hint: Any, bounds: Mapping[str, Any]) -> str:
    """An annotation with its bounds, in words."""
    limits = [
        f"{word} {_number(bounds[name])}"
        for name, word in (("low", "at least"), ("above", "above"), ("high", "at most"))
        if bounds.get(name) is not None
    ]
    words = _words(hint)
    if not limits:
        return words
    # bounds belong to the number, which stands first
    base, joint, others = words.partition(" or ")
    return f"{base} {' and '.join(limits)}{joint}{others}"


def _words(hint: Any) -> str:
    """An annotation in words."""
    origin, arguments = get_origin(hint), get_args(hint)
    if origin is Annotated:
        return ", ".join(f"`{name}`" for name in arguments[1].names())
    if origin in (Union, types.UnionType):
        members = [_words(member) for member in arguments if member is not type(None)]
        words = " or ".join([*members, *["null"] * (type(None) in arguments)])
        return words.replace("true or false or", "true, false or")
    if origin is Literal:
        return ", ".join(f"`{choice}`" for choice in arguments)
    if origin is tuple and get_origin(arguments[0]) is Literal:
        return f"list of {_words(arguments[0])}"
    if origin is tuple:
        item = "section" if section_in(hint) else _words(arguments[0])
        return (
            f"list of {item}s" if arguments[-1] is Ellipsis else f"list of {len(arguments)} {item}s"
        )
    if origin is dict:
        return f"{_words(arguments[1])} by {'name' if arguments[1] is str else 'task'}"
    return "section" if section_in(hint) else WORDS[hint]


def default_of(field: dataclasses.Field[Any]) -> str:
    """A field's default as a recipe would write it."""
    value = field.default
    if field.default_factory is not dataclasses.MISSING:
        value = field.default_factory()
    if value is dataclasses.MISSING:
        return "required"
    return f"`{_yaml(value)}`"


def _yaml(value: Any) -> str:
    """A value on one line of YAML."""
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    if isinstance(value, tuple):
        return f"[{', '.join(map(_yaml, value))}]"
    if isinstance(value, dict):
        return "{" + ", ".join(f"{key}: {_yaml(item)}" for key, item in value.items()) + "}"
    if isinstance(value, str):
        return value if value and value.isascii() and "{" not in value else f'"{value}"'
    return _number(value)


def _number(value: float) -> str:
    """A number without needless digits; an integer in full."""
    return f"{value:g}" if isinstance(value, float) else str(value)


def reference() -> str:
    """The Markdown table, with a final newline."""
    lines = ["| key | type | default | meaning |", "|---|---|---|---|"]
    for key in keys_of(Recipe):
        cells = (f"`{key.path}`", key.kind, key.default, key.meaning.replace("|", "\\|"))
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def replaced(text: str, name: str) -> str:
    """A Markdown text with the reference between its markers made anew.

    Raises:
        RecipeError: if the text does not hold each marker once.
    """
    if text.count(BEGIN) != 1 or text.count(END) != 1:
        raise RecipeError(
            f"{name}: markers = {text.count(BEGIN)} and {text.count(END)}; expected the lines "
            f"{BEGIN} and {END} once each. Add them where the reference belongs."
        )
    before, rest = text.split(BEGIN)
    return f"{before}{BEGIN}\n{reference()}{END}{rest.split(END)[1]}"


def main() -> int:
    """Print the reference, or write it into a file."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--write",
        nargs="?",
        type=Path,
        const=PAGE,
        metavar="FILE",
        help="update the table in this Markdown file; without FILE: docs/recipe.md",
    )
    path: Path | None = parser.parse_args().write
    if path is None:
        print(reference(), end="")
        return 0
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise RecipeError(
            f"--write: {path} = {error.strerror}; expected a Markdown file. Check the path."
        ) from error
    path.write_text(replaced(text, str(path)), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(ending_with_code(main))
