"""Which texts of a step begin with the same tokens, and where it pays to run these once.

Found in the token ids, so it is the instruction of a side, or whatever texts have in common. Pure
arithmetic, the same on every rank.

Letters: U texts of the step, n texts of a group.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from trainer.data.deal import TextGroup, lengths_in

MOST_TOKENS = 512
"""Of a common prefix that is longer, so many tokens are shared."""
COLUMNS = 16
"""Tokens of all texts that are compared at once; most texts differ within the first."""
MOST_LEVELS = 8
"""How often texts with a common prefix are divided further."""
LEAST_SHARE = 16
"""Shared are tokens that are at least one in so many: less is not worth the copies of keys."""


@dataclass(frozen=True)
class _Step:
    """The texts of a step, and what a group of them must save."""

    flat: np.ndarray
    """Token ids of all texts end to end, int32."""
    starts: np.ndarray
    """Where each text begins there [U], int64."""
    lengths: np.ndarray
    """Tokens of each text [U], int64."""
    least_saved: int
    """Tokens, beyond those saved without the group."""

    def columns(self, ids: np.ndarray, start: int) -> np.ndarray:
        """Some tokens of some texts from place `start` on [n, COLUMNS], int32.

        In place of the last token of a text and all behind it stand numbers that no other text has,
        so a prefix leaves every text its last token.
        """
        place = start + np.arange(COLUMNS)
        inside = place < self.lengths[ids, None] - 1
        tokens = self.flat[np.where(inside, self.starts[ids, None] + place, 0)]
        return np.where(inside, tokens, -1 - ids[:, None].astype(np.int32))

    def common(self, ids: np.ndarray, known: int) -> int:
        """Tokens that texts begin with alike, at least `known`; one text alone has no more."""
        if len(ids) == 1:
            return known
        for start in range(known, MOST_TOKENS, COLUMNS):
            block = self.columns(ids, start)
            different = (block != block[0]).any(axis=0)
            if different.any():
                return min(MOST_TOKENS, start + int(different.argmax()))
        return MOST_TOKENS

    def is_worth(self, group: TextGroup, common: int) -> bool:
        """Whether a group should be cut into chunks by itself, not with texts that share less."""
        saved = (group.num_shared - common) * (len(group.ids) - 1)
        tokens = int(lengths_in(self.lengths, group).sum())
        return saved >= self.least_saved and saved * LEAST_SHARE >= tokens


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
    lengths = np.array([len(ids) for ids in token_ids], np.int64)
    flat, starts = np.concatenate(token_ids), np.cumsum(lengths) - lengths
    step = _Step(flat, starts, lengths, max(1, least_saved))
    return _divide(step, np.arange(len(token_ids)), 0, MOST_LEVELS)


def is_worth_sharing(*, num_texts: int, length: int, num_shared: int) -> bool:
    """Whether texts of a chunk should share tokens rather than run one by one.

    Args:
        num_texts: of a rank's chunk.
        length: of its longest text.
        num_shared: common tokens.
    """
    saved = num_shared * (num_texts - 1)
    return saved * LEAST_SHARE >= num_texts * length and saved > 0


def _divide(step: _Step, ids: np.ndarray, known: int, levels: int) -> list[TextGroup]:
    """Groups of texts that have `known` first tokens in common."""
    common = step.common(ids, known)
    most = min(MOST_TOKENS, int(step.lengths[ids].max())) - common
    if levels == 0 or most <= 0:
        return [TextGroup(ids, common)]
    apart: list[TextGroup] = []
    next_n = step.columns(ids, common)[:, 0]
    tokens, counts = np.unique(next_n, return_counts=True)
    # what few texts begin with saves little of all
    many = (counts * LEAST_SHARE >= len(ids)) & ((counts - 1) * most >= step.least_saved)
    for token in tokens[many]:
        groups = _divide(step, ids[next_n == token], common + 1, levels - 1)
        apart += [group for group in groups if step.is_worth(group, common)]
    if not apart:
        return [TextGroup(ids, common)]
    rest = np.setdiff1d(ids, np.concatenate([group.ids for group in apart]))
    if len(rest):
        apart.append(TextGroup(rest, step.common(rest, common)))
    return apart
