"""What each task is to the data room: how rows become a batch.

A new task is a file beside this one and one line in the table.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from trainer.data import ir, sts
from trainer.data.batch import Batch, StepPlan
from trainer.data.text_table import TextTable
from trainer.recipe import ir as retrieval
from trainer.recipe import sts as similarity

Collate = Callable[[StepPlan, Sequence[Any], TextTable, Any, int], Batch]
"""From a plan, its records in order, a table for their texts, the settings of the task and the
run's seed to the global batch."""


@dataclass(frozen=True, kw_only=True)
class TaskData:
    """One task."""

    collate: Collate
    """Records to a batch."""


TASK_DATA: dict[str, TaskData] = {
    retrieval.KIND.name: TaskData(collate=ir.collate),
    similarity.KIND.name: TaskData(collate=sts.collate),
}
"""By name of the task."""
