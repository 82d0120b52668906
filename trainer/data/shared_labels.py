"""Which texts of a batch share a label; pure arrays.

Letters: U texts of the step, m pairs of a text and one of its labels, G anchors, B of them on a
rank, P positives and N negatives per anchor.
"""

import numpy as np


def shared_labels(members: np.ndarray, rows: np.ndarray, num_texts: int) -> np.ndarray:
    """Whether texts have a label that another has.

    Args:
        members: pairs (text, label) of all texts [m, 2], int64.
        rows: texts that are asked for [B], int64; one may be there twice.
        num_texts: U.

    Returns:
        Of each of these texts with every text [B, U], bool; a text shares its labels with itself.
    """
    shared = np.zeros((len(rows), num_texts), bool)
    by_label = members[np.argsort(members[:, 1], kind="stable")]
    cuts = np.flatnonzero(np.diff(by_label[:, 1])) + 1
    for group in np.split(by_label[:, 0], cuts):
        mine = np.flatnonzero(np.isin(rows, group))
        if len(mine):
            shared[np.ix_(mine, group)] = True
    return shared


def own_known(shared: np.ndarray, passages: np.ndarray, *, num_positives: int) -> np.ndarray:
    """Negatives of an anchor that share a label with it all the same.

    They are texts that became the same tokens as one of its label.

    Args:
        shared: anchors with all texts [B, U], bool.
        passages: the slots of these anchors [B, P + N], int64; negative where absent.
        num_positives: P.

    Returns:
        Slots [B, P + N], bool.
    """
    known = shared[np.arange(len(passages))[:, None], np.maximum(passages, 0)] & (passages >= 0)
    known[:, :num_positives] = False
    return known


def all_known(
    shared: np.ndarray, passages: np.ndarray, *, num_positives: int, first: int
) -> np.ndarray:
    """Candidates that share a label with an anchor, but for its own positive slots.

    Args:
        shared: anchors with all texts [B, U], bool.
        passages: the slots of all anchors [G, P + N], int64; negative where absent.
        num_positives: P.
        first: number of the first of these anchors among all.

    Returns:
        Of each of these anchors with every slot [B, G, P + N], bool.
    """
    known = shared[:, np.maximum(passages, 0)] & (passages >= 0)
    own = np.arange(len(shared))
    known[own, own + first, :num_positives] = False
    return known


def num_known(shared: np.ndarray, passages: np.ndarray, *, num_positives: int) -> int:
    """How many `all_known` finds for all anchors, in the memory of `shared` [G, U].

    Args:
        shared: all anchors with all texts [G, U], bool.
        passages: their slots [G, P + N], int64; negative where absent.
        num_positives: P.
    """
    slots = np.bincount(passages[passages >= 0], minlength=shared.shape[1])
    own = shared[np.arange(len(shared))[:, None], passages[:, :num_positives]]
    return int((shared @ slots).sum() - own.sum())
