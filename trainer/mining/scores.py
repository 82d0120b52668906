"""A teacher's scores of pairs, by all ranks; methods here are collective.

Units of queries are the same whoever scores them, so the number of ranks changes no bit. Letters: m
pairs of a query and a passage.
"""

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from trainer.distributed.agree import on_all_ranks
from trainer.distributed.group import Ranks
from trainer.errors import DataError
from trainer.mining.selected import Scored
from trainer.mining.teacher import Score
from trainer.mining.texts import Passages, blocks

UNIT_QUERIES = 128
"""Queries whose pairs one rank scores together."""


def score_pairs(
    pairs: NDArray[np.int64],
    query: Callable[[int], str],
    passages: Passages,
    score: Score,
    ranks: Ranks,
) -> Scored:
    """Score pairs.

    Args:
        pairs: query and passage [m, 2], by query; the same on all ranks.
        query: the text of a query by its number.
        passages: all.
        score: the teacher.
        ranks: this process.

    Raises:
        DataError: if a score is no finite number.

    Collective: yes.
    """
    if not len(pairs):
        return Scored(pairs=pairs, scores=np.zeros(0, np.float32))
    first, last = int(pairs[0, 0]), int(pairs[-1, 0])
    units = [*blocks(last + 1 - first, UNIT_QUERIES)]
    bounds = np.searchsorted(pairs[:, 0] - first, [unit.start for unit in units])
    parts = np.split(pairs, bounds[1:])

    def own() -> list[NDArray[np.float32]]:
        return [
            _unit(part, query, passages, score) for part in parts[ranks.rank :: ranks.world_size]
        ]

    of_ranks = on_all_ranks(own, ranks)
    # unit i was scored by rank i modulo their number, as its next one
    scores = [of_ranks[i % ranks.world_size][i // ranks.world_size] for i in range(len(parts))]
    return Scored(pairs=pairs, scores=np.concatenate(scores))


def _unit(
    pairs: NDArray[np.int64], query: Callable[[int], str], passages: Passages, score: Score
) -> NDArray[np.float32]:
    """The scores of some pairs [m], each text made once."""
    if not len(pairs):
        return np.zeros(0, np.float32)
    asked, query_at = np.unique(pairs[:, 0], return_inverse=True)
    answers, passage_at = np.unique(pairs[:, 1], return_inverse=True)
    scores = score(
        [query(int(number)) for number in asked],
        [passages.text(int(number)) for number in answers],
        np.stack([query_at, passage_at], axis=1),
    )
    wrong = scores[~np.isfinite(scores)]
    if len(wrong):
        raise DataError(
            f"--guide or --cross-encoder: score = {wrong[0]}; expected finite numbers. Look at the "
            "model's weights and its dtype, or give another."
        )
    return scores
