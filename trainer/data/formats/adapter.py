"""What an adapter is: a name, the columns it needs, and a function from row to record."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

from trainer.data.fields import Row
from trainer.data.records import IrRecord
from trainer.recipe.schema import Task


class ScoredPair(NamedTuple):
    """A pair with its score on the file's own scale."""

    text1: str
    text2: str
    score: float


def no_instruction(row: Row) -> str:
    """For formats whose rows carry none."""
    return ""


@dataclass(frozen=True, kw_only=True)
class Adapter:
    """How the rows of one format become records of one task."""

    name: str
    """As in `data.sources[].format`."""
    task: Task
    """Task of the records."""
    columns: frozenset[str]
    """Fields that a row of this format has; enough to tell it from the others."""
    parse: Callable[[Row], IrRecord | ScoredPair]
    """Row to record; raises RowError."""
    instruction: Callable[[Row], str] = no_instruction
    """The instruction that a row itself carries; training takes it from the recipe."""
