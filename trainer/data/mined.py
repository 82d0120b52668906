"""Hard negatives that a run mined, in place of those of the rows; it must not search.

They are places in the source: of rows, a row and a number among its passages; of a corpus, the row
of a document. So a file of integers says all, and texts stay where they are. A row of which nothing
was mined keeps its own negatives. Letters: G queries of a step, K negatives of a row at most.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

import numpy as np

from trainer.data.mixed_rows import joined, parted
from trainer.data.mixed_source import MixedSource
from trainer.data.mixed_store import AnyStore
from trainer.data.records import IrRecord
from trainer.data.sources import BeirSource, Source, StepSource
from trainer.data.teacher_vectors import TeacherVectors
from trainer.errors import RecipeError
from trainer.recipe.mine_rules import SECTION, mined_names
from trainer.recipe.schema import Recipe

NO_PLACE = -1
"""Where a row has fewer than K; always behind the others."""
NUMBER_BITS = 23
"""Numbers of passages of a row lie below; its row above, see `trainer.data.mixed_rows.OWNER_BIT`.
"""


def places_in_rows(rows: np.ndarray, numbers: np.ndarray) -> np.ndarray:
    """Places of passages of rows, int64.

    Args:
        rows: of the source, int64.
        numbers: of each passage in its row, positives before negatives, int64.
    """
    return rows << NUMBER_BITS | numbers


def in_rows(places: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Rows and numbers of places, int64 each."""
    return places >> NUMBER_BITS, places & ((1 << NUMBER_BITS) - 1)


@dataclass(frozen=True, kw_only=True)
class MinedSource:
    """A source of retrieval with mined negatives."""

    source: Source
    """As it was opened."""
    places: np.ndarray
    """Negatives of each row, hardest first, then NO_PLACE [rows, K], int64, memory-mapped; rows
    that were added to the source since have none."""

    @property
    def name(self) -> str:
        """See `StepSource.name`."""
        return self.source.name

    @property
    def teacher_vectors(self) -> TeacherVectors | None:
        """See `StepSource.teacher_vectors`."""
        return self.source.teacher_vectors

    def check_files(self) -> None:
        """See `StepSource.check_files`."""
        self.source.check_files()

    def record(self, row: int) -> IrRecord:
        """The record of a row with the negatives that were mined; a teacher scored others."""
        record: IrRecord = self.source.record(row)
        places = [place for place in self.places_of(np.array([row]))[0].tolist() if place >= 0]
        if not places:
            return record
        negatives = tuple(map(self._text, places))
        return replace(record, negatives=negatives, positive_scores=None, negative_scores=None)

    def places_of(self, rows: np.ndarray) -> np.ndarray:
        """Places of the negatives of some rows [G, K], int64."""
        found = np.full((len(rows), self.places.shape[1]), NO_PLACE, np.int64)
        known = rows < len(self.places)
        found[known] = self.places[rows[known]]
        return found

    def _text(self, place: int) -> str:
        if isinstance(self.source, BeirSource):
            return self.source.records.folder.document(place)
        row, number = (int(one[0]) for one in in_rows(np.array([place])))
        record: IrRecord = self.source.record(row)
        return (*record.positives, *record.negatives)[number]


class MinedSlots(NamedTuple):
    """Where the tokens of mined negatives are in a store."""

    slots: np.ndarray
    """Of the negatives of each row [G, K], int64; any number where there is none."""
    counts: np.ndarray
    """Negatives of each row [G], int64; 0: the row has its own."""


def mined_slots(source: StepSource, store: AnyStore, rows: np.ndarray) -> MinedSlots | None:
    """The tokens of the negatives of some rows; None: nothing was mined for them.

    Args:
        source: of a step, or a mix.
        store: has the tokens of its rows.
        rows: of the step [G], int64, in a mix as `trainer.data.mixed_rows` numbers them.
    """
    parts: dict[int, MinedSource] = {}
    if isinstance(source, MinedSource):
        parts[0] = source
    elif isinstance(source, MixedSource):
        parts = {at: one for at, one in enumerate(source.members) if isinstance(one, MinedSource)}
    if not parts:
        return None
    width = max(one.places.shape[1] for one in parts.values())
    places, places_rows = np.full((2, len(rows), width), NO_PLACE, np.int64)
    owners, inner = parted(rows)
    for owner, part in parts.items():
        mine = owners == owner
        found = part.places_of(inner[mine])
        places[mine, : found.shape[1]] = found
        places_rows[mine] = joined(owner, in_rows(places[mine])[0])
    is_there = places != NO_PLACE
    slots = np.zeros_like(places)
    # the first slot of a row is its query
    starts, _ = store.spans(places_rows[is_there])
    slots[is_there] = starts + 1 + in_rows(places[is_there])[1]
    return MinedSlots(slots, is_there.sum(axis=1))


def with_mined(sources: Sequence[Source], files: Mapping[str, Path]) -> tuple[StepSource, ...]:
    """Sources with what was mined for them.

    Args:
        sources: opened.
        files: of places, by name of the source; others keep the negatives of their rows.
    """
    return tuple(
        MinedSource(source=one, places=np.load(files[one.name], mmap_mode="r"))
        if one.name in files
        else one
        for one in sources
    )


def check_mined(sources: Sequence[Source], recipe: Recipe) -> None:
    """Refuse sources whose mined negatives could not be read as the recipe says.

    Raises:
        RecipeError: naming the source and the key.
    """
    mined = mined_names(recipe.data)
    for source in sources:
        if source.name not in mined or not isinstance(source, BeirSource):
            continue
        why = f"where {SECTION} takes negatives of source {source.name} from its whole corpus"
        other = f"or name other sources in {SECTION}.sources"
        if recipe.data.tokens == "ahead":
            raise RecipeError(
                f"recipe: data.tokens = ahead; expected auto or on_the_fly {why}, of which the "
                f"passages of rows alone are tokenised ahead. Change it, {other}."
            )
        if source.teacher_vectors is not None:
            raise RecipeError(
                f"recipe: data.sources.{source.name}.teacher_embeddings is set; expected null "
                f"{why}, of which the teacher has the texts of rows alone. Remove it, {other}."
            )
