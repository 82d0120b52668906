"""What each task is to the data room: how rows become a batch.

A new task is a file beside this one and one line in the table.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from trainer.data import ir, labels, sts
from trainer.data.batch import Batch, StepPlan
from trainer.data.row_texts import RowTexts
from trainer.data.slot_table import SlotTable
from trainer.data.sources import StepSource
from trainer.data.text_table import TextTable
from trainer.recipe import ir as retrieval
from trainer.recipe import labels as labelled
from trainer.recipe import sts as similarity

Collate = Callable[[StepPlan, Sequence[Any], TextTable, Any, int], Batch]
"""From a plan, its records in order, a table for their texts, the settings of the task and the
run's seed to the global batch."""

CollateStored = Callable[[StepPlan, StepSource, SlotTable, Any, int], tuple[Batch, np.ndarray]]
"""The same but for token ids, and the slot of each text [U], int64, from a plan, its source, a
table of the source's tokens, settings and seed."""

Draw = Callable[[StepPlan, StepSource, Any, int], Sequence[Any]]
"""From a plan, its source, the settings of the source's steps and the run's seed to records."""


def planned_records(plan: StepPlan, source: StepSource, settings: Any, seed: int) -> Sequence[Any]:
    """The record of each planned row, for tasks that need no other rows beside it."""
    return [source.record(row) for row in plan.rows.tolist()]


@dataclass(frozen=True, kw_only=True)
class TaskData:
    """One task."""

    collate: Collate
    """Records to a batch."""
    draw: Draw = planned_records
    """What `collate` makes a batch of, in the plan's order."""
    row_texts: Callable[[Any], RowTexts] | None = None
    """From a record to the texts that are tokenised ahead; None: its sources never are."""
    collate_stored: CollateStored | None = None
    """Stored tokens to the batch that `draw` and `collate` make; None where `row_texts` is."""


TASK_DATA: dict[str, TaskData] = {
    retrieval.KIND.name: TaskData(
        collate=ir.collate, row_texts=ir.row_texts, collate_stored=ir.collate_stored
    ),
    similarity.KIND.name: TaskData(
        collate=sts.collate, row_texts=sts.row_texts, collate_stored=sts.collate_stored
    ),
    labelled.KIND.name: TaskData(
        collate=labels.collate,
        draw=labels.draw,
        row_texts=labels.row_texts,
        collate_stored=labels.collate_stored,
    ),
}
"""By name of the task."""
