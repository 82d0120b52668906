"""A third kind of task and a further term of retrieval, put into the public tables on import.

Duplicates are two texts that should have one vector. Nothing of the project knows of them.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from trainer.data.batch import StepPlan, Texts
from trainer.data.evalsets import EVAL_DATA, EvalSet
from trainer.data.formats import ADAPTERS
from trainer.data.formats.adapter import Adapter
from trainer.data.held_out_source import open_table_source
from trainer.data.tasks import TASK_DATA, TaskData
from trainer.data.text_table import TextTable
from trainer.distributed.group import Ranks
from trainer.engine.losses.table import LOSSES
from trainer.engine.losses.task_loss import (
    Prefixes,
    Vectors,
    over_prefixes,
    own_slice,
    weighted_sum,
)
from trainer.evaluation.evaluate import EXAMINERS
from trainer.evaluation.examine import Embed, SetReport, crossed
from trainer.evaluation.geometry import describe_geometry
from trainer.objectives.terms import RETRIEVAL_TERMS, Term
from trainer.recipe import ir
from trainer.recipe.eval_kind import EvalKind
from trainer.recipe.eval_kinds import EVAL_KINDS
from trainer.recipe.fields import NumberOf, NumbersByName, bounded
from trainer.recipe.kind import TaskKind, TermSettings, defaults, term_table, weight_numbers
from trainer.recipe.tasks import TASKS

TERMS = term_table(
    TermSettings(name="distance", label="Distance", weight=1.0, meaning="Weight of the distance.")
)


def numbers() -> dict[str, NumberOf]:
    return weight_numbers(TERMS)


@dataclass(frozen=True, kw_only=True)
class DuplicatesRecipe:
    """Duplicates."""

    global_batch_size: int = bounded(low=1, required=True)
    """Pairs of one step."""
    weights: Annotated[Mapping[str, float], NumbersByName(numbers, low=0)] = field(
        default_factory=lambda: defaults(numbers())
    )
    """Weights of the terms."""


KIND = TaskKind(
    name="duplicates",
    label="duplicates",
    settings=DuplicatesRecipe,
    terms=TERMS,
    texts_of_row=lambda settings: {"query": 2},
    prompts={"duplicates": "query"},
)
EVAL_KIND = EvalKind(
    name=KIND.name,
    label=KIND.label,
    layout="a file of pairs",
    metrics={"closeness": "Closeness"},
    prompts={"query": ("duplicates",)},
)


@dataclass(frozen=True)
class Duplicate:
    """Two texts."""

    left: str
    right: str
    raw_score: ClassVar[None] = None
    has_teacher: ClassVar[bool] = False

    def asked(self) -> str:
        return self.left

    def taught(self) -> str:
        return f"{self.left}\0{self.right}"

    def scaled(self, low: float, high: float) -> "Duplicate":
        return self


def parse(row: Any) -> Duplicate:
    return Duplicate(row.text("left"), row.text("right"))


@dataclass(frozen=True, kw_only=True)
class DuplicatesBatch:
    """Pairs of a step."""

    plan: StepPlan
    texts: Texts
    left: np.ndarray
    right: np.ndarray
    num_masked: int = 0


def collate(
    plan: StepPlan, records: Sequence[Duplicate], table: TextTable, settings: Any, seed: int
) -> DuplicatesBatch:
    left = table.add_queries([one.left for one in records])
    right = table.add_queries([one.right for one in records])
    return DuplicatesBatch(plan=plan, texts=table.texts(), left=left, right=right)


@dataclass(frozen=True)
class DuplicatesSet:
    """Held-out pairs."""

    records: tuple[Duplicate, ...]
    kind: ClassVar[str] = EVAL_KIND.name

    def asked(self) -> Iterator[str]:
        return (record.asked() for record in self.records)


def open_set(recipe: Any, data: Any) -> EvalSet:
    source = open_table_source(recipe, data)
    return DuplicatesSet(tuple(source.record(row) for row in range(len(source))))


@dataclass(frozen=True)
class DuplicatesLoss:
    """Mean squared distance of the two vectors."""

    settings: DuplicatesRecipe
    left: Tensor
    right: Tensor
    share: float

    def __call__(self, tables: Vectors, prefixes: Prefixes) -> dict[str, Tensor]:
        return over_prefixes(self.at, tables, prefixes)

    def at(self, tables: Vectors) -> dict[str, Tensor]:
        gaps = tables[0][self.left] - tables[0][self.right]
        values = {"distance": self.share * gaps.square().sum(dim=1).mean()}
        return {"loss": weighted_sum(values, self.settings.weights), **values}  # type: ignore[dict-item]


def make_loss(batch: DuplicatesBatch, settings: DuplicatesRecipe, ranks: Ranks) -> DuplicatesLoss:
    own = own_slice(len(batch.left), ranks)
    left, right = torch.from_numpy(batch.left[own]), torch.from_numpy(batch.right[own])
    return DuplicatesLoss(settings, left, right, len(left) / len(batch.left))


def examine(held_out: DuplicatesSet, embed: Embed) -> SetReport:
    left = embed([one.left for one in held_out.records], side="query")
    right = embed([one.right for one in held_out.records], side="query")
    cosines = (left * right).sum(dim=1)
    geometry = describe_geometry(
        left, positive=cosines, negative=cosines[:0], random=crossed(left, right)
    )
    return SetReport({"closeness": float(cosines.mean())}, geometry)


def margin_loss(queries: Tensor, passages: Tensor, *, first_row: int) -> Tensor:
    """How far the first negative of a query comes within a margin of its first positive."""
    own = passages[first_row : first_row + len(queries)]
    positive = (queries * own[:, 0]).sum(dim=1)
    negative = (queries * own[:, -1]).sum(dim=1)
    return (0.5 - positive + negative).clamp_min(0).mean()


TASKS[KIND.name] = KIND
TASK_DATA[KIND.name] = TaskData(collate=collate)
LOSSES[KIND.name] = make_loss
EVAL_KINDS[EVAL_KIND.name] = EVAL_KIND
EVAL_DATA[EVAL_KIND.name] = open_set
EXAMINERS[EVAL_KIND.name] = examine
ADAPTERS.append(
    Adapter(name="pairs", task=KIND.name, columns=frozenset({"left", "right"}), parse=parse)
)
ir.TERMS["margin"] = TermSettings(
    name="margin", label="Margin", weight=0.0, meaning="Weight of the margin."
)
RETRIEVAL_TERMS["margin"] = Term(
    name="margin", function=margin_loss, reads=("queries", "passages"), options=("first_row",)
)
