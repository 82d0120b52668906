"""What an evaluation of any kind is made of: a function that embeds, a report, samples of vectors.

It must not know kinds, models or ranks. Letters: Q queries, D embedding size, n texts or pairs.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from trainer.evaluation.geometry import SAMPLE, Geometry
from trainer.recipe.kind import Side

BLOCK_TEXTS = 8_192
"""Texts embedded at a time, so that memory is bounded whatever the set."""


class Embed(Protocol):
    """Embeds texts as in training; collective where the model is sharded."""

    def __call__(self, texts: Sequence[str], *, side: Side) -> Tensor:
        """Vectors [n, D], float32, norm 1, of all texts, equal on all ranks."""
        ...


@dataclass(frozen=True)
class SetReport:
    """What is known of a model on one set."""

    metrics: dict[str, float]
    """Those of the kind, the main one first."""
    geometry: Geometry
    """Where its vectors lie."""
    dims: Mapping[int, dict[str, float]] = field(default_factory=dict)
    """Metrics of normalised prefixes by their size, descending, the whole vector first; empty where
    no prefix was asked for, or the kind has no such scores."""


class FiniteEmbed:
    """Embeds, with zeros in place of vectors that are not finite, and knows which prefixes count.

    An examiner that scores no prefixes takes it for a plain `Embed`.
    """

    def __init__(self, embed: Embed, dims: Sequence[int] = ()) -> None:
        """Nothing was embedded yet."""
        self._embed = embed
        self._dims = dims
        self.num_texts = 0
        """Embedded so far."""
        self.num_bad = 0
        """Of these, not finite."""
        self.first_bad = ""
        """Text of the first of them."""

    def __call__(self, texts: Sequence[str], *, side: Side) -> Tensor:
        """Vectors [n, D], float32, norm 1 or 0."""
        vectors = self._embed(texts, side=side)
        bad = ~vectors.isfinite().all(dim=1)
        self.num_texts += len(texts)
        if bad.any():
            places = bad.nonzero().flatten().tolist()
            self.first_bad = self.first_bad or texts[places[0]]
            self.num_bad += len(places)
            vectors = vectors.masked_fill(bad[:, None], 0.0)
        return vectors

    def sizes(self, vectors: Tensor) -> list[int]:
        """D of some vectors [n, D], and the prefixes below it that are to be scored, descending."""
        whole = vectors.shape[1]
        return [whole, *sorted({dim for dim in self._dims if dim < whole}, reverse=True)]


def embed_blocks(embed: Embed, texts: Sequence[str], *, side: Side) -> Tensor:
    """Vectors of all texts on the host [n, D], of which the device holds a block at a time."""
    starts = range(0, len(texts), BLOCK_TEXTS)
    blocks = [embed(texts[start : start + BLOCK_TEXTS], side=side).cpu() for start in starts]
    return torch.cat(blocks)


def prefixes_only(metrics: Mapping[int, dict[str, float]]) -> Mapping[int, dict[str, float]]:
    """Metrics by size, or none where the whole vector stands alone."""
    return metrics if len(metrics) > 1 else {}


def spread(count: int) -> np.ndarray:
    """At most SAMPLE numbers below `count`, evenly spread, ascending."""
    return np.unique(np.linspace(0, count - 1, min(count, SAMPLE)).round().astype(np.int64))


def _shuffled(vectors: Tensor) -> Tensor:
    """The rows in an order that has nothing to do with that of the file; always the same one."""
    order = torch.randperm(len(vectors), generator=torch.Generator().manual_seed(0))
    return vectors[order.to(vectors.device)]


def crossed(queries: Tensor, documents: Tensor) -> Tensor:
    """Cosines of documents with queries taken in turn, pairs made by chance [n]."""
    turns = torch.arange(len(documents), device=queries.device) % len(queries)
    return (queries[turns] * _shuffled(documents)).sum(dim=1)
