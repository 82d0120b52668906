"""Examine a model on labelled texts: classifiers from few shots, and clusterings.

Letters: n texts, D embedding size, m sampled vectors.
"""

from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor

from trainer.data.labelled import ClassificationSet, ClusteringSet
from trainer.data.records import Label
from trainer.evaluation.examine import (
    FiniteEmbed,
    SetReport,
    crossed,
    embed_blocks,
    prefixes_only,
    spread,
)
from trainer.evaluation.geometry import Geometry, describe_geometry
from trainer.evaluation.label_metrics import (
    classification_scores,
    clustering_draws,
    clustering_score,
    few_shot_rows,
)
from trainer.objectives.prefixes import Prefix, cut


def examine_classification(held_out: ClassificationSet, embed: FiniteEmbed) -> SetReport:
    """Accuracy and F1 of classifiers that learn from a few texts of each label.

    Held are the vectors of the texts that some classifier learns from, and those of the test.
    """
    train, test = held_out.train, held_out.test
    known, labels = _numbers(train.labels)
    expected = np.searchsorted(known, np.array(test.labels, object))
    experiments = few_shot_rows(labels)
    drawn = np.unique(np.concatenate(experiments))
    learnt = embed_blocks(embed, [train.texts[row] for row in drawn], side="query")
    scored = embed_blocks(embed, test.texts, side="query")

    def score(size: int) -> dict[str, float]:
        vectors, others = _prefix(learnt, size), _prefix(scored, size)
        samples = ((vectors[np.searchsorted(drawn, rows)], labels[rows]) for rows in experiments)
        return classification_scores(samples, others, expected)

    return _report(scored, expected, score, embed.sizes(scored))


def examine_clustering(held_out: ClusteringSet, embed: FiniteEmbed) -> SetReport:
    """V-measure of clusterings of drawn texts, into as many clusters as the set has labels.

    Held are the vectors of the texts that are drawn.
    """
    texts = held_out.rows.texts
    known, labels = _numbers(held_out.rows.labels)
    draws = clustering_draws(len(texts))
    drawn = np.unique(np.concatenate(draws))
    vectors = embed_blocks(embed, [texts[row] for row in drawn], side="query")

    def score(size: int) -> dict[str, float]:
        prefix = _prefix(vectors, size)
        samples = ((prefix[np.searchsorted(drawn, rows)], labels[rows]) for rows in draws)
        return clustering_score(samples, num_labels=len(known))

    return _report(vectors, labels[drawn], score, embed.sizes(vectors))


def _numbers(labels: Sequence[Label]) -> tuple[np.ndarray, np.ndarray]:
    """All labels in order [k], objects, and the place of each text's label among them [n]."""
    # objects: numpy's own texts end at the last character that is not NUL
    known, numbers = np.unique(np.array(labels, object), return_inverse=True)
    return known, numbers


def _prefix(vectors: Tensor, size: int) -> np.ndarray:
    """Normalised prefixes [n, size] of vectors [n, D] on the host."""
    return cut(vectors, Prefix(size)).numpy()


def _report(
    vectors: Tensor,
    labels: np.ndarray,
    score: Callable[[int], dict[str, float]],
    sizes: Sequence[int],
) -> SetReport:
    """Metrics by size, the whole vector first, and geometry of vectors [n, D] with labels [n]."""
    metrics = {size: score(size) for size in sizes}
    chosen = spread(len(vectors))
    geometry = labelled_geometry(vectors[chosen], torch.from_numpy(labels[chosen]))
    return SetReport(metrics[sizes[0]], geometry, prefixes_only(metrics))


def labelled_geometry(vectors: Tensor, labels: Tensor) -> Geometry:
    """Where vectors [m, D] with labels [m], integers, lie.

    Positive pairs are neighbours within a label, in the order given; negative ones each vector with
    the nearest of another label.
    """
    order = labels.argsort(stable=True)
    sorted_vectors, same = vectors[order], labels[order][1:] == labels[order][:-1]
    neighbours = (sorted_vectors[1:] * sorted_vectors[:-1]).sum(dim=1)
    alike = labels[:, None] == labels[None, :]
    nearest = (vectors @ vectors.T).masked_fill(alike, -torch.inf).amax(dim=1)
    return describe_geometry(
        vectors,
        positive=neighbours[same],
        negative=nearest[nearest.isfinite()],
        random=crossed(vectors, vectors),
    )
