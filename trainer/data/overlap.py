"""Training rows that repeat what an evaluation set asks: told of, refused or left out."""

import hashlib
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from trainer.data.beir import BeirRecords
from trainer.data.cache import Arrays, cached_arrays
from trainer.data.evalsets import EvalSet
from trainer.data.ids import Lists
from trainer.data.scan import CACHE_FROM_ROWS, text_key
from trainer.data.sources import BeirSource, Rows, Source
from trainer.errors import DataError
from trainer.recipe.schema import DataRecipe

logger = logging.getLogger(__name__)

NUM_SHOWN = 3
"""Examples in a message."""
SHOWN_CHARACTERS = 60
"""Of a text in a message."""


def count_overlaps(
    sources: Sequence[Source], held_out: Mapping[str, EvalSet]
) -> dict[tuple[str, str], int]:
    """Rows of each source whose query, or pair in either order, an evaluation set has.

    The task of a source does not matter: a set of any kind may ask what the rows of another ask.

    Args:
        sources: training sources.
        held_out: evaluation sets by name.

    Returns:
        Source and set name to number of rows, where there are any.
    """
    counts = {}
    for name, found in held_out.items():
        keys = np.fromiter(map(text_key, found.asked()), np.uint64)
        for source in sources:
            count = int(np.isin(source.queries, keys).sum())
            if count:
                counts[source.name, name] = count
    return counts


def warn_of_overlaps(sources: Sequence[Source], held_out: Mapping[str, EvalSet]) -> None:
    """Logs each overlap, as scores on what was trained on say little."""
    for (source, name), count in count_overlaps(sources, held_out).items():
        logger.warning(
            "data.sources.%s: %d rows are also in eval.sets.%s; its scores will be too good. "
            "Remove them from one of the two, or set data.overlap to drop",
            source,
            count,
            name,
        )


@dataclass(frozen=True, kw_only=True)
class Overlaps:
    """Rows of one source that repeat what evaluation sets ask; a row may stand in several."""

    rows: np.ndarray
    """Their numbers [n], int64, ascending."""
    sets: np.ndarray
    """Which set each repeats, by its place among all [n], int64."""
    asked: np.ndarray
    """Which of what that set asks [n], int64."""
    is_equal: np.ndarray
    """Whether they differ in case, spaces and punctuation at most; else they are near [n], bool."""


class Screen:
    """Looks at each source before training, as `data.overlap` says."""

    def __init__(self, recipe: DataRecipe, held_out: Mapping[str, EvalSet]) -> None:
        """Index what all evaluation sets ask.

        Args:
            recipe: `overlap` is not null.
            held_out: evaluation sets by name.
        """
        # brings scipy, which takes a while
        from trainer.data.near_texts import KnownTexts

        self.recipe = recipe
        self.asked = {name: tuple(found.asked()) for name, found in held_out.items()}
        self._known = {name: KnownTexts(texts) for name, texts in self.asked.items()}
        parts = (text for texts in self.asked.values() for text in ("\1", *texts))
        self._identity = hashlib.sha256("\2".join(parts).encode(errors="replace")).hexdigest()

    def __call__(self, rows: Rows) -> Rows:
        """The rows of a source, without those that are to be left out.

        Raises:
            DataError: if `data.overlap` is `error` and there are any, or all would be left out.
        """
        found = self.overlaps_of(rows)
        for place, name in enumerate(self.asked):
            ours = np.flatnonzero(found.sets == place)
            if len(ours):
                self._tell(rows, found, ours, name)
        if self.recipe.overlap != "drop" or not len(found.rows):
            return rows
        left_out = np.unique(found.rows)
        if len(left_out) == len(rows):
            raise DataError(
                f"data.sources.{rows.name}: rows = {len(rows)}, all of them also in evaluation "
                "sets; expected some that are not. Train on other rows, or remove the source."
            )
        return without(rows, left_out)

    def overlaps_of(self, rows: Rows) -> Overlaps:
        """All overlaps of a source, from the cache where a large one was seen before."""
        if len(rows) < CACHE_FROM_ROWS:
            return Overlaps(**self._found(rows))
        logger.info(
            "data.sources.%s: comparing %d rows with the evaluation sets, once for all runs",
            rows.name,
            len(rows),
        )
        identity = f"overlap2|{rows.identity}|{self._identity}"
        return Overlaps(**cached_arrays(identity, lambda: self._found(rows)))

    def _found(self, rows: Rows) -> Arrays:
        """Compares row by row."""
        found: list[tuple[int, int, int, bool]] = []
        for row in range(len(rows)):
            asked = rows.record(row).asked()
            for place, known in enumerate(self._known.values()):
                match = known.find(asked)
                if match is not None:
                    found.append((row, place, match.index, match.is_equal))
        columns = np.array(found, np.int64).reshape(-1, 4).T
        return {
            "rows": columns[0],
            "sets": columns[1],
            "asked": columns[2],
            "is_equal": columns[3].astype(bool),
        }

    def _tell(self, rows: Rows, found: Overlaps, ours: np.ndarray, name: str) -> None:
        """Logs the overlaps with one set, or raises."""
        num_equal = int(found.is_equal[ours].sum())
        # near ones first: they are what a person cannot find by a search
        shown = sorted(ours.tolist(), key=lambda at: (bool(found.is_equal[at]), at))[:NUM_SHOWN]
        examples = "; ".join(
            f"{rows.place(int(found.rows[at]))} {_shown(rows.record(int(found.rows[at])).asked())} "
            f"repeats {_shown(self.asked[name][int(found.asked[at])])}"
            for at in shown
        )
        text = (
            f"data.sources.{rows.name}: {len(ours)} of {len(rows)} rows are also in "
            f"eval.sets.{name}: {num_equal} equal, {len(ours) - num_equal} nearly. {examples}"
        )
        if self.recipe.overlap == "error":
            raise DataError(
                f"{text}. Expected none, as data.overlap is error. Remove them from one of the "
                "two, or set data.overlap to drop."
            )
        is_dropped = self.recipe.overlap == "drop"
        logger.warning(
            "%s. %s", text, "They are left out" if is_dropped else "Its scores will be too good"
        )


