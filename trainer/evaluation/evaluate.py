"""Score a held-out set with any function that embeds texts; it must not know models or ranks.

Letters: Q queries, D embedding size, n texts or pairs.
"""

import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

import numpy as np
import torch
from torch import Tensor

from trainer.data.evalsets import IrEvalSet, StsEvalSet
from trainer.evaluation.geometry import SAMPLE, Geometry, describe_geometry
from trainer.evaluation.metrics import (
    RECALL_CUT,
    pearson,
    ranking_metrics,
    spearman,
    top_k_streamed,
)

logger = logging.getLogger(__name__)

Side = Literal["query", "passage"]

BLOCK_TEXTS = 8_192
"""Documents embedded at a time; bounds memory whatever the corpus."""
SIMILAR, DISSIMILAR = 0.8, 0.2
"""Gold scores from which on, and up to which, STS pairs are drawn as positive and negative."""
HARDEST = 10
"""Unjudged or irrelevant documents of each query, the best ranked ones, drawn as negatives."""


class Embed(Protocol):
    """Embeds texts as in training; collective where the model is sharded."""

    def __call__(self, texts: Sequence[str], *, side: Side) -> Tensor:
        """Vectors [n, D], float32, norm 1, of all texts, equal on all ranks."""
        ...


@dataclass(frozen=True)
class SetReport:
    """What is known of a model on one set."""

    metrics: dict[str, float]
    """STS: `spearman`, `pearson`. IR: `ndcg_at_10`, `mrr_at_10`, `recall_at_100`."""
    geometry: Geometry
    """Where its vectors lie."""


def evaluate_set(held_out: StsEvalSet | IrEvalSet, embed: Embed) -> dict[str, float]:
    """Metrics of a set.

    Args:
        held_out: pairs, or queries with a corpus and judgements.
        embed: called with the same texts in the same order on all ranks.

    Returns:
        STS: `spearman` and `pearson` of the cosines. IR: `ndcg_at_10`, `mrr_at_10` and
        `recall_at_100` of exact search over the whole corpus.
    Collective: if `embed` is.
    """
    return examine_set(held_out, embed).metrics


def examine_set(held_out: StsEvalSet | IrEvalSet, embed: Embed) -> SetReport:
    """Metrics of a set and the geometry of its vectors, which are embedded once.

    Texts whose vectors are not finite count as similar to nothing (cosine 0), and are told.

    Args:
        held_out: pairs, or queries with a corpus and judgements.
        embed: called with the same texts in the same order on all ranks.

    Collective: if `embed` is.
    """
    finite = FiniteEmbed(embed)
    if isinstance(held_out, StsEvalSet):
        report = _examine_sts(held_out, finite)
    else:
        report = _examine_ir(held_out, finite)
    if finite.num_bad:
        logger.warning(
            "evaluation: %d of %d texts have embeddings that are not finite; they count as similar "
            "to nothing. The first: %.80r",
            finite.num_bad,
            finite.num_texts,
            finite.first_bad,
        )
    return report


class FiniteEmbed:
    """Embeds, with zeros in place of vectors that are not finite."""

    def __init__(self, embed: Embed) -> None:
        """Nothing was embedded yet."""
        self._embed = embed
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


def _examine_sts(held_out: StsEvalSet, embed: Embed) -> SetReport:
    """Correlations of cosine with the gold score; texts that occur twice are embedded once."""
    texts = list(dict.fromkeys([*held_out.text1, *held_out.text2]))
    place = {text: index for index, text in enumerate(texts)}
    distinct = embed(texts, side="query")
    first = distinct[[place[text] for text in held_out.text1]]
    second = distinct[[place[text] for text in held_out.text2]]
    cosine = (first * second).sum(dim=1)
    values, gold = cosine.cpu().numpy(), torch.tensor(held_out.score, device=cosine.device)
    sample = distinct[_spread(len(distinct))]
    geometry = describe_geometry(
        sample,
        positive=cosine[gold >= SIMILAR],
        negative=cosine[gold <= DISSIMILAR],
        random=_crossed(sample, sample),
    )
    metrics = {
        "spearman": spearman(values, held_out.score),
        "pearson": pearson(values, held_out.score),
    }
    return SetReport(metrics, geometry)


def _examine_ir(held_out: IrEvalSet, embed: Embed) -> SetReport:
    """Rank the corpus for each query."""
    queries = embed(held_out.queries, side="query")
    k = min(RECALL_CUT, len(held_out.corpus_ids))
    chosen = _chosen_rows(held_out)
    kept = KeptRows(chosen)
    scores, rows = top_k_streamed(queries, kept.watching(_corpus_blocks(held_out, embed)), k)
    top_ids = {
        query: [held_out.corpus_ids[row] for row in best]
        for query, best in zip(held_out.query_ids, rows.tolist(), strict=True)
    }
    documents = kept.vectors()
    geometry = describe_geometry(
        documents[: chosen.num_spread],
        positive=_positive_cosines(queries, documents, chosen),
        negative=_hardest(held_out, top_ids, scores),
        random=_crossed(queries, documents[: chosen.num_spread]),
    )
    return SetReport(ranking_metrics(top_ids, held_out.qrels), geometry)


