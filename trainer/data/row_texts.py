"""The texts of one record as they are tokenised ahead; it holds no logic."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class RowTexts:
    """The slots of a record: texts encoded as queries, then texts encoded as passages."""

    queries: tuple[str, ...]
    """At least one, without instruction."""
    passages: tuple[str, ...] = ()
    """Without instruction."""
    num_positives: int = 0
    """How many of the passages are positives; they come first."""
    scores: tuple[float, ...] = ()
    """A number of each slot, NaN where there is none; empty: the record has none."""
