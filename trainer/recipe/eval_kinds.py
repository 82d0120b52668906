"""The one table of evaluation kinds: what a held-out set may be, and what its metrics are called.

A kind need not be a task that can be trained. It must not know how a set is read or scored: each
of these rooms has a table of its own, by the same names.
"""

from trainer.recipe import ir, sts
from trainer.recipe.eval_kind import EvalKind
from trainer.recipe.kind import TaskKind
from trainer.recipe.tasks import TASKS

CLASSIFICATION = EvalKind(
    name="classification",
    label="classification",
    layout="a folder with train.jsonl and test.jsonl of {text, label}",
    metrics={"accuracy": "Accuracy", "f1_macro": "F1 (macro)"},
    prompts={"query": ("Classification",)},
    split="test",
    hub_task="text-classification",
)
CLUSTERING = EvalKind(
    name="clustering",
    label="clustering",
    layout="a file of {text, label}",
    metrics={"v_measure": "V-measure"},
    prompts={"query": ("Clustering",)},
    hub_task="clustering",
)
PAIR_CLASSIFICATION = EvalKind(
    name="pair_classification",
    label="pair classification",
    layout="a file of {text1, text2, label}, the label 0 or 1",
    metrics={"average_precision": "Average precision"},
    prompts={"query": ("PairClassification",)},
    hub_task="binary-classification",
)
RERANKING = EvalKind(
    name="reranking",
    label="reranking",
    layout="a file of {query, positives, negatives}",
    metrics={"map": "MAP", "mrr": "MRR", "ndcg_at_10": "nDCG@10"},
    prompts={"query": ("Reranking-query", "query"), "passage": ("Reranking-document", "document")},
    hub_task="reranking",
)
BITEXT = EvalKind(
    name="bitext",
    label="bitext mining",
    layout="a file of {text1, text2}",
    metrics={"f1": "F1"},
    prompts={"query": ("BitextMining",)},
    hub_task="translation",
)

EVAL_KINDS: dict[str, EvalKind] = {
    kind.name: kind
    for kind in (
        ir.EVAL_KIND,
        sts.EVAL_KIND,
        CLASSIFICATION,
        CLUSTERING,
        PAIR_CLASSIFICATION,
        RERANKING,
        BITEXT,
    )
}
"""Kinds by name, in the order of charts and tables."""

MEAN = "mean"
"""The mean over all sets of each set's main metric; stands in `eval.best_metric`."""
MEAN_OF_KINDS = "mean_of_kinds"
"""The mean over kinds of the mean over the sets of a kind; stands there too."""
MEANS = {MEAN: "mean of all sets", MEAN_OF_KINDS: "mean of kinds"}
"""MTEB's two means with their labels."""


def eval_kind_names() -> tuple[str, ...]:
    """Names of all kinds."""
    return tuple(EVAL_KINDS)


def kind_of_metric(metric: str) -> EvalKind | None:
    """The kind whose main metric it is, or else the first that has it; None for an unknown one."""
    kinds = EVAL_KINDS.values()
    main = (kind for kind in kinds if metric == kind.main_metric)
    return next(main, None) or next((kind for kind in kinds if metric in kind.metrics), None)


def metric_label(metric: str) -> str:
    """A metric as charts and tables name it; an unknown one as it is."""
    kind = kind_of_metric(metric)
    return metric if kind is None else kind.metrics[metric]


def row_kind(name: str) -> TaskKind | EvalKind:
    """What says of rows whether they have scores and may stand in a BEIR folder.

    Args:
        name: of a task or of an evaluation kind; where both have it, they agree.
    """
    return EVAL_KINDS[name] if name in EVAL_KINDS else TASKS[name]
