"""Retrieval as a recipe writes it: a query, its positives, its hard negatives."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Annotated, Literal

from trainer.recipe.embedding_distillation import (
    TERM,
    EmbeddingDistillationRecipe,
    embedding_weight,
)
from trainer.recipe.eval_kind import EvalKind
from trainer.recipe.fields import NumberOf, NumbersByName, bounded
from trainer.recipe.kind import (
    Fail,
    Side,
    TaskKind,
    TermSettings,
    Words,
    defaults,
    term_table,
    weight_numbers,
)

Direction = Literal["query_to_doc", "query_to_query", "doc_to_query", "doc_to_doc"]
"""What a similarity compares, as sentence-transformers names it."""

TERMS = term_table(
    TermSettings(
        name="infonce",
        label="InfoNCE",
        weight=1.0,
        meaning="Weight of the multi-positive InfoNCE over the global batch.",
    ),
    TermSettings(
        name="hard_negatives",
        label="InfoNCE of own hard negatives",
        weight=0.0,
        meaning="Weight of InfoNCE whose candidates are the query's own positive and hard "
        "negatives alone.",
    ),
    TermSettings(
        name="spread_out",
        label="Spread-out",
        weight=0.0,
        meaning="Weight of the spread-out regulariser.",
        has_own_key=True,
    ),
    TermSettings(
        name="distillation",
        label="Distillation",
        weight=0.0,
        meaning="Weight of the distance to a teacher's scores.",
        has_own_key=True,
    ),
    TERM,
)
"""Terms of the retrieval loss."""


UNREAD = {"directions": "query_to_doc alone", "in_batch": "true"}
"""Keys that `weights.infonce` alone reads, each with its default in words."""
UNREAD_BY_BOTH = {"mask": "known", "hardness": "0"}
"""Keys that `weights.hard_negatives` reads too."""
GUIDE = "tasks.ir.mask.guide"
"""Key that lets a teacher say which candidates are left out."""


def _weights() -> dict[str, NumberOf]:
    return weight_numbers(TERMS)


@dataclass(frozen=True, kw_only=True)
class MaskRecipe:
    """Known positives, and candidates that look like positives, hard negatives included."""

    margin: float | None = bounded(None, low=-2, high=2)
    """Cosine by which a candidate must exceed that of a positive to be left out, in all directions;
    null: none is, for its cosine."""
    of: Literal["best", "own"] = "best"
    """The positive that the margin is measured from: the query's `best`, or the slot's `own`."""
    guide: bool = False
    """Leave out what a teacher finds better than the query's best positive (GISTEmbed,
    arXiv:2402.16829): by the vectors of `data.sources[].teacher_embeddings` any candidate, in all
    directions; by scores that the rows carry own hard negatives alone."""


@dataclass(frozen=True, kw_only=True)
class DistillationRecipe:
    """Bring scores of a query's own candidates near a teacher's, which the rows carry."""

    loss: Literal["kl", "margin_mse", "mse_softmax"] = "kl"
    """Divergence of the softmax, squared error of the margins to the positive, or of the softmax.
    """
    weight: float = bounded(1.0, above=0)
    """Weight of the term."""
    temperature: float | None = bounded(None, above=0)
    """Divides cosines; null: 0.05, and 1 for `margin_mse`."""
    teacher_temperature: float = bounded(1.0, above=0)
    """Divides the teacher's scores: 1 for logits of a reranker, as `temperature` for cosines."""

    @property
    def divisor(self) -> float:
        """`temperature`, or what null stands for."""
        if self.temperature is None:
            return 1.0 if self.loss == "margin_mse" else 0.05
        return self.temperature


