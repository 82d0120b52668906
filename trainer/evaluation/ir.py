"""Examine a model on judged queries: exact search of the whole corpus, embedded in blocks.

Letters: Q queries, D embedding size, n documents or pairs, k documents kept for a query.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from trainer.data.ir import IrEvalSet
from trainer.evaluation.examine import (
    BLOCK_TEXTS,
    Embed,
    FiniteEmbed,
    SetReport,
    crossed,
    prefixes_only,
    spread,
)
from trainer.evaluation.geometry import describe_geometry
from trainer.evaluation.metrics import RECALL_CUT, ranking_metrics
from trainer.evaluation.search import TopK
from trainer.objectives.prefixes import Prefix, cut

HARDEST = 10
"""Unjudged or irrelevant documents of each query, the best ranked ones, drawn as negatives."""


def examine_ranking(held_out: IrEvalSet, embed: FiniteEmbed) -> SetReport:
    """Metrics of the ranking of the corpus for each query, and the geometry of the vectors."""
    queries = embed(held_out.queries, side="query")
    chosen = _chosen_rows(held_out)
    kept = KeptRows(chosen)
    found = _search(queries, kept.watching(_corpus_blocks(held_out, embed)), embed.sizes(queries),
                    min(RECALL_CUT, len(held_out.corpus_ids)))  # fmt: skip
    metrics = {
        size: ranking_metrics(_top_ids(held_out, rows), held_out.qrels)
        for size, (_, rows) in found.items()
    }
    whole = queries.shape[1]
    scores, rows = found[whole]
    documents = kept.vectors()
    geometry = describe_geometry(
        documents[: chosen.num_spread],
        positive=_positive_cosines(queries, documents, chosen),
        negative=_hardest(held_out, _top_ids(held_out, rows), scores),
        random=crossed(queries, documents[: chosen.num_spread]),
    )
    return SetReport(metrics[whole], geometry, prefixes_only(metrics))


def _search(
    queries: Tensor, blocks: Iterable[Tensor], sizes: Sequence[int], k: int
) -> dict[int, tuple[Tensor, Tensor]]:
    """Scores and rows of the best documents by each prefix; the corpus passes by once.

    Args:
        queries: unit vectors [Q, D].
        blocks: unit vectors of consecutive documents [n, D].
        sizes: of the prefixes, at most D each.
        k: documents kept for each query and prefix.
    """
    searches = {size: TopK(cut(queries, Prefix(size)), k) for size in sizes}
    for block in blocks:
        for size, search in searches.items():
            search.add(cut(block, Prefix(size)))
    return {size: search.best() for size, search in searches.items()}


def _top_ids(held_out: IrEvalSet, rows: Tensor) -> dict[str, list[str]]:
    """Ids of the documents in rows [Q, k], by query, best first."""
    return {
        query: [held_out.corpus_ids[row] for row in best]
        for query, best in zip(held_out.query_ids, rows.tolist(), strict=True)
    }


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
    evenly = spread(len(held_out.corpus_ids)).tolist()
    relevant = [
        (number, document)
        for number, query in enumerate(held_out.query_ids)
        for document, gain in held_out.qrels[query].items()
        if gain > 0
    ]
    relevant = [relevant[index] for index in spread(len(relevant)).tolist()]
    wanted = {document for _, document in relevant}
    row_of = {name: row for row, name in enumerate(held_out.corpus_ids) if name in wanted}
    found = [(number, row_of[document]) for number, document in relevant if document in row_of]
    rows = [*evenly, *(row for _, row in found)]
    pairs = [(number, len(evenly) + index) for index, (number, _) in enumerate(found)]
    return ChosenRows(rows, len(evenly), pairs)


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


def _corpus_blocks(held_out: IrEvalSet, embed: Embed) -> Iterator[Tensor]:
    """Vectors of consecutive documents, a block at a time."""
    for start in range(0, len(held_out.corpus), BLOCK_TEXTS):
        stop = min(start + BLOCK_TEXTS, len(held_out.corpus))
        yield embed([held_out.corpus[i] for i in range(start, stop)], side="passage")
