"""Scores of vectors with labels by MTEB's definitions; it must not embed or read files.

Sample counts and seeds are the defaults of mteb 2.26, and the draws are made by the generators that
it makes them with, so that the same vectors give the same scores. Labels are numbers in the order
of the labels themselves. Letters: n texts, m texts of one experiment, D embedding size.
Reference: Muennighoff et al. 2022, arXiv:2210.07316, section 3.2; Enevoldsen et al. 2025,
arXiv:2502.13595, for clusterings of draws.
"""

import random
import warnings
from collections import Counter
from collections.abc import Iterable
from statistics import fmean

import numpy as np
from sklearn.cluster import MiniBatchKMeans
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import accuracy_score, f1_score, v_measure_score

SEED = 42
"""Of every draw, classifier and clustering."""
NUM_EXPERIMENTS = 10
"""Classifiers, or clusterings, whose scores are averaged."""
SHOTS = 8
"""Texts of each label that a classifier learns from, or fewer where there are no more."""
MOST_ITERATIONS = 100
"""Of L-BFGS for one classifier."""
DRAWN_TEXTS = 16_384
"""Texts of one clustering, drawn with repeats."""
CLUSTERING_BATCH = 512
"""Texts of one step of k-means."""


def few_shot_rows(labels: np.ndarray) -> list[np.ndarray]:
    """The rows that each classifier learns from: the first SHOTS of each label in a random order.

    Args:
        labels: of the rows to draw from [n], integers.

    Returns:
        The rows of NUM_EXPERIMENTS classifiers, each [m], int64, without repeats.
    """
    order, numbers = list(range(len(labels))), labels.tolist()
    experiments = []
    for _ in range(NUM_EXPERIMENTS):
        # the same permutation, of the order that the experiment before left
        np.random.RandomState(SEED).shuffle(order)
        seen: Counter[int] = Counter()
        rows = []
        for row in order:
            if seen[numbers[row]] < SHOTS:
                seen[numbers[row]] += 1
                rows.append(row)
        experiments.append(np.array(rows))
    return experiments


def classification_scores(
    experiments: Iterable[tuple[np.ndarray, np.ndarray]], test: np.ndarray, labels: np.ndarray
) -> dict[str, float]:
    """Mean scores of logistic regressions, one an experiment.

    Args:
        experiments: vectors [m, D], float32, and labels [m], integers, that each classifier learns
            from; at least two labels.
        test: vectors to classify [n, D], float32.
        labels: their labels [n], integers.

    Returns:
        `accuracy` and `f1_macro`, the mean over labels of their F1, each 0 to 1.
    """
    accuracies, f1s = [], []
    for vectors, learnt in experiments:
        classifier = LogisticRegression(max_iter=MOST_ITERATIONS, random_state=SEED)
        with warnings.catch_warnings():
            # a few iterations more change no score, and MTEB has no more either
            warnings.simplefilter("ignore", ConvergenceWarning)
            predicted = classifier.fit(vectors, learnt).predict(test)
        accuracies.append(float(accuracy_score(labels, predicted)))
        f1s.append(float(f1_score(labels, predicted, average="macro")))
    return {"accuracy": fmean(accuracies), "f1_macro": fmean(f1s)}


def clustering_draws(num_texts: int) -> list[np.ndarray]:
    """The rows of each clustering, drawn with repeats.

    Args:
        num_texts: n, at least 1.

    Returns:
        The rows of NUM_EXPERIMENTS clusterings, each [DRAWN_TEXTS], int64.
    """
    choice = random.Random(SEED)
    draws = (choice.choices(range(num_texts), k=DRAWN_TEXTS) for _ in range(NUM_EXPERIMENTS))
    return [np.array(rows) for rows in draws]


def clustering_score(
    draws: Iterable[tuple[np.ndarray, np.ndarray]], *, num_labels: int
) -> dict[str, float]:
    """Mean V-measure of clusterings by mini-batch k-means.

    Args:
        draws: vectors [m, D], float32, and labels [m], integers, of each clustering.
        num_labels: clusters that are looked for, at least 2.

    Returns:
        `v_measure`, 0 to 1.
    Reference: Rosenberg and Hirschberg 2007, "V-Measure".
    """
    k_means = MiniBatchKMeans(
        n_clusters=num_labels,
        batch_size=CLUSTERING_BATCH,
        init="k-means++",
        n_init=1,
        random_state=SEED,
    )
    scores = []
    for vectors, labels in draws:
        with warnings.catch_warnings():
            # fewer different vectors than clusters
            warnings.simplefilter("ignore", ConvergenceWarning)
            found = k_means.fit_predict(vectors)
        scores.append(float(v_measure_score(labels, found)))
    return {"v_measure": fmean(scores)}