@dataclass(frozen=True, kw_only=True)
class IrRecipe:
    """Retrieval."""

    global_batch_size: int = bounded(low=1, required=True)
    """Queries of one step over all ranks."""
    positives: int = bounded(1, low=1)
    """Positive slots P per query; each slot is one cross-entropy."""
    negatives: int = bounded(1, low=0)
    """Hard negatives N per query."""
    temperature: float = bounded(0.02, above=0)
    """Divides cosine similarity."""
    directions: tuple[Direction, ...] = ("query_to_doc",)
    """What stands in the denominator beside the query's passages: `query_to_query` other queries,
    `doc_to_query` queries against the positive, `doc_to_doc` passages against the positive."""
    in_batch: bool | Literal["positives", "positives_only"] = True
    """What other queries lend as candidates: all their passages; `positives`: no hard negatives;
    false: nothing. The query's own hard negatives are candidates too, but under `positives_only`.
    """
    mask: Literal["known", "none"] | MaskRecipe = "known"
    """`known` removes candidates that are known positives of the query from its denominator; a
    section, such as `{margin: 0.1}`, also those that look like positives."""
    hardness: float = bounded(0.0, low=0)
    """alpha: a negative's logit gains alpha times its cosine, a constant for the gradient (Lan et
    al. 2025, arXiv:2503.04812)."""
    hardness_of: Literal["all", "in_batch", "hard"] = "all"
    """Negatives that `hardness` is for: all, those of other queries, or a query's own hard ones."""
    spread_out: float = bounded(0.0, low=0)
    """Weight of the mean squared cosine of different queries, plus that of positives
    (EmbeddingGemma, arXiv:2509.20354)."""
    distillation: DistillationRecipe | None = None
    """Learn a teacher's scores; null: those that rows carry are not read."""
    embedding_distillation: EmbeddingDistillationRecipe | None = None
    """Learn a teacher's vectors; null: `teacher_embeddings` are for `mask.guide` alone."""
    weights: Annotated[Mapping[str, float], NumbersByName(_weights, low=0)] = field(
        default_factory=lambda: defaults(_weights())
    )
    """Weights of the terms; 0 leaves a term out."""


def _teacher_key(settings: IrRecipe) -> str | None:
    if settings.distillation is not None:
        return "tasks.ir.distillation"
    return GUIDE if is_guided(settings) else None


def is_guided(settings: IrRecipe) -> bool:
    """Whether a teacher says which candidates are left out."""
    return isinstance(settings.mask, MaskRecipe) and settings.mask.guide


def _all_weights(settings: IrRecipe) -> Mapping[str, float]:
    taught = settings.distillation
    return {
        **settings.weights,
        "spread_out": settings.spread_out,
        "distillation": 0.0 if taught is None else taught.weight,
        TERM.name: embedding_weight(settings),
    }


def _texts_of_row(settings: IrRecipe) -> Mapping[Side, int]:
    return {"query": 1, "passage": settings.positives + settings.negatives}


def _check(settings: IrRecipe, fail: Fail) -> None:
    """Every query has a candidate besides its positive, and every key is of use."""
    _check_candidates(settings, fail)
    mask, directions = settings.mask, settings.directions
    if isinstance(mask, MaskRecipe) and mask.margin is None:
        if not mask.guide:
            raise fail("tasks.ir.mask", Words("{}"), "margin or guide", "Add one of them.")
        if mask.of != "best":
            expected = "left out where margin is null"
            raise fail("tasks.ir.mask.of", mask.of, expected, "Add margin, or remove it.")
    if "query_to_doc" not in directions or len(set(directions)) < len(directions):
        expected = "query_to_doc and others, each once"
        raise fail("tasks.ir.directions", directions, expected, "Correct the list.")
    _check_infonce(settings, fail)
    key, of = "tasks.ir.hardness_of", settings.hardness_of
    if of != "all" and settings.hardness == 0:
        raise fail(key, of, "all where tasks.ir.hardness is 0", "Set hardness.")
    lacking = _hardens_nothing(settings)
    if lacking is not None:
        raise fail(key, of, *lacking)


def _check_infonce(settings: IrRecipe, fail: Fail) -> None:
    """What belongs to InfoNCE is left as it is where no term reads it."""
    if settings.weights["infonce"] > 0:
        return
    hard = settings.weights["hard_negatives"] > 0
    unread = UNREAD if hard else UNREAD | UNREAD_BY_BOTH
    zero = "tasks.ir.weights.infonce is 0" if hard else "tasks.ir.weights of InfoNCE are 0"
    for name, default in unread.items():
        got = getattr(settings, name)
        if got != getattr(IrRecipe, name):
            shown = Words("a section") if isinstance(got, MaskRecipe) else got
            advice = "Raise the weight, or remove the key."
            raise fail(f"tasks.ir.{name}", shown, f"{default} where {zero}", advice)


