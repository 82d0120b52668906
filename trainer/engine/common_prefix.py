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


@dataclass(frozen=True)
class _Heads:
    """What texts begin with, and what a group of them must save."""

    tokens_UK: np.ndarray
    """First tokens of each text, int32; from the last token on, numbers that no other text has."""
    lengths: np.ndarray
    """Tokens of each text [U], int64."""
    least_saved: int
    """Tokens, beyond those saved without the group."""

    @classmethod
    def of(cls, token_ids: Sequence[np.ndarray], least_saved: int) -> "_Heads":
        """Those of some texts; a prefix leaves every text its last token."""
        lengths = np.array([len(ids) for ids in token_ids], np.int64)
        width = min(MOST_TOKENS, int(lengths.max()))
        tokens_UK = np.repeat(-1 - np.arange(len(lengths), dtype=np.int32)[:, None], width, axis=1)
        for row, ids in zip(tokens_UK, token_ids, strict=True):
            row[: len(ids) - 1] = ids[: min(width, len(ids) - 1)]
        return cls(tokens_UK, lengths, least_saved)

    def is_worth(self, group: TextGroup, common: int) -> bool:
        """Whether a group should be cut into chunks by itself, not with texts that share less."""
        num_others, tokens = len(group.ids) - 1, int(self.lengths[group.ids].sum())
        return (
            group.num_shared - common
        ) * num_others >= self.least_saved and group.num_shared * num_others * LEAST_SHARE >= tokens


def group_by_prefix(token_ids: Sequence[np.ndarray], *, least_saved: int) -> list[TextGroup]:
    """Divide texts by what they begin with, where that saves enough.

    Args:
        token_ids: U arrays of int32 [length], length at least 1.
        least_saved: tokens that a group of its own must save beyond what is saved without it.

    Returns:
        At least one group if there are texts; together all texts once.
    """
    if not token_ids:
        return []
    texts = _Heads.of(token_ids, max(1, least_saved))
    return _divide(texts, np.arange(len(token_ids)), 0, MOST_LEVELS)


def is_worth_sharing(*, num_texts: int, length: int, num_shared: int) -> bool:
    """Whether texts of a chunk should share tokens rather than run one by one.

    Args:
        num_texts: of a rank's chunk.
        length: of its longest text.
        num_shared: common tokens.
    """
    saved = num_shared * (num_texts - 1)
    return saved * LEAST_SHARE >= num_texts * length and saved > 0


def _divide(texts: _Heads, ids: np.ndarray, known: int, levels: int) -> list[TextGroup]:
    """Groups of texts that have `known` first tokens in common."""
    common = _common(texts.tokens_UK, ids, known)
    width = texts.tokens_UK.shape[1]
    if levels == 0 or common == width:
        return [TextGroup(ids, common)]
    apart: list[TextGroup] = []
    next_n = texts.tokens_UK[ids, common]
    tokens, counts = np.unique(next_n, return_counts=True)
    for token in tokens[(counts - 1) * (width - common) >= texts.least_saved]:
        groups = _divide(texts, ids[next_n == token], common + 1, levels - 1)
        apart += [group for group in groups if texts.is_worth(group, common)]
    if not apart:
        return [TextGroup(ids, common)]
    rest = np.setdiff1d(ids, np.concatenate([group.ids for group in apart]))
    if len(rest):
        apart.append(TextGroup(rest, _common(texts.tokens_UK, rest, common)))
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
