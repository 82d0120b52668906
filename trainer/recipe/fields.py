"""What annotates a key of the schema: bounds of numbers, and tables that give its names.

Tables are asked when a recipe is read, so what was registered until then can be written in it.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any


def bounded(
    default: Any = None,
    *,
    low: float | None = None,
    high: float | None = None,
    above: float | None = None,
    required: bool = False,
) -> Any:
    """A dataclass field with numeric bounds: `low <= value`, `above < value`, `value <= high`."""
    metadata = {"low": low, "high": high, "above": above}
    return field(metadata=metadata) if required else field(default=default, metadata=metadata)


@dataclass(frozen=True)
class OneOf:
    """Annotates a text that is one of some names."""

    names: Callable[[], tuple[str, ...]]
    """All names."""


@dataclass(frozen=True)
class SectionsByName:
    """Annotates a mapping from name to a section with a schema of its own; null leaves one out."""

    schemas: Callable[[], Mapping[str, type]]
    """Schema of each section."""


@dataclass(frozen=True)
class NumberOf:
    """One number of a mapping from name to number."""

    default: float
    """Holds where the recipe does not name it."""
    meaning: str
    """One sentence for the reference."""


@dataclass(frozen=True)
class NumbersByName:
    """Annotates a mapping from name to number; names that are left out keep their default."""

    numbers: Callable[[], Mapping[str, NumberOf]]
    """Default and meaning of each."""
    low: float | None = None
    """Each number is at least this."""
    above: float | None = None
    """Each number is above this."""

    @property
    def bounds(self) -> Mapping[str, float | None]:
        """As the metadata of a field has them."""
        return {"low": self.low, "above": self.above}