@dataclass(frozen=True)
class ChosenRows:
    """Documents whose vectors are kept for the geometry."""

    rows: list[int]
    """Corpus rows: first those spread over the corpus, then those judged relevant."""
    num_spread: int
    """How many are spread."""
    pairs: list[tuple[int, int]]
    """Query number and place in `rows` of relevant documents."""


def _chosen_rows(held_out: IrEvalSet) -> ChosenRows:
    """Up to SAMPLE documents of each kind; the same on all ranks."""
    spread = _spread(len(held_out.corpus_ids)).tolist()
    relevant = [
        (number, document)
        for number, query in enumerate(held_out.query_ids)
        for document, gain in held_out.qrels[query].items()
        if gain > 0
    ]
    relevant = [relevant[index] for index in _spread(len(relevant)).tolist()]
    wanted = {document for _, document in relevant}
    row_of = {name: row for row, name in enumerate(held_out.corpus_ids) if name in wanted}
    found = [(number, row_of[document]) for number, document in relevant if document in row_of]
    rows = [*spread, *(row for _, row in found)]
    pairs = [(number, len(spread) + index) for index, (number, _) in enumerate(found)]
    return ChosenRows(rows, len(spread), pairs)


class KeptRows:
    """Copies chosen rows out of blocks that pass by."""

    def __init__(self, chosen: ChosenRows) -> None:
        """Nothing is kept yet."""
        self._rows = np.asarray(chosen.rows, dtype=np.int64)
        self._parts: list[tuple[np.ndarray, Tensor]] = []

    def watching(self, blocks: Iterator[Tensor]) -> Iterator[Tensor]:
        """The blocks themselves, unchanged."""
        start = 0
        for block in blocks:
            places = np.flatnonzero((self._rows >= start) & (self._rows < start + len(block)))
            picked = torch.from_numpy(self._rows[places] - start).to(block.device)
            self._parts.append((places, block[picked]))
            yield block
            start += len(block)

    def vectors(self) -> Tensor:
        """Chosen rows in the order chosen [n, D]."""
        order = np.argsort(np.concatenate([places for places, _ in self._parts]))
        stacked = torch.cat([vectors for _, vectors in self._parts])
        return stacked[torch.from_numpy(order).to(stacked.device)]


def _positive_cosines(queries: Tensor, documents: Tensor, chosen: ChosenRows) -> Tensor:
    """Cosines of queries with relevant documents [n]."""
    numbers = [number for number, _ in chosen.pairs]
    places = [place for _, place in chosen.pairs]
    return (queries[numbers] * documents[places]).sum(dim=1)


def _hardest(held_out: IrEvalSet, top_ids: Mapping[str, Sequence[str]], scores: Tensor) -> Tensor:
    """Scores of the best documents of each query that are not judged relevant [n]."""
    places = []
    for number, query in enumerate(held_out.query_ids):
        gains = held_out.qrels[query]
        others = [i for i, one in enumerate(top_ids[query]) if gains.get(one, 0) <= 0]
        places += [(number, index) for index in others[:HARDEST]]
    rows, columns = [row for row, _ in places], [column for _, column in places]
    return scores[rows, columns]


def _spread(count: int) -> np.ndarray:
    """At most SAMPLE numbers below `count`, evenly spread, ascending."""
    return np.unique(np.linspace(0, count - 1, min(count, SAMPLE)).round().astype(np.int64))


def _shuffled(vectors: Tensor) -> Tensor:
    """The rows in an order that has nothing to do with that of the file; always the same one."""
    order = torch.randperm(len(vectors), generator=torch.Generator().manual_seed(0))
    return vectors[order.to(vectors.device)]


def _crossed(queries: Tensor, documents: Tensor) -> Tensor:
    """Cosines of documents with queries taken in turn, pairs made by chance [n]."""
    turns = torch.arange(len(documents), device=queries.device) % len(queries)
    return (queries[turns] * _shuffled(documents)).sum(dim=1)


def _corpus_blocks(held_out: IrEvalSet, embed: Embed) -> Iterator[Tensor]:
    """Vectors of consecutive documents, a block at a time."""
    for start in range(0, len(held_out.corpus), BLOCK_TEXTS):
        stop = min(start + BLOCK_TEXTS, len(held_out.corpus))
        yield embed([held_out.corpus[i] for i in range(start, stop)], side="passage")
