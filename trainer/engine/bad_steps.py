"""What is kept of a step whose gradient is not finite; it must not decide whether training goes on.

The file names the step, its rows and their texts, so that a person can look at them.
"""

import json
import logging
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from trainer.data.batch import Batch
from trainer.data.sources import StepSource
from trainer.distributed.group import Ranks
from trainer.errors import DataError
from trainer.run_folder.layout import RunFolder

logger = logging.getLogger(__name__)

NUM_NAMED_ROWS = 8
"""Rows that a message lists; the file has them all."""


@dataclass(frozen=True, kw_only=True)
class BadSteps:
    """Writes `bad_steps/step-N.json` of a run."""

    folder: Path
    """The run's output folder."""
    sources: Mapping[str, StepSource]
    """By name, mixes too."""
    ranks: Ranks
    """The first one writes."""

    def keep(self, batch: Batch, fault: str) -> None:
        """Write the plan and the texts of a step; a full disk costs the file, not the message."""
        if not self.ranks.is_first:
            return
        path = self.path(batch)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            content = json.dumps(self._content(batch, fault), ensure_ascii=False, indent=1)
            path.write_text(content + "\n", encoding="utf-8")
        except OSError as error:
            logger.warning("%s: not written (%s)", path, error.strerror)

    def path(self, batch: Batch) -> Path:
        """Where the file of a step is."""
        return RunFolder(self.folder).bad_step(batch.plan.step)

    def _content(self, batch: Batch, fault: str) -> dict[str, Any]:
        plan = batch.plan
        source = self.sources[plan.source]
        return {
            "step": plan.step,
            "task": plan.task,
            "source": plan.source,
            "epoch": plan.epoch,
            "fault": fault,
            "rows": plan.shown_rows,
            "records": [
                {"row": shown} | _record(source, row)
                for row, shown in zip(plan.rows.tolist(), plan.shown_rows, strict=True)
            ],
        }


def _record(source: StepSource, row: int) -> dict[str, Any]:
    """Texts and score of a row."""
    try:
        return asdict(source.record(row))
    except DataError as error:
        return {"error": str(error)}


def named_rows(batch: Batch) -> str:
    """`step 7 (ir, source docs, rows 3, 5, ... of 64)`, for messages."""
    plan = batch.plan
    rows = ", ".join(map(str, plan.shown_rows[:NUM_NAMED_ROWS]))
    more = f", ... {len(plan.rows)} in all" if len(plan.rows) > NUM_NAMED_ROWS else ""
    return f"step {plan.step} ({plan.task}, source {plan.source}, rows {rows}{more})"
