"""Checked access to the fields of one raw row; it knows no file, so faults carry no place."""

import json
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NoReturn

HALF_PAIR = re.compile("[\ud800-\udfff]")
NUMBER = re.compile(
    r"[+-]?(\d+(\.\d*)?|\.\d+)(e[+-]?\d+)?|[+-]?(nan|inf|infinity)", re.ASCII | re.I
)
"""A number as files write it; Python's own `float` also takes `1_000` and digits of any script."""
DECIMAL_COMMA = re.compile(r"[+-]?\d*,\d+", re.ASCII)
SHOWN_CHARS = 60
"""Characters of a wrong value that a message repeats."""

Named = tuple[str, Any]
"""A raw value with the name by which messages call it."""


class RowError(Exception):
    """One field of one row is wrong; the reader adds file and line."""

    def __init__(self, field: str, got: str, expected: str):
        super().__init__(f"{field} = {got}; expected {expected}")
        self.field, self.got, self.expected = field, got, expected

    def __reduce__(self) -> tuple[type["RowError"], tuple[str, str, str]]:
        return type(self), (self.field, self.got, self.expected)


class BlankTextError(RowError):
    """A text that is null or has nothing in it."""


class BlankNegativeError(RowError):
    """A negative without text, which may be left out without its row."""

    @classmethod
    def of(cls, fault: RowError) -> "BlankNegativeError":
        """The same fault, of a negative."""
        return cls(fault.field, fault.got, fault.expected)


def shown(value: object) -> str:
    """A value as a message repeats it: JSON where possible, cut, on one line, plain ASCII."""
    try:
        text = json.dumps(value)
    except (TypeError, ValueError, RecursionError):
        text = ascii(type(value).__name__)
    return text if len(text) <= SHOWN_CHARS else text[: SHOWN_CHARS - 3] + "..."


def named_items(field: str, values: Iterable[Any]) -> list[Named]:
    """The items of a list as `field[0]`, `field[1]`, ..."""
    return [(f"{field}[{number}]", value) for number, value in enumerate(values)]


def check_text(field: str, value: object) -> str:
    """The value, if it is a text with something in it.

    Raises:
        BlankTextError: if it is null or blank.
        RowError: if it is not a string or holds half a surrogate pair.
    """
    if value is None:
        raise BlankTextError(field, "null", "a text")
    text = check_string(field, value)
    if not text or text.isspace():
        raise BlankTextError(field, shown(value), "a text that is not empty")
    return text


def check_string(field: str, value: object) -> str:
    """The value, if it is a text, possibly blank.

    Raises:
        RowError: if it is not a string or holds half a surrogate pair, which no tokenizer takes.
    """
    if not isinstance(value, str):
        raise RowError(field, shown(value), "a text")
    if not value.isascii() and HALF_PAIR.search(value):
        raise RowError(field, shown(value), "valid Unicode (half of a surrogate pair found)")
    return value


