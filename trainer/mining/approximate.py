"""Search of passages too many to compare with each query: compressed vectors in inverted lists.

Each rank indexes the blocks that it embedded, by one quantiser for all, so that the number of ranks
changes no candidate; true vectors then score the candidates. faiss is imported where it is used.
Letters: b queries, D embedding size, n passages, k passages kept, m pairs.
"""

import math
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from trainer.data.array_files import save_array
from trainer.distributed.agree import on_all_ranks, on_first_rank
from trainer.distributed.group import Ranks
from trainer.distributed.rows import gather_rows
from trainer.mining.limits import LEAST_EXACT
from trainer.mining.search import NO_PASSAGE, Nearest, best_of, of_all_ranks, pair_cosines
from trainer.mining.vectors import Vectors, VectorStore

SAMPLE_BYTES = 256 * 2**20
"""Vectors that the quantiser is trained on, bytes at most."""
CODE_BYTES = 64
"""Of a compressed vector, at most; its number takes 8 more."""
VECTORS_PER_LIST = 39
"""Of the sample, for each inverted list at least; fewer make faiss warn."""
PROBED_SHARE = 1 / 16
"""Of the lists that a query looks into."""
CANDIDATES = 4
"""That true vectors score, for each passage that is kept."""


@dataclass(frozen=True, kw_only=True)
class ApproximateSearch:
    """The compressed vectors of this rank's passages."""

    index: Any
    """faiss.IndexIVFPQ that knows passages by their numbers."""
    store: VectorStore
    ranks: Ranks

    def nearest(self, queries_bD: Tensor, pairs: NDArray[np.int64], k: int) -> Nearest:
        """Search all passages; as `nearest_passages`, but some of the nearest may be missed.

        Args:
            queries_bD: equal on all ranks, norm 1, float32.
            pairs: (query, passage) whose cosines are wanted [m, 2].
            k: passages kept, at least 1.

        Collective: yes.
        """
        asked = np.ascontiguousarray(queries_bD.cpu().numpy())
        scores, numbers = self.index.search(asked, CANDIDATES * k)
        scores[numbers == NO_PASSAGE] = -np.inf
        device = queries_bD.device
        _, passages = of_all_ranks(
            torch.from_numpy(scores).to(device), torch.from_numpy(numbers).to(device),
            CANDIDATES * k, self.ranks,
        )  # fmt: skip
        query, place = (passages != NO_PASSAGE).nonzero(as_tuple=True)
        candidates = torch.stack([query, passages[query, place]], 1).cpu().numpy()
        true = torch.full(passages.shape, -torch.inf, device=device)
        true[query, place] = pair_cosines(queries_bD, self.store, candidates, self.ranks)
        true, passages = best_of(true, passages, k)
        return Nearest(
            passages=passages.cpu().numpy(),
            scores=true.cpu().numpy(),
            positives=pair_cosines(queries_bD, self.store, pairs, self.ranks).cpu().numpy(),
        )

    def recorded(self) -> dict[str, int]:
        """For the record."""
        return {
            "lists": int(self.index.nlist),
            "probed": int(self.index.nprobe),
            "code_bytes": int(self.index.pq.M),
        }


def build_search(store: VectorStore, file: Path, ranks: Ranks) -> ApproximateSearch:
    """Train the quantiser and compress the passages.

    Args:
        store: the passages, of which this rank has its own blocks.
        file: where the first rank keeps the trained quantiser, and finds it again.
        ranks: this process.

    Collective: yes.
    """
    import faiss

    faiss.omp_set_num_threads(torch.get_num_threads())
    index: Any = faiss.deserialize_index(_quantiser(store, file, ranks))
    index.nprobe = max(1, math.ceil(index.nlist * PROBED_SHARE))
    for block in store.own_blocks(ranks):
        texts = store.texts_of(block)
        index.add_with_ids(np.array(store.load(block)), np.arange(texts.start, texts.stop))
    on_all_ranks(lambda: None, ranks)
    return ApproximateSearch(index=index, store=store, ranks=ranks)


def _quantiser(store: VectorStore, file: Path, ranks: Ranks) -> NDArray[np.uint8]:
    """An index without passages, as faiss serialises it, the same on all ranks."""
    if on_first_rank(file.is_file, ranks):
        kept: NDArray[np.uint8] = on_first_rank(lambda: np.load(file), ranks)
        return kept
    sample = _sample(store, ranks)
    return on_first_rank(lambda: _trained(sample, store.num_texts, file), ranks)


def _sample(store: VectorStore, ranks: Ranks) -> Vectors:
    """Vectors evenly spread over all passages, in their order [s, D], the same on all ranks."""
    size = max(on_all_ranks(lambda: _size(store, ranks), ranks))
    count = min(store.num_texts, max(LEAST_EXACT, SAMPLE_BYTES // (4 * size)))
    wanted = np.linspace(0, store.num_texts - 1, count).astype(np.int64)
    owner = wanted // store.block_texts % ranks.world_size
    blocks = store.own_blocks(ranks)
    parts = [
        np.array(store.load(block)[wanted[wanted // store.block_texts == block] - start])
        for block, start in ((block, store.texts_of(block).start) for block in blocks)
    ]
    local = np.concatenate(parts) if parts else np.zeros((0, size), np.float32)
    counts = [int((owner == rank).sum()) for rank in range(ranks.world_size)]
    gathered = gather_rows(torch.from_numpy(local).to(ranks.device), counts=counts)
    sample = np.empty((count, size), np.float32)
    # rows come by rank, and by number within each
    sample[np.argsort(owner, kind="stable")] = gathered.cpu().numpy()
    return sample


def _size(store: VectorStore, ranks: Ranks) -> int:
    """D, or 0 where this rank has no block."""
    own = store.own_blocks(ranks)
    return int(store.load(own[0]).shape[1]) if own else 0


def _trained(sample: Vectors, num_passages: int, file: Path) -> NDArray[np.uint8]:
    """Train an index without passages, and keep it in a file."""
    import faiss

    count, size = sample.shape
    num_lists = max(1, min(math.isqrt(num_passages), count // VECTORS_PER_LIST))
    num_parts = max(parts for parts in range(1, CODE_BYTES + 1) if size % parts == 0)
    coarse = faiss.IndexFlatIP(size)
    index = faiss.IndexIVFPQ(coarse, size, num_lists, num_parts, 8, faiss.METRIC_INNER_PRODUCT)
    index.cp.spherical = True
    index.train(sample)
    made: NDArray[np.uint8] = faiss.serialize_index(index)
    partial = file.with_name(f".{file.name}-{os.getpid()}")
    with partial.open("wb") as stream:
        save_array(stream, made)
    partial.rename(file)
    return made


def recall_of(found: Nearest, exact: Nearest) -> float:
    """The share of the truly nearest passages that were found, 0 to 1.

    Args:
        found: by an index [b, k].
        exact: by comparing all [b, k].
    """
    shares = []
    for mine, true in zip(found.passages, exact.passages, strict=True):
        wanted = true[true != NO_PASSAGE]
        shares.append(np.isin(wanted, mine).mean())
    return float(np.mean(shares))
