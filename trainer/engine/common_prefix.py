"""Which texts of a step begin with the same tokens, and where it pays to run these once.

Found in the token ids, so it is the instruction of a side, or whatever texts have in common. Pure
arithmetic, the same on every rank.

Letters: U texts of the step, K tokens that are looked at.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

MOST_TOKENS = 512
"""Of a common prefix that is longer, so many tokens are shared."""
COLUMNS = 16
"""Tokens of all texts that are compared at once; most texts differ within the first."""
MOST_LEVELS = 8
"""How often texts with a common prefix are divided further."""
LEAST_SHARE = 16
"""Shared are tokens that are at least one in so many: less is not worth the copies of keys."""


@dataclass(frozen=True)
class TextGroup:
    """Texts that begin alike."""

    ids: np.ndarray
    """Which texts [n], int64, ascending."""
    num_shared: int
    """Tokens that all of them begin with; less than the length of each."""


def group_by_prefix(token_ids: Sequence[np.ndarray], *, least_saved: int) -> list[TextGroup]:
    """Divide texts by what they begin with, where that saves enough.

    Args:
        token_ids: U arrays of int32 [length], length at least 1.
        least_saved: tokens that a group of its own must save, were each text to run what it has
            beyond the prefix alone.

    Returns:
        At least one group if there are texts; together all texts once.
    """
    if not token_ids:
        return []
    heads_UK = _heads(token_ids)
    return _divide(heads_UK, np.arange(len(token_ids)), 0, max(1, least_saved), MOST_LEVELS)


def is_worth_sharing(*, num_texts: int, length: int, num_shared: int) -> bool:
    """Whether texts of a chunk should share tokens rather than run one by one.

    Args:
        num_texts: of a rank's chunk.
        length: of its longest text.
        num_shared: common tokens.
    """
    saved = num_shared * (num_texts - 1)
    return saved * LEAST_SHARE >= num_texts * length and saved > 0


def _heads(token_ids: Sequence[np.ndarray]) -> np.ndarray:
    """First tokens of each text [U, K], int32; from the last token on, numbers that no other has.

    So a prefix leaves every text its last token.
    """
    width = min(MOST_TOKENS, max(map(len, token_ids)))
    heads_UK = np.repeat(-1 - np.arange(len(token_ids), dtype=np.int32)[:, None], width, axis=1)
    for row, ids in zip(heads_UK, token_ids, strict=True):
        row[: len(ids) - 1] = ids[: min(width, len(ids) - 1)]
    return heads_UK


def _divide(
    heads_UK: np.ndarray, ids: np.ndarray, known: int, least_saved: int, levels: int
) -> list[TextGroup]:
    """Groups of texts that have `known` first tokens in common."""
    common = _common(heads_UK, ids, known)
    if levels == 0 or common == heads_UK.shape[1]:
        return [TextGroup(ids, common)]
    apart: list[TextGroup] = []
    next_n = heads_UK[ids, common]
    tokens, counts = np.unique(next_n, return_counts=True)
    most = heads_UK.shape[1] - common
    for token in tokens[(counts - 1) * most >= least_saved]:
        members = ids[next_n == token]
        groups = _divide(heads_UK, members, common + 1, least_saved, levels - 1)
        apart += [
            group
            for group in groups
            if (group.num_shared - common) * (len(group.ids) - 1) >= least_saved
        ]
    if not apart:
        return [TextGroup(ids, common)]
    rest = np.setdiff1d(ids, np.concatenate([group.ids for group in apart]))
    if len(rest):
        apart.append(TextGroup(rest, _common(heads_UK, rest, common)))
    return apart


def _common(heads_UK: np.ndarray, ids: np.ndarray, known: int) -> int:
    """Tokens that texts begin with alike, at least `known`; one text alone has no more."""
    width = heads_UK.shape[1]
    if len(ids) == 1:
        return known
    for start in range(known, width, COLUMNS):
        block = heads_UK[ids, start : start + COLUMNS]
        different = (block != block[0]).any(axis=0)
        if different.any():
            return start + int(different.argmax())
    return width
