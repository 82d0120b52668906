"""Checked access to the fields of one raw row; it knows no file, so faults carry no place."""

import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NoReturn

HALF_PAIR = re.compile("[\ud800-\udfff]")
SHOWN_CHARS = 60
"""Characters of a wrong value that a message repeats."""


class RowError(Exception):
    """One field of one row is wrong; the reader adds file and line."""

    def __init__(self, field: str, got: str, expected: str):
        super().__init__(f"{field} = {got}; expected {expected}")


def shown(value: object) -> str:
    """A value as a message repeats it: JSON where possible, cut, on one line, plain ASCII."""
    try:
        text = json.dumps(value)
    except (TypeError, ValueError, RecursionError):
        text = ascii(type(value).__name__)
    return text if len(text) <= SHOWN_CHARS else text[: SHOWN_CHARS - 3] + "..."


def check_text(field: str, value: object) -> str:
    """The value, if it is a text with something in it.

    Raises:
        RowError: if it is not a string, blank, or holds half a surrogate pair.
    """
    text = check_string(field, value)
    if not text or text.isspace():
        raise RowError(field, shown(value), "a text that is not empty")
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
    typed: bool = True
    """False where the file has texts only (CSV), so that numbers are read from texts."""

    def has(self, field: str) -> bool:
        """Whether the field is there and not null."""
        return self.values.get(field) is not None

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

    def optional_texts(self, field: str) -> tuple[str, ...]:
        """A list of texts that may be empty or absent.

        Raises:
            RowError: if it is no list or an item is no text.
        """
        if not self.has(field) or not self.items(field):
            return ()
        return self.texts(field)

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
        """A required finite number.

        Raises:
            RowError: if it is missing, no number, or not finite.
        """
        value = self.require(field, "a number")
        if not self.typed:
            value = _parsed_number(value)
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
        return check_text(field, value)

    def _missing(self, field: str, expected: str) -> NoReturn:
        got = "null" if field in self.values else "nothing"
        known = ", ".join(sorted(map(str, self.values))[:8]) or "none"
        raise RowError(field, got, f"{expected} (fields of this row: {known})")


def _parsed_number(value: object) -> object:
    """A number written as text, or the value as it came."""
    try:
        number = float(value) if isinstance(value, str) else math.nan
    except ValueError:
        return value
    return number if isinstance(value, str) else value