def screen_of(recipe: DataRecipe, held_out: Mapping[str, EvalSet]) -> Screen | None:
    """What looks at each source; None where `data.overlap` is null or nothing is held out."""
    return None if recipe.overlap is None or not held_out else Screen(recipe, held_out)


def without(rows: Rows, left_out: np.ndarray) -> Rows:
    """A source's rows but some; its fingerprint says which.

    Args:
        rows: of files, or of a BEIR folder.
        left_out: numbers of records, ascending, not all [n], int64. With one record of a row of
            files all others of that row go.
    """
    digest = hashlib.sha256(left_out.astype("<i8").tobytes()).hexdigest()
    if isinstance(rows, BeirSource):
        kept = np.setdiff1d(np.arange(len(rows)), left_out)
        return replace(rows, records=_some_of(rows.records, kept, digest))
    gone = np.isin(rows.rows, rows.rows[left_out])
    dropped: list[Any] = [rows.record(row) for row in np.flatnonzero(gone).tolist()]
    keys = np.fromiter((text_key(record.asked()) for record in dropped), np.uint64)
    num_scored = sum(record.has_teacher for record in dropped) if rows.num_scored else 0
    return replace(
        rows,
        rows=rows.rows[~gone],
        parts=rows.parts[~gone],
        queries=rows.queries[~np.isin(rows.queries, keys)],
        num_scored=rows.num_scored - num_scored,
        describe=f"{rows.describe}, {len(dropped)} left out that evaluation sets have",
        left_out=digest,
    )


def _some_of(records: BeirRecords, kept: np.ndarray, digest: str) -> BeirRecords:
    """Some of a folder's judged queries."""
    return replace(
        records,
        query=records.query[kept],
        positives=_lists_of(records.positives, kept),
        negatives=_lists_of(records.negatives, kept),
        sha256=hashlib.sha256(f"{records.sha256}{digest}".encode()).hexdigest(),
    )


def _lists_of(lists: Lists, kept: np.ndarray) -> Lists:
    return Lists.of(lists[index] for index in kept.tolist())


def _shown(text: str) -> str:
    """A text, or both of a pair, in a message."""
    parts = (" ".join(part.split()) for part in text.split("\0"))
    return " | ".join(
        repr(p if len(p) <= SHOWN_CHARACTERS else f"{p[:SHOWN_CHARACTERS]}...") for p in parts
    )
