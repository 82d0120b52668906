"""What an adapter is: a name, the columns it needs, and a function from row to record."""

import re
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple, Protocol

from trainer.data.fields import Row
from trainer.data.header import Headerless
from trainer.data.records import IrRecord, RawRecord, StsRecord
from trainer.recipe.schema import EvalKindName, EvalSetRecipe, SourceRecipe, Task

DIGITS = re.compile(r"\d+")


class ScoredPair(NamedTuple):
    """A pair with its score on the file's own scale."""

    text1: str
    text2: str
    score: float

    @property
    def raw_score(self) -> float:
        """See `RawRecord.raw_score`."""
        return self.score

    @property
    def has_teacher(self) -> bool:
        """See `RawRecord.has_teacher`; its score is the gold one."""
        return False

    def asked(self) -> str:
        """Its texts in any order."""
        return "\0".join(sorted((self.text1, self.text2)))

    def taught(self) -> str:
        """As what it asks: another score of the same texts teaches nothing new."""
        return self.asked()

    def scaled(self, low: float, high: float) -> StsRecord:
        """The pair of training."""
        score = (self.score - low) / (high - low)
        return StsRecord(text1=self.text1, text2=self.text2, score=score)


class RowRecords(NamedTuple):
    """The records of one row, where a row holds several or may hold none."""

    records: tuple[RawRecord, ...]
    """In the order of the row; none where a format has rows that its own readers leave out."""


NO_RECORD = RowRecords(())
"""Of a row that is left out without being malformed."""
Parsed = RawRecord | RowRecords


class RowSettings(NamedTuple):
    """How a row says that it is to be trained."""

    prompt: str
    """Its instruction; empty where it carries none."""
    type: str
    """What kind of row it says that it is; empty where it does not."""
    is_symmetric: bool
    """Whether its passages get the instruction too."""
    num_negatives: int | None
    """Negatives that count, each once; None: as many as the recipe says."""

    @property
    def query_instruction(self) -> str:
        """What stands before its query."""
        return self.prompt

    @property
    def passage_instruction(self) -> str:
        """What stands before its passages, as far as the row says it."""
        return self.prompt if self.is_symmetric else ""

    def with_negatives(self, other: "RowSettings") -> "RowSettings":
        """The same with the fewer negatives of two rows of one type."""
        counts = (self.num_negatives, other.num_negatives)
        least = min((count for count in counts if count is not None), default=None)
        return self._replace(num_negatives=least)


class Documents(Protocol):
    """Texts by id, for rows that name them."""

    def text(self, field: str, identifier: object) -> str:
        """The text of a document; raises RowError, naming the field that holds the id."""


def no_instruction(row: Row) -> str:
    """For formats whose rows carry none."""
    return ""


def always(row: Row) -> bool:
    """For formats that are known by their columns."""
    return True


def nothing_ignored(rows: Sequence[Row], recipe: SourceRecipe | EvalSetRecipe) -> tuple[str, ...]:
    """For formats whose rows ask for nothing that is not done."""
    return ()


@dataclass(frozen=True, kw_only=True)
class Adapter:
    """How the rows of one format become records of one task."""

    name: str
    """As in `data.sources[].format`."""
    task: Task | EvalKindName
    """Task of the records, or the evaluation kind that alone has such rows."""
    columns: frozenset[str]
    """Fields that a row of this format has; enough to distinguish it from the others."""
    parse: Callable[[Row], Parsed]
    """Row to record; raises RowError."""
    any_of: tuple[tuple[str, ...], ...] = ()
    """Groups of names, of each of which a file has one; they do not tell the format."""
    optional: tuple[str, ...] = ()
    """Names of columns that are read where a file has them; `#` stands for any number."""
    fits: Callable[[Row], bool] = always
    """Whether a row with the columns is of this format, where names alone do not say it."""
    is_found: bool = True
    """Whether the format is found by its columns; else it must be named."""
    left_out: str = "without a positive"
    """What rows lack that the format leaves out, in words."""
    headerless: Headerless | None = None
    """How its delimited files look, which do not begin with the names of columns."""
    is_by_order: bool = False
    """Whether columns count by their order, so that no name tells a header from a row."""
    joined: Callable[[Documents, Row], IrRecord] | None = None
    """Row to record where rows name documents by id; takes the place of `parse`."""
    instruction: Callable[[Row], str] = no_instruction
    """The instruction that a row itself carries; training takes it from the recipe."""
    passage_instruction: Callable[[Row], str] = no_instruction
    """The same for its passages."""
    ignored: Callable[[Sequence[Row], SourceRecipe | EvalSetRecipe], Sequence[str]] = (
        nothing_ignored
    )
    """What the first rows ask for that will not happen, a sentence each."""
    settings: Callable[[Row], RowSettings] | None = None
    """How a row says that it is to be trained; None: its format has no place for that."""
    joins: Literal["label", "premise"] | None = None
    """What rows must share to be brought together in training; None: each row stands alone."""
    teacher_columns: str = ""
    """Where its rows carry a teacher's scores, for messages; empty: they carry none."""

    def missing(self, columns: Collection[str]) -> list[str]:
        """What a file with these columns lacks; of a group of names, the first.

        Args:
            columns: those of the file.
        """
        lacking = [group[0] for group in self.any_of if not set(group) & set(columns)]
        return [*sorted(self.columns.difference(columns)), *lacking]

    def reads(self, name: str) -> bool:
        """Whether a column of this name is read."""
        grouped = name in self.columns or any(name in group for group in self.any_of)
        return grouped or DIGITS.sub("#", name) in self.optional

    @property
    def names(self) -> list[str]:
        """All names that are read."""
        return [*sorted(self.columns), *(one for group in self.any_of for one in group),
                *self.optional]  # fmt: skip
