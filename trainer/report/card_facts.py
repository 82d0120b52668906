"""What a model card is made of, and the few numbers that several of its parts need."""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from trainer.recipe.schema import Recipe
from trainer.recipe.tasks import TASKS
from trainer.report.base_model import BaseModel
from trainer.report.exported import ExportedFolder
from trainer.report.read import Line, Run


@dataclass(frozen=True, kw_only=True)
class TrainedBy:
    """The run that an export comes from."""

    recipe: Recipe
    """As resolved."""
    run: Run
    """What its folder says."""
    step: int
    """Steps done by the exported parameters."""
    after: Line | None
    """Their evaluation; None where there was none."""

    @property
    def planned(self) -> int:
        """Steps of the whole run, which may have ended earlier."""
        return int(self.run.facts.get("num_steps") or self.step)

    @property
    def before(self) -> Line | None:
        """The evaluation of the base; None where there was none."""
        return next((line for line in self.run.evaluations if line["step"] == 0), None)


@dataclass(frozen=True, kw_only=True)
class CardFacts:
    """All that a card says."""

    name: str
    """Title of the model."""
    exported: ExportedFolder
    """The folder that the card describes."""
    base: BaseModel
    """What was trained or merged."""
    trained_by: TrainedBy | None
    """None for a merge of checkpoints that may be of several runs."""
    merge: Mapping[str, Any] | None
    """Content of `merge.json`, if checkpoints were merged."""

    @property
    def shorter(self) -> tuple[int, ...]:
        """Sizes below the whole vector's that were trained, descending."""
        dims, run = self.exported.dims, self.trained_by
        # an adapter's folder has no config to say so
        if not dims and run is not None and run.recipe.model.matryoshka is not None:
            dims = run.recipe.model.matryoshka.dims
        whole = self.exported.dimensions or 0
        return tuple(dim for dim in dims if dim < whole)

    @property
    def tasks(self) -> list[str]:
        """Tasks that the model was trained for; all with prompts where no run is known."""
        if self.trained_by is None:
            prompts = self.exported.prompts
            return [name for name, kind in TASKS.items() if next(iter(kind.prompts)) in prompts]
        trained = {source.task for source in self.trained_by.recipe.data.sources}
        return [name for name in TASKS if name in trained]


def finite_metrics(evaluation: Line | None, name: str) -> Iterator[tuple[str, float]]:
    """Metrics of a set that have a value."""
    metrics = (evaluation or {"sets": {}})["sets"].get(name, {})
    for metric, value in metrics.items():
        if value is not None and math.isfinite(value):
            yield metric, value
