"""Training examples: what every record can say of itself, and those of the tasks.

It must not read files. A record of another task is a class with the same methods.
"""

from dataclasses import dataclass
from typing import Any, Literal, Protocol


class RawRecord(Protocol):
    """One example as its file has it."""

    @property
    def raw_score(self) -> float | None:
        """Its score on the file's own scale; None for tasks without one."""

    @property
    def has_teacher(self) -> bool:
        """Whether a teacher scored its passages."""

    def asked(self) -> str:
        """What it asks, as one text: equal for two records that ask the same."""

    def taught(self) -> str:
        """What it teaches, as one text: equal for two records that teach the same."""

    def scaled(self, low: float, high: float) -> Any:
        """The record of training, with its score on 0..1."""


@dataclass(frozen=True, slots=True, kw_only=True)
class IrRecord:
    """A query with texts that answer it and texts that do not."""

    query: str
    """Without instruction."""
    positives: tuple[str, ...]
    """At least one."""
    negatives: tuple[str, ...] = ()
    """Hard negatives; may be empty."""
    positive_scores: tuple[float, ...] | None = None
    """A teacher's score of each positive, on any scale; None: no teacher scored the passages."""
    negative_scores: tuple[float, ...] | None = None
    """The same of each negative; None exactly where `positive_scores` is."""

    @property
    def raw_score(self) -> None:
        """See `RawRecord.raw_score`; there is none."""
        return None

    @property
    def has_teacher(self) -> bool:
        """See `RawRecord.has_teacher`."""
        return self.positive_scores is not None

    @property
    def texts(self) -> tuple[str, ...]:
        """All texts that a step may embed of it."""
        return (self.query, *self.positives, *self.negatives)

    @property
    def own_texts(self) -> tuple[str, ...]:
        """All but negatives: what its length is measured by."""
        return (self.query, *self.positives)

    def asked(self) -> str:
        """Its query."""
        return self.query

    def taught(self) -> str:
        """Its query with its positives in any order."""
        return "\0".join([self.query, *sorted(self.positives)])

    def scaled(self, low: float, high: float) -> "IrRecord":
        """Itself: there is no score."""
        return self


@dataclass(frozen=True, slots=True, kw_only=True)
class StsRecord:
    """Two texts and how alike they are."""

    text1: str
    """Without instruction."""
    text2: str
    """Without instruction."""
    score: float
    """Normalised to 0..1."""

    @property
    def texts(self) -> tuple[str, ...]:
        """All texts that a step embeds of it."""
        return (self.text1, self.text2)

    @property
    def own_texts(self) -> tuple[str, ...]:
        """See `IrRecord.own_texts`: both texts."""
        return self.texts

    def asked(self) -> str:
        """Its texts in any order."""
        return "\0".join(sorted((self.text1, self.text2)))


Label = int | str
"""What a text is labelled with; all labels of a source are of one type."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LabelledRecord:
    """A text and what it is labelled with."""

    text: str
    """Without instruction."""
    labels: tuple[Label, ...]
    """At least one."""
    label_texts: tuple[str, ...] = ()
    """The text of each label, where the source has them."""

    @property
    def raw_score(self) -> None:
        """See `RawRecord.raw_score`; there is none."""
        return None

    @property
    def has_teacher(self) -> bool:
        """See `RawRecord.has_teacher`; a text has no scores."""
        return False

    @property
    def texts(self) -> tuple[str, ...]:
        """All texts that a step may embed of it."""
        return (self.text, *self.label_texts)

    def asked(self) -> str:
        """Its text."""
        return self.text

    def taught(self) -> str:
        """Its text with its labels in any order."""
        return "\0".join([self.text, *sorted(map(str, self.labels))])

    def scaled(self, low: float, high: float) -> "LabelledRecord":
        """Itself: there is no score."""
        return self


Relation = Literal["entailment", "neutral", "contradiction", "none"]
"""How a hypothesis stands to its premise; none: nobody knows."""


@dataclass(frozen=True, slots=True, kw_only=True)
class InferenceRow:
    """A premise and a hypothesis; rows of one premise make a record of retrieval."""

    premise: str
    """Without instruction."""
    hypothesis: str
    """Without instruction."""
    relation: Relation
    """How the two stand to each other."""

    @property
    def raw_score(self) -> None:
        """See `RawRecord.raw_score`; there is none."""
        return None

    @property
    def has_teacher(self) -> bool:
        """See `RawRecord.has_teacher`; nobody scored it."""
        return False

    def asked(self) -> str:
        """Its premise."""
        return self.premise

    def taught(self) -> str:
        """All of it."""
        return "\0".join([self.premise, self.hypothesis, self.relation])

    def scaled(self, low: float, high: float) -> "InferenceRow":
        """Itself: there is no score."""
        return self
