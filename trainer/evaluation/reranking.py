"""Examine a model on queries with candidates of their own, ranked by cosine.

Letters: Q queries, D embedding size, n candidates.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from statistics import fmean

import pytrec_eval
import torch
from torch import Tensor

from trainer.data.held_out_records import Candidates
from trainer.data.reranking import RerankingSet
from trainer.evaluation.examine import (
    BLOCK_TEXTS,
    FiniteEmbed,
    SetReport,
    crossed,
    prefixes_only,
    spread,
)
from trainer.evaluation.geometry import describe_geometry
from trainer.evaluation.metrics import NDCG_CUT
from trainer.objectives.prefixes import Prefix, cut

MEASURES = {"map_cut_1000": "map", "recip_rank": "mrr", f"ndcg_cut_{NDCG_CUT}": "ndcg_at_10"}
"""trec_eval's names, and ours."""


@dataclass
class _Kept:
    """What the geometry needs, gathered from block to block."""

    queries: list[Tensor] = field(default_factory=list)
    """Vectors of chosen queries [D]."""
    documents: dict[str, Tensor] = field(default_factory=dict)
    """Vectors of their first positives [D], by text."""
    positive: list[Tensor] = field(default_factory=list)
    """Cosines with positives [any]."""
    negative: list[Tensor] = field(default_factory=list)
    """Cosines with negatives [any]."""


def examine_reranking(held_out: RerankingSet, embed: FiniteEmbed) -> SetReport:
    """Metrics of the order of each query's candidates; blocks of whole queries are held."""
    answered = [index for index, row in enumerate(held_out.rows) if row.positives]
    chosen, kept = {answered[at] for at in spread(len(answered)).tolist()}, _Kept()
    by_size: dict[int, list[dict[str, float]]] = {}
    for start, rows in _blocks(held_out.rows):
        queries = embed([row.query for row in rows], side="query")
        texts = list(dict.fromkeys(t for row in rows for t in (*row.positives, *row.negatives)))
        place = {text: index for index, text in enumerate(texts)}
        documents = embed(texts, side="passage")
        for size in embed.sizes(queries):
            q, d = cut(queries, Prefix(size)), cut(documents, Prefix(size))
            scores = [_cosines(q[i], d, row, place) for i, row in enumerate(rows)]
            by_size.setdefault(size, []).extend(ranking_values(rows, scores))
            if size == queries.shape[1]:
                kept.positive += [s[: len(r.positives)] for r, s in zip(rows, scores, strict=True)]
                kept.negative += [s[len(r.positives) :] for r, s in zip(rows, scores, strict=True)]
        for index, row in enumerate(rows):
            if start + index in chosen:
                kept.queries.append(queries[index])
                kept.documents.setdefault(row.positives[0], documents[place[row.positives[0]]])
    metrics = {
        size: {name: fmean(one[name] for one in values) for name in MEASURES.values()}
        for size, values in by_size.items()
    }
    sample = torch.stack(list(kept.documents.values()))
    geometry = describe_geometry(
        sample,
        positive=torch.cat(kept.positive),
        negative=torch.cat(kept.negative),
        random=crossed(torch.stack(kept.queries), sample),
    )
    return SetReport(metrics[max(metrics)], geometry, prefixes_only(metrics))


def _blocks(rows: Sequence[Candidates]) -> Iterator[tuple[int, Sequence[Candidates]]]:
    """First row and rows of consecutive blocks of at most BLOCK_TEXTS candidates, or one row."""
    start, count = 0, 0
    for index, row in enumerate(rows):
        own = len(row.positives) + len(row.negatives)
        if index > start and count + own > BLOCK_TEXTS:
            yield start, rows[start:index]
            start, count = index, 0
        count += own
    yield start, rows[start:]


def _cosines(query: Tensor, documents: Tensor, row: Candidates, place: Mapping[str, int]) -> Tensor:
    """Cosines of a query [D] with its candidates, positives first [n], on the host."""
    own = documents[[place[text] for text in (*row.positives, *row.negatives)]]
    # row by row: a product of matrices may give equal rows scores that differ in the last bit
    return (own * query).sum(dim=1).cpu()


def ranking_values(rows: Sequence[Candidates], scores: Sequence[Tensor]) -> list[dict[str, float]]:
    """Average precision, reciprocal rank and nDCG@10 of each query, by trec_eval's own code.

    Of equal scores the negatives come first, as in MTEB: trec_eval orders them by falling id.

    Args:
        rows: queries with their candidates.
        scores: of each row's candidates, positives first [n].

    Returns:
        `map`, `mrr` and `ndcg_at_10` of each query, 0 to 1.
    """
    judged, run = {}, {}
    for number, (row, values) in enumerate(zip(rows, scores, strict=True)):
        positives = [f"a{place:05d}" for place in range(len(row.positives))]
        negatives = [f"n{place:05d}" for place in range(len(row.negatives))]
        missed = {f"m{place:05d}": gain for place, gain in enumerate(row.missed)}
        gains = zip(positives, row.gains or [1] * len(positives), strict=True)
        judged[str(number)] = dict(gains) | missed | dict.fromkeys(negatives, 0)
        run[str(number)] = dict(zip((*positives, *negatives), values.tolist(), strict=True))
    found = pytrec_eval.RelevanceEvaluator(judged, set(MEASURES)).evaluate(run)
    return [
        {name: found[str(number)][measure] for measure, name in MEASURES.items()}
        for number in range(len(rows))
    ]
