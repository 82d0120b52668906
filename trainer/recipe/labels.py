"""Labelled texts as a recipe writes them: texts of one label are near each other, others are not.

A source whose labels have texts of their own compares its texts with those instead.
"""

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, ClassVar, Literal

from trainer.recipe.embedding_distillation import (
    TERM,
    EmbeddingDistillationRecipe,
    embedding_weight,
)
from trainer.recipe.fields import bounded
from trainer.recipe.kind import Fail, Side, TaskKind, TermSettings, term_table

Objective = Literal["own_negatives", "in_batch", "supcon"]
"""What a text is compared with."""

TERMS = term_table(
    TermSettings(
        name="infonce",
        label="InfoNCE",
        weight=1.0,
        meaning="Weight of InfoNCE of an anchor's positives.",
        has_own_key=True,
    ),
    TermSettings(
        name="supcon",
        label="SupCon",
        weight=0.0,
        meaning="Weight of the supervised contrastive loss.",
        has_own_key=True,
    ),
    TERM,
)
"""Terms of the loss of labelled texts; `objective` says which of the first two counts."""


@dataclass(frozen=True, kw_only=True)
class LabelsRecipe:
    """Labelled texts, for classification and clustering."""

    has_label_texts: ClassVar[bool] = False
    """Whether labels have texts of their own: a fact of the source, see `of_source`."""

    global_batch_size: int = bounded(low=1, required=True)
    """Anchors of one step over all ranks."""
    positives: int = bounded(1, low=1)
    """Texts P of an anchor's label that are drawn beside it."""
    negatives: int = bounded(7, low=0)
    """Texts N of other labels that are drawn for each anchor; with `label_texts`, other labels."""
    temperature: float = bounded(0.05, above=0)
    """Divides cosine similarity."""
    objective: Objective = "own_negatives"
    """`own_negatives`: InfoNCE over an anchor's own positives and negatives; `in_batch`: over all
    of the batch, without those of the anchor's label; `supcon`: every text of the batch is an
    anchor (Khosla et al. 2020, arXiv:2004.11362, eq. 2)."""
    balance: Literal["rows", "classes"] = "rows"
    """What is drawn equally often, as anchor and as negative: texts, or labels."""
    embedding_distillation: EmbeddingDistillationRecipe | None = None
    """Learn a teacher's vectors; null: no source may have `teacher_embeddings`."""

    @property
    def weights(self) -> Mapping[str, float]:
        """See `TaskSettings.weights`: every term has a key of its own."""
        return {}


@dataclass(frozen=True, kw_only=True)
class LabelTextsRecipe(LabelsRecipe):
    """The same for steps of a source whose labels have texts."""

    has_label_texts: ClassVar[bool] = True


def of_source(settings: LabelsRecipe, source: Any) -> LabelsRecipe:
    """The settings of the steps of a source.

    Args:
        settings: of the task.
        source: its section of the recipe.
    """
    if source.label_texts is None:
        return settings
    return LabelTextsRecipe(**{one.name: getattr(settings, one.name) for one in fields(settings)})


def _weights_of(settings: LabelsRecipe) -> Mapping[str, float]:
    is_supervised = settings.objective == "supcon"
    return {
        "infonce": float(not is_supervised),
        "supcon": float(is_supervised),
        TERM.name: embedding_weight(settings),
    }


def _texts_of_row(settings: LabelsRecipe) -> Mapping[Side, int]:
    others = settings.positives + settings.negatives
    return {"query": 1, "passage": others} if settings.has_label_texts else {"query": 1 + others}


def _check(settings: LabelsRecipe, fail: Fail) -> None:
    """Every anchor has something that it is told from, and label texts are of use."""
    objective, negatives = settings.objective, settings.negatives
    if objective == "own_negatives" and negatives == 0:
        expected = "at least 1 where tasks.labels.objective is own_negatives"
        raise fail("tasks.labels.negatives", 0, expected, "Raise it, or choose another objective.")
    if negatives == 0 and settings.global_batch_size == 1:
        expected = "at least 2 where negatives is 0"
        raise fail("tasks.labels.global_batch_size", 1, expected, "Raise either.")
    if settings.has_label_texts and objective == "supcon":
        expected = "own_negatives or in_batch where the source has label_texts"
        advice = "Choose one of them, or remove label_texts: supcon compares texts with texts."
        raise fail("tasks.labels.objective", objective, expected, advice)
    if settings.has_label_texts and settings.positives > 1:
        expected = "1 where the source has label_texts, as a label has one text"
        raise fail("tasks.labels.positives", settings.positives, expected, "Lower it.")


KIND = TaskKind(
    name="labels",
    label="labelled texts",
    settings=LabelsRecipe,
    terms=TERMS,
    loss_unit="nats",
    has_labels=True,
    texts_of_row=_texts_of_row,
    prompts={"labels": "query", "labels-document": "passage"},
    benchmark_prompts={
        "Classification": "labels",
        "Clustering": "labels",
        "Classification-document": "labels-document",
    },
    weights_of=_weights_of,
    of_source=of_source,
    check=_check,
)
