"""Similarity in the data room: scored pairs to a batch, and held-out pairs."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from trainer.data.batch import StepPlan, StsBatch
from trainer.data.formats.adapter import ScoredPair
from trainer.data.held_out_source import open_table_source, origin_of, owner_of
from trainer.data.records import StsRecord
from trainer.data.row_texts import RowTexts
from trainer.data.slot_table import SlotTable, is_repeated
from trainer.data.sources import StepSource, beir_folder
from trainer.data.text_table import TextTable
from trainer.errors import DataError
from trainer.recipe.schema import DataRecipe, EvalSetRecipe
from trainer.recipe.sts import EVAL_KIND, StsRecipe


def collate(
    plan: StepPlan, records: Sequence[StsRecord], table: TextTable, settings: StsRecipe, seed: int
) -> StsBatch:
    """The batch of scored pairs; nothing is drawn, so settings and seed do not matter."""
    texts = [*(one.text1 for one in records), *(one.text2 for one in records)]
    both = table.add_queries(texts, np.tile(plan.owners, 2))
    return StsBatch(
        plan=plan,
        texts=table.texts(),
        text1=both[: len(records)],
        text2=both[len(records) :],
        score=np.array([one.score for one in records], np.float32),
    )


def row_texts(record: StsRecord) -> RowTexts:
    """Both texts, with the score in the slot of the first."""
    return RowTexts(queries=(record.text1, record.text2), scores=(record.score, math.nan))


def collate_stored(
    plan: StepPlan, source: StepSource, table: SlotTable, settings: StsRecipe, seed: int
) -> tuple[StsBatch, np.ndarray]:
    """As `collate`, and the slot of each text, from tokens that were made ahead."""
    starts, _ = table.store.spans(plan.rows)
    both, twice = np.concatenate([starts, starts + 1]), np.tile(is_repeated(plan.rows), 2)
    found = table.distinct(both, both[:0], twice=twice, num_queries=len(both))
    batch = StsBatch(
        plan=plan,
        texts=found.texts,
        text1=found.added[: len(starts)],
        text2=found.added[len(starts) :],
        score=table.store.scores(starts),
    )
    return batch, found.slots


@dataclass(frozen=True, kw_only=True)
class StsEvalSet:
    """Held-out pairs."""

    kind: ClassVar[str] = EVAL_KIND.name
    text1: tuple[str, ...]
    """First texts [n]."""
    text2: tuple[str, ...]
    """Second texts [n]."""
    score: tuple[float, ...]
    """Gold similarity, 0..1 [n]."""

    def asked(self) -> Iterator[str]:
        """See `EvalSet.asked`."""
        pairs = zip(self.text1, self.text2, strict=True)
        return (ScoredPair(*pair, 0.0).asked() for pair in pairs)


def open_eval_set(recipe: EvalSetRecipe, data: DataRecipe) -> StsEvalSet:
    """Held-out pairs of a file, every row checked.

    Raises:
        DataError: if the file is missing or empty, a row is malformed, or all scores are equal.
    """
    owner, origin = owner_of(recipe), origin_of(recipe)
    if recipe.path and beir_folder(recipe.path, data.root, recipe.format) is not None:
        expected = "a file of scored pairs"
        raise DataError(f"{owner}: {origin}; expected {expected}. Change path or task.")
    source = open_table_source(recipe, data)
    records = [source.record(row) for row in range(len(source))]
    pairs = [record for record in records if isinstance(record, StsRecord)]
    if len({pair.score for pair in pairs}) < 2:
        raise DataError(
            f"{owner}: {origin}, {len(pairs)} pairs, all of one score; expected at "
            "least two scores, as no correlation is defined otherwise. Check the score field."
        )
    return StsEvalSet(
        text1=tuple(pair.text1 for pair in pairs),
        text2=tuple(pair.text2 for pair in pairs),
        score=tuple(pair.score for pair in pairs),
    )
