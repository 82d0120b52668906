"""Exact search of a corpus that passes by in blocks; it must not embed or read files.

Letters: Q queries, D embedding size, n rows of a corpus block, k rows kept.
"""

from collections.abc import Iterable

import numpy as np
import torch
from torch import Tensor

from trainer.errors import DataError

SCORE_BYTES = 16 * 2**20
"""Largest block of query-document scores held at once, bytes; making its sort keys takes about
eight times that."""

_LOW_BITS = 2**32 - 1


def top_k_streamed(
    queries: Tensor, corpus_blocks: Iterable[Tensor | np.ndarray], k: int
) -> tuple[Tensor, Tensor]:
    """The k rows of a corpus with the largest dot product, exactly, one block at a time.

    Equal scores are ordered by row, the earlier first; scores that are not a number come last.
    Memory does not grow with the corpus.

    Args:
        queries: query embeddings [Q, D]; unit norm for cosine similarity. Scores are float32.
        corpus_blocks: consecutive rows of the corpus, each [n, D]; fewer than 2^32 rows in all.
        k: rows kept, at least 1.

    Returns:
        Scores, float32, and row numbers over all blocks, int64, both [Q, min(k, rows)], best first.

    Raises:
        DataError: if a block has another embedding size than the queries.
    """
    search = TopK(queries, k)
    for block in corpus_blocks:
        search.add(block)
    return search.best()


class TopK:
    """The k rows with the largest dot product among the rows that were added so far.

    Memory does not grow with the rows. Equal scores are ordered as in `top_k_streamed`.
    """

    def __init__(self, queries: Tensor, k: int) -> None:
        """Queries [Q, D], and how many rows are kept for each, at least 1."""
        self._queries = queries.detach().float()
        self._k = k
        self._keys = torch.empty((len(queries), 0), dtype=torch.int64, device=queries.device)
        self._num_rows = 0

    def add(self, block: Tensor | np.ndarray) -> None:
        """Compare the next rows of the corpus [n, D].

        Raises:
            DataError: if they have another embedding size than the queries.
        """
        queries = self._queries
        documents = torch.as_tensor(block).detach().to(queries.device, torch.float32)
        if documents.ndim != 2 or documents.shape[1] != queries.shape[1]:
            got, expected = list(documents.shape), f"[n, {queries.shape[1]}]"
            raise DataError(
                f"evaluation: corpus block = {got}; expected {expected}. "
                "Embed queries and documents with the same model."
            )
        num_queries = max(1, SCORE_BYTES // (4 * max(1, len(documents))))
        pieces = zip(queries.split(num_queries), self._keys.split(num_queries), strict=True)
        self._keys = torch.cat(
            [_keep_best(*piece, documents, self._num_rows, self._k) for piece in pieces]
        )
        self._num_rows += len(documents)

    def best(self) -> tuple[Tensor, Tensor]:
        """Scores, float32, and row numbers, int64, both [Q, min(k, rows)], best first."""
        return _decode(self._keys)


def _keep_best(queries: Tensor, keys: Tensor, documents: Tensor, first_row: int, k: int) -> Tensor:
    """The k largest keys [Q, at most k] of those so far and of a new block, largest first."""
    new = _encode(queries @ documents.T, first_row)
    new = new.topk(min(k, new.shape[1]), sorted=False).values
    both = torch.cat([keys, new], dim=1)
    return both.topk(min(k, both.shape[1])).values


def _encode(scores: Tensor, first_row: int) -> Tensor:
    """Unique int64 keys [Q, n] that order as (score descending, row ascending) when descending."""
    # -0.0 becomes 0.0
    bits = torch.where(scores.isnan(), -torch.inf, scores + 0.0).view(torch.int32)
    # IEEE 754: flipping the lower 31 bits of negative numbers makes integers order as floats.
    ordered = torch.where(bits < 0, bits ^ 0x7FFFFFFF, bits).to(torch.int64)
    rows = torch.arange(first_row, first_row + scores.shape[1], device=scores.device)
    return (ordered << 32) + (_LOW_BITS - rows)


def _decode(keys: Tensor) -> tuple[Tensor, Tensor]:
    """Scores and rows of the keys that `_encode` made."""
    ordered = (keys >> 32).to(torch.int32)
    bits = torch.where(ordered < 0, ordered ^ 0x7FFFFFFF, ordered)
    return bits.view(torch.float32), _LOW_BITS - (keys & _LOW_BITS)
