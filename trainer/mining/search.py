"""The nearest passages of a block of queries, over all ranks; methods here are collective.

Each rank searches the blocks of passages that it embedded. Letters: b queries of a block, D
embedding size, k passages kept, m pairs of a query and a passage that answers it.
"""

from dataclasses import dataclass

import numpy as np
import torch
import torch.distributed as dist
from numpy.typing import NDArray
from torch import Tensor

from trainer.distributed.group import Ranks
from trainer.evaluation.search import TopK
from trainer.mining.vectors import VectorStore

NO_PASSAGE = -1
"""In place of a passage where there are fewer than k."""
PAIRS_AT_ONCE = 16_384
"""Pairs whose vectors are held at once."""


@dataclass(frozen=True, kw_only=True)
class Nearest:
    """What was found for b queries."""

    passages: NDArray[np.int64]
    """Numbers of passages, best first, NO_PASSAGE at the end [b, k]."""
    scores: NDArray[np.float32]
    """Their cosines [b, k]."""
    positives: NDArray[np.float32]
    """Cosines of the given pairs [m]."""


def nearest_passages(
    queries_bD: Tensor, store: VectorStore, pairs: NDArray[np.int64], k: int, ranks: Ranks
) -> Nearest:
    """Search all passages.

    Args:
        queries_bD: equal on all ranks, norm 1, float32.
        store: the passages, of which this rank has its own blocks.
        pairs: (query of the block, passage) whose cosines are wanted [m, 2].
        k: passages kept, at least 1.
        ranks: this process.

    Collective: yes.
    """
    search = TopK(queries_bD, k)
    own = store.own_blocks(ranks)
    for block in own:
        search.add(torch.from_numpy(np.array(store.load(block))).to(queries_bD.device))
    scores, passages = of_all_ranks(*_numbered(search, store, own), k, ranks)
    return Nearest(
        passages=passages.cpu().numpy(),
        scores=scores.cpu().numpy(),
        positives=pair_cosines(queries_bD, store, pairs, ranks).cpu().numpy(),
    )


def pair_cosines(
    queries_bD: Tensor, store: VectorStore, pairs: NDArray[np.int64], ranks: Ranks
) -> Tensor:
    """Cosines of pairs of a query of the block and a passage [m].

    Args:
        queries_bD: equal on all ranks, norm 1, float32.
        store: the passages, of which this rank has its own blocks.
        pairs: query and passage [m, 2], equal on all ranks.
        ranks: this process.

    Collective: yes.
    """
    cosines = torch.zeros(len(pairs), device=queries_bD.device)
    order = np.argsort(pairs[:, 1], kind="stable")
    ascending = pairs[order, 1]
    for block in store.own_blocks(ranks):
        numbers = store.texts_of(block)
        start, stop = np.searchsorted(ascending, (numbers.start, numbers.stop))
        for first in range(start, stop, PAIRS_AT_ONCE):
            here = order[first : min(first + PAIRS_AT_ONCE, stop)]
            query, passage = pairs[here].T
            rows = np.array(store.load(block)[passage - numbers.start])
            vectors = torch.from_numpy(rows).to(queries_bD.device)
            cosines[torch.from_numpy(here)] = (queries_bD[torch.from_numpy(query)] * vectors).sum(1)
    # each pair is found by the one rank that has its passage
    dist.all_reduce(cosines)
    return cosines


def _numbered(search: TopK, store: VectorStore, own: range) -> tuple[Tensor, Tensor]:
    """Scores and numbers of passages of this rank's best [b, at most k]."""
    scores, rows = search.best()
    if not own:
        return scores, rows
    # only the last block of all may be short, so rows count whole blocks
    block, place = rows // store.block_texts, rows % store.block_texts
    return scores, (own.start + block * own.step) * store.block_texts + place


def of_all_ranks(
    scores_bk: Tensor, passages_bk: Tensor, k: int, ranks: Ranks
) -> tuple[Tensor, Tensor]:
    """The best k of all ranks [b, k]; of equal scores the first passage.

    Args:
        scores_bk: of this rank's best [b, at most k].
        passages_bk: their numbers.
        k: passages kept.
        ranks: this process.

    Collective: yes.
    """
    missing = k - scores_bk.shape[1]
    scores_bk = torch.nn.functional.pad(scores_bk, (0, missing), value=-torch.inf)
    passages_bk = torch.nn.functional.pad(passages_bk, (0, missing), value=NO_PASSAGE)
    if ranks.world_size > 1:
        scores, passages = ([torch.empty_like(one) for _ in range(ranks.world_size)]
                            for one in (scores_bk, passages_bk))  # fmt: skip
        dist.all_gather(scores, scores_bk.contiguous())
        dist.all_gather(passages, passages_bk.contiguous())
        scores_bk, passages_bk = torch.cat(scores, 1), torch.cat(passages, 1)
    return best_of(scores_bk, passages_bk, k)


def best_of(scores_bn: Tensor, passages_bn: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """The k best of n passages and their scores [b, k]; of equal scores the first passage."""
    by_number = passages_bn.argsort(dim=1, stable=True)
    scores_bn, passages_bn = scores_bn.gather(1, by_number), passages_bn.gather(1, by_number)
    best = scores_bn.argsort(dim=1, descending=True, stable=True)[:, :k]
    return scores_bn.gather(1, best), passages_bn.gather(1, best)
