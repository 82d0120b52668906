"""Pairs of summaries with a silver score of how alike the documented things are.

Nobody judged these pairs: the score is derived, never shown the summaries, and so called silver.
It is the mean of two numbers between 0 and 1:

- place: 1 in the same class, 0.75 in the same module, 0.5 in the same subpackage, 0.25 in the same
  package, 0 otherwise;
- content: the square root of the cosine between the TF-IDF vectors of what the model does not see,
  the rest of the two docstrings and the parameter names. The root spreads out the small cosines.

Pairs are drawn from seven kinds, so that every degree is there: same class, module, subpackage,
package, same name elsewhere, nearest in content, and any two. It must not read or write files.
"""

import random
import re
from collections import Counter, defaultdict
from collections.abc import Hashable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from scipy import sparse

from demo.docs import Doc

NUM_NEAREST = 5
"""A nearest-in-content partner is drawn among so many."""
NUM_TRIES = 20
"""Draws per wanted pair before a kind is given up as too small."""
WORD = re.compile(r"[a-z]{2,}")


@dataclass(frozen=True, slots=True, kw_only=True)
class SilverPair:
    """Two docs and how alike they are."""

    first: int
    """Row of one doc."""
    second: int
    """Row of the other, above `first`."""
    score: float
    """0..1."""


def place_score(one: Doc, other: Doc) -> float:
    """How near two docs stand: 0, 0.25, 0.5, 0.75 or 1."""
    if one.module == other.module:
        return 1.0 if one.owner and one.owner == other.owner else 0.75
    if one.package != other.package:
        return 0.0
    return 0.5 if subpackage(one) == subpackage(other) else 0.25


def subpackage(doc: Doc) -> tuple[str, ...]:
    """First two parts of a module's dotted path."""
    return tuple(doc.module.split(".")[:2])


def content_vectors(docs: Sequence[Doc]) -> sparse.csr_matrix:
    """TF-IDF vectors of texts and parameter names [n, words], float64, norm 1 or 0."""
    counts = [
        Counter(WORD.findall(f"{doc.text} {' '.join(doc.parameters)}".lower())) for doc in docs
    ]
    num_docs_with = Counter(word for count in counts for word in count)
    column = {word: at for at, word in enumerate(w for w, n in num_docs_with.items() if n > 1)}
    entries = [
        (row, column[word], (1 + np.log(times)) * np.log(len(docs) / num_docs_with[word]))
        for row, count in enumerate(counts)
        for word, times in count.items()
        if word in column
    ]
    rows, columns, values = (np.array(part) for part in zip(*entries, strict=True))
    matrix = sparse.csr_matrix((values, (rows, columns)), shape=(len(docs), len(column)))
    lengths = np.sqrt(np.asarray(matrix.multiply(matrix).sum(axis=1)).ravel())
    return sparse.csr_matrix(sparse.diags(1 / np.maximum(lengths, 1e-12)) @ matrix)


def group_keys(doc: Doc) -> dict[str, Hashable]:
    """The groups a doc belongs to, by kind of pair."""
    keys: dict[str, Hashable] = {
        "module": doc.module,
        "subpackage": subpackage(doc),
        "package": doc.package,
        "name": doc.name,
        "any": None,
    }
    return keys | ({"class": (doc.module, doc.owner)} if doc.owner else {})


def grouped_pairs(
    docs: Sequence[Doc], per_kind: int, rng: random.Random
) -> Iterator[tuple[int, int]]:
    """Pairs of rows that share a group, up to `per_kind` of each kind; may repeat."""
    groups: dict[str, dict[Hashable, list[int]]] = defaultdict(lambda: defaultdict(list))
    for row, doc in enumerate(docs):
        for kind, key in group_keys(doc).items():
            groups[kind][key].append(row)
    for kind in sorted(groups):
        # A group is drawn through one of its docs, so large groups come up more often.
        found = 0
        for _ in range(per_kind * NUM_TRIES):
            row = rng.randrange(len(docs))
            key = group_keys(docs[row]).get(kind, ...)
            partner = rng.choice(groups[kind][key]) if key is not ... else row
            if partner != row and found < per_kind:
                found += 1
                yield row, partner


def nearest_pairs(
    vectors: sparse.csr_matrix, count: int, rng: random.Random
) -> Iterator[tuple[int, int]]:
    """Random rows, each with one of the rows nearest to it in content."""
    rows = rng.sample(range(vectors.shape[0]), min(count, vectors.shape[0]))
    cosines = sparse.csr_matrix(vectors[rows] @ vectors.T)
    for at, row in enumerate(rows):
        start, stop = cosines.indptr[at], cosines.indptr[at + 1]
        best = np.argsort(-cosines.data[start:stop], kind="stable")[: NUM_NEAREST + 1]
        near = [int(cosines.indices[start + b]) for b in best if cosines.indices[start + b] != row]
        if near:
            yield row, rng.choice(near)


def silver_pairs(docs: Sequence[Doc], per_kind: int, seed: int) -> list[SilverPair]:
    """Distinct scored pairs of docs whose summaries differ, in random order.

    Args:
        docs: of one side of the split.
        per_kind: pairs drawn of each kind; repeats and equal summaries are left out afterwards.
        seed: of the drawing.
    """
    rng = random.Random(seed)
    vectors = content_vectors(docs)
    drawn = [*grouped_pairs(docs, per_kind, rng), *nearest_pairs(vectors, per_kind, rng)]
    pairs = sorted(
        {
            (min(pair), max(pair))
            for pair in drawn
            if docs[pair[0]].summary.lower() != docs[pair[1]].summary.lower()
        }
    )
    rng.shuffle(pairs)
    first, second = np.array(pairs).T
    cosines = np.asarray(vectors[first].multiply(vectors[second]).sum(axis=1)).ravel()
    content = np.sqrt(np.clip(cosines, 0, 1))
    return [
        SilverPair(
            first=one,
            second=other,
            score=round((place_score(docs[one], docs[other]) + float(like)) / 2, 4),
        )
        for (one, other), like in zip(pairs, content, strict=True)
    ]