@dataclass(frozen=True, slots=True)
class Row:
    """The fields of one row, each checked when asked for."""

    values: Mapping[str, Any]
    """As read; `None` counts as missing."""
    dropped: list[RowError] | None = None
    """Takes the fault of each blank negative, which is left out; None: such a row is refused."""

    def has(self, field: str) -> bool:
        """Whether the field is there and not null."""
        return self.values.get(field) is not None

    def first(self, names: Sequence[str]) -> str:
        """The first of some names that the row has, or the first of all."""
        return next(filter(self.has, names), names[0])

    def require(self, field: str, expected: str) -> Any:
        """The raw value of a field that must be there.

        Raises:
            RowError: if it is missing or null.
        """
        if self.has(field):
            return self.values[field]
        self._missing(field, expected)

    def text(self, field: str) -> str:
        """A required text that is not blank.

        Raises:
            RowError: if it is missing or no such text.
        """
        return check_text(field, self.require(field, "a text"))

    def texts(self, field: str) -> tuple[str, ...]:
        """A required list of texts, at least one.

        Raises:
            RowError: if it is missing, no list, empty, or an item is no text.
        """
        values = self.items(field)
        if not values:
            raise RowError(field, "[]", "at least one text")
        return tuple(check_text(f"{field}[{i}]", value) for i, value in enumerate(values))

    def listed(self, field: str) -> list[Named]:
        """The items of a list that may be empty or absent.

        Raises:
            RowError: if it is no list.
        """
        return named_items(field, self.items(field)) if self.has(field) else []

    def one_or_listed(self, field: str) -> list[Named]:
        """A value under a name of its own, or the items of a list; null is none."""
        value = self.values.get(field)
        if value is None:
            return []
        return named_items(field, value) if isinstance(value, list) else [(field, value)]

    def one_negative(self, field: str) -> tuple[str, ...]:
        """A negative under a name of its own, or a list of them; null is none.

        Raises:
            RowError: if it is no text, or an item is none.
        """
        return tuple(self.keep(self.one_or_listed(field)).values())

    def kept(
        self, field: str, values: Iterable[Any], read: Callable[[str, Any], str] | None = None
    ) -> tuple[str, ...]:
        """Negatives without the blank ones, where those may be left out.

        Args:
            field: where the values stand.
            values: the negatives as written.
            read: name and value of an item to its text; `check_text` if not given.

        Raises:
            RowError: if an item is no text, or blank and not to be left out.
        """
        return tuple(self.keep(named_items(field, values), read).values())

    def keep(
        self, negatives: Iterable[Named], read: Callable[[str, Any], str] | None = None
    ) -> dict[int, str]:
        """As `kept`, by their number among those that are written.

        Raises:
            RowError: as `kept`.
        """
        texts = {}
        for number, (name, value) in enumerate(negatives):
            try:
                texts[number] = (read or check_text)(name, value)
            except BlankTextError as fault:
                self.drop(fault)
        return texts

    def drop(self, fault: RowError) -> None:
        """Leave out one negative.

        Raises:
            BlankNegativeError: if none may be left out.
        """
        if self.dropped is None:
            raise BlankNegativeError.of(fault) from None
        self.dropped.append(fault)

    def items(self, field: str) -> list[Any]:
        """A required list of anything.

        Raises:
            RowError: if it is missing or no list.
        """
        value = self.require(field, "a list of texts")
        if not isinstance(value, list):
            raise RowError(field, shown(value), "a list of texts")
        return value

    def number(self, field: str) -> float:
        """A required finite number, possibly written as a text, as files of texts do.

        Raises:
            RowError: if it is missing, no number, or not finite.
        """
        value = self.require(field, "a number")
        if isinstance(value, str):
            value = _parsed_number(field, value)
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise RowError(field, shown(value), "a number")
        if not -1e300 < value < 1e300:
            raise RowError(field, "nan" if value != value else str(value)[:20], "a finite number")
        return float(value)

    def identifier(self, field: str) -> str:
        """A required id: a text, or an integer taken as a text.

        Raises:
            RowError: if it is missing or neither.
        """
        value = self.require(field, "an id")
        if isinstance(value, int) and not isinstance(value, bool):
            return str(value)
        if not isinstance(value, str):
            raise RowError(field, shown(value), "an id: a text or a whole number")
        return check_text(field, value)

    def _missing(self, field: str, expected: str) -> NoReturn:
        got = "null" if field in self.values else "nothing"
        known = ", ".join(sorted(map(str, self.values))[:8]) or "none"
        raise RowError(field, got, f"{expected} (fields of this row: {known})")


def _parsed_number(field: str, text: str) -> float:
    if NUMBER.fullmatch(text.strip()):
        return float(text)
    if DECIMAL_COMMA.fullmatch(text.strip()):
        raise RowError(field, shown(text), "a number with a decimal point, such as 4.5")
    raise RowError(field, shown(text), "a number")


def titled_text(field: str, passage: Any) -> str:
    """Title and text of a passage joined by a space, or the text alone.

    Raises:
        RowError: if it is no object with a text, or the title is no text.
    """
    if not isinstance(passage, dict):
        raise RowError(field, shown(passage), "an object with title and text")
    text = check_text(f"{field}.text", passage.get("text"))
    title = passage.get("title")
    if title is not None:
        check_string(f"{field}.title", title)
    return f"{title} {text}" if title else text
