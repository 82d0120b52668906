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
    positives = torch.zeros(len(pairs), device=queries_bD.device)
    own = store.own_blocks(ranks)
    for block in own:
        vectors = torch.from_numpy(np.array(store.load(block))).to(queries_bD.device)
        search.add(vectors)
        numbers = store.texts_of(block)
        here = np.flatnonzero((pairs[:, 1] >= numbers.start) & (pairs[:, 1] < numbers.stop))
        query, passage = torch.from_numpy(pairs[here]).unbind(1)
        cosines = (queries_bD[query] * vectors[passage - numbers.start]).sum(1)
        positives[torch.from_numpy(here)] = cosines
    # each pair is found by the one rank that has its passage
    dist.all_reduce(positives)
    scores, passages = _of_all_ranks(*_numbered(search, store, own), k, ranks)
    return Nearest(
        passages=passages.cpu().numpy(),
        scores=scores.cpu().numpy(),
        positives=positives.cpu().numpy(),
    )


def _numbered(search: TopK, store: VectorStore, own: range) -> tuple[Tensor, Tensor]:
    """Scores and numbers of passages of this rank's best [b, at most k]."""
    scores, rows = search.best()
    if not own:
        return scores, rows
    # only the last block of all may be short, so rows count whole blocks
    block, place = rows // store.block_texts, rows % store.block_texts
    return scores, (own.start + block * own.step) * store.block_texts + place


def _of_all_ranks(
    scores_bk: Tensor, passages_bk: Tensor, k: int, ranks: Ranks
) -> tuple[Tensor, Tensor]:
    """The best k of all ranks; of equal scores the first passage."""
    missing = k - scores_bk.shape[1]
    scores_bk = torch.nn.functional.pad(scores_bk, (0, missing), value=-torch.inf)
    passages_bk = torch.nn.functional.pad(passages_bk, (0, missing), value=NO_PASSAGE)
    if ranks.world_size > 1:
        scores, passages = ([torch.empty_like(one) for _ in range(ranks.world_size)]
                            for one in (scores_bk, passages_bk))  # fmt: skip
        dist.all_gather(scores, scores_bk.contiguous())
        dist.all_gather(passages, passages_bk.contiguous())
        scores_bk, passages_bk = torch.cat(scores, 1), torch.cat(passages, 1)
    by_number = passages_bk.argsort(dim=1, stable=True)
    scores_bk, passages_bk = scores_bk.gather(1, by_number), passages_bk.gather(1, by_number)
    best = scores_bk.argsort(dim=1, descending=True, stable=True)[:, :k]
    return scores_bk.gather(1, best), passages_bk.gather(1, best)
