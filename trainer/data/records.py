"""The two kinds of training example, as every adapter yields them; it must not read files."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class IrRecord:
    """A query with texts that answer it and texts that do not."""

    query: str
    """Without instruction."""
    positives: tuple[str, ...]
    """At least one."""
    negatives: tuple[str, ...] = ()
    """Hard negatives; may be empty."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StsRecord:
    """Two texts and how alike they are."""

    text1: str
    """Without instruction."""
    text2: str
    """Without instruction."""
    score: float
    """Normalised to 0..1."""


Record = IrRecord | StsRecord