def _hardens_nothing(settings: IrRecipe) -> tuple[str, str] | None:
    """What `hardness_of` may be where it names no candidates, and why; None: there are some."""
    of, hard = settings.hardness_of, settings.weights["hard_negatives"] > 0
    if of == "in_batch" and settings.in_batch is False:
        return "all or hard where in_batch is false", "There are no candidates of other queries."
    if of == "in_batch" and settings.weights["infonce"] == 0:
        expected = "all or hard where tasks.ir.weights.infonce is 0"
        return expected, "There are no candidates of other queries."
    if of == "hard" and settings.in_batch == "positives_only" and not hard:
        expected = "all or in_batch where in_batch is positives_only"
        return expected, "Own hard negatives are no candidates."
    if of == "hard" and settings.negatives == 0:
        return "all or in_batch where negatives is 0", "There are no hard negatives."
    return None


def _overridden(settings: IrRecipe, names: frozenset[str]) -> IrRecipe:
    """Settings of a source's steps without what its own candidates leave no place for."""
    if "in_batch" in names and settings.weights["infonce"] == 0:
        # no term asks what other queries lend
        settings = replace(settings, in_batch=True)
    if "in_batch" in names and settings.in_batch is False:
        settings = replace(settings, directions=("query_to_doc",))
    if names & {"in_batch", "negatives"} and _hardens_nothing(settings) is not None:
        settings = replace(settings, hardness=0.0, hardness_of="all")
    return settings


def _check_candidates(settings: IrRecipe, fail: Fail) -> None:
    """A query has candidates besides its positive, and hard negatives are read by some term."""
    key, in_batch = "tasks.ir.in_batch", settings.in_batch
    if settings.global_batch_size == 1 and settings.negatives == 0:
        raise fail(
            "tasks.ir.global_batch_size", 1, "at least 2 where negatives is 0", "Raise either."
        )
    if in_batch is False and len(settings.directions) > 1:
        expected = "true where tasks.ir.directions has more than query_to_doc"
        raise fail(key, in_batch, expected, "The others compare records of a batch.")
    hard = settings.weights["hard_negatives"]
    needing = needs_negatives(settings)
    if needing is not None and settings.negatives == 0:
        expected = f"at least 1 where {needing} needs hard negatives"
        raise fail("tasks.ir.negatives", 0, expected, "Raise it.")
    if in_batch == "positives_only" and settings.negatives and not (hard or _taught(settings)):
        expected = "0 where in_batch is positives_only and no other term reads hard negatives"
        raise fail("tasks.ir.negatives", settings.negatives, expected, "Lower it.")


def needs_negatives(settings: IrRecipe) -> str | None:
    """The key under which rows without hard negatives have no loss; None: they have one."""
    if settings.in_batch is False:
        return "tasks.ir.in_batch"
    others = (settings.weights["infonce"], settings.spread_out, embedding_weight(settings))
    return None if any(others) else next(iter(reads_negatives(settings)), None)


def reads_negatives(settings: IrRecipe) -> tuple[str, ...]:
    """The keys of what rows without hard negatives have no part in."""
    hard = ("tasks.ir.weights.hard_negatives",) if settings.weights["hard_negatives"] else ()
    taught = ("tasks.ir.distillation",) if settings.distillation is not None else ()
    return (*hard, *taught, *((GUIDE,) if is_guided(settings) else ()))


def _compares_queries(settings: IrRecipe) -> str | None:
    """The key under which queries meet queries of other rows; None: passages alone do."""
    if any(one in settings.directions for one in ("query_to_query", "doc_to_query")):
        return "tasks.ir.directions"
    return "tasks.ir.spread_out" if settings.spread_out else None


def _taught(settings: IrRecipe) -> bool:
    """Whether hard negatives are read beside InfoNCE."""
    return settings.distillation is not None or settings.embedding_distillation is not None


KIND = TaskKind(
    name="ir",
    label="retrieval",
    settings=IrRecipe,
    terms=TERMS,
    loss_unit="nats",
    has_corpus=True,
    texts_of_row=_texts_of_row,
    prompts={"query": "query", "document": "passage"},
    weights_of=_all_weights,
    teacher_key=_teacher_key,
    guide_key="mask.guide",
    is_guided=is_guided,
    negatives_key=needs_negatives,
    compares_queries=_compares_queries,
    negatives_keys=reads_negatives,
    overridden=_overridden,
    check=_check,
)
EVAL_KIND = EvalKind(
    name="ir",
    label="retrieval",
    layout="a BEIR folder",
    metrics={"ndcg_at_10": "nDCG@10", "mrr_at_10": "MRR@10", "recall_at_100": "Recall@100"},
    prompts={"query": ("Retrieval-query", "query"), "passage": ("Retrieval-document", "document")},
    has_corpus=True,
    hub_task="information-retrieval",
)
