"""Rows of held-out sets of kinds that are no task; it must not read files.

They have what every record has, so that the same reader checks them.
"""

from dataclasses import dataclass
from typing import Self

from trainer.data.records import Label


class HeldOutRecord:
    """What no such row has: scores on a scale, of its own or of a teacher."""

    __slots__ = ()

    @property
    def raw_score(self) -> None:
        """See `RawRecord.raw_score`; there is none."""
        return None

    @property
    def has_teacher(self) -> bool:
        """See `RawRecord.has_teacher`; there is none."""
        return False

    def scaled(self, low: float, high: float) -> Self:
        """Itself: there is no score."""
        return self


@dataclass(frozen=True, slots=True)
class LabelledText(HeldOutRecord):
    """A text of a class."""

    text: str
    label: Label

    def asked(self) -> str:
        """Its text."""
        return self.text

    def taught(self) -> str:
        """Its text with its label."""
        return f"{self.text}\0{self.label}"


@dataclass(frozen=True, slots=True)
class TextPair(HeldOutRecord):
    """Two texts that belong together or not; those of a bitext always do."""

    text1: str
    text2: str
    label: int = 1
    """1 for a pair that belongs together, else 0."""

    def asked(self) -> str:
        """Its texts in any order, as scored pairs say it."""
        return "\0".join(sorted((self.text1, self.text2)))

    def taught(self) -> str:
        """As what it asks: another label of the same texts says nothing new."""
        return self.asked()


@dataclass(frozen=True, slots=True)
class Candidates(HeldOutRecord):
    """A query with the texts that are ranked for it."""

    query: str
    positives: tuple[str, ...]
    """Texts that answer it; at least one, but in a folder of MTEB."""
    negatives: tuple[str, ...]
    """Texts that do not."""
    gains: tuple[int, ...] = ()
    """How well each of `positives` answers it, above 0; empty: all alike, 1."""
    missed: tuple[int, ...] = ()
    """Gains of texts that answer it and are not ranked, which count as not found."""

    def asked(self) -> str:
        """Its query."""
        return self.query

    def taught(self) -> str:
        """Its query with its positives in any order."""
        return "\0".join([self.query, *sorted(self.positives)])
