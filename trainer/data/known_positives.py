"""Which candidates of a batch are known positives of its queries; pure arrays.

Letters: U texts of the step, G queries, P positives and N negatives per query, K positives of all
records, M pairs.
"""

import numpy as np

ABSENT = -1
"""Index of a text that is not there."""
NO_PAIRS = np.empty((0, 2), np.int64)


def known_positives(
    query: np.ndarray,
    positives: np.ndarray,
    counts: np.ndarray,
    passages: np.ndarray,
    *,
    num_positives: int,
) -> np.ndarray:
    """Candidates that are known positives of a query, by what is embedded of them.

    Known is any positive of the record, drawn or not, or of another record of the batch whose query
    is the same. The query's own positive slots, which are its targets, are left alone. All indices
    are those of distinct token sequences: texts that are cut or normalised to the same are equal.

    Args:
        query: the queries [G], int64.
        positives: all positives of all records, one record after another [K], int64; ABSENT for
            those that no slot equals.
        counts: positives of each record [G], int64.
        passages: the slots of each query [G, P + N], int64; ABSENT where empty.
        num_positives: P.

    Returns:
        Pairs (query row, flat passage column of G * (P + N)) [M, 2], int64: by row, then by the
        positive in the order in which the records have it, then by column.
    """
    asking = np.repeat(query, counts)
    # an absent positive equals no slot
    asking, positives = asking[positives != ABSENT], positives[positives != ABSENT]
    if not len(positives):
        return NO_PAIRS
    size = int(max(query.max(), passages.max(), positives.max())) + 1
    owners, known = _by_query(asking, positives, size)
    rows, of_row = _expand(query, owners, size)
    flat = passages.reshape(-1)
    is_known = np.zeros(size + 1, bool)  # one more, for absent slots
    is_known[known] = True
    columns = np.flatnonzero(is_known[flat])
    columns = columns[np.argsort(flat[columns], kind="stable")]
    which, of_known = _expand(known[of_row], flat[columns], size)
    rows, columns = rows[which], columns[of_known]
    slot = columns - rows * passages.shape[1]
    is_other = (slot < 0) | (slot >= num_positives)
    return np.stack([rows[is_other], columns[is_other]], axis=1).astype(np.int64)


def repeated_positives(
    query: np.ndarray, positives: np.ndarray, counts: np.ndarray, several: np.ndarray
) -> np.ndarray:
    """Positives of which `known_positives` may find a pair; ABSENT for the others.

    A text that is once among all queries, positives and slots, and that is a positive of one
    record whose query no other has, is at most in a target of that record.

    Args:
        query: as of `known_positives`.
        positives: as of `known_positives`.
        counts: as of `known_positives`.
        several: whether a text is more than once among them, a positive in its own slot counted
            once [U], bool.
    """
    is_asked = np.repeat(several[query], counts)
    return np.where(is_asked | several[positives], positives, ABSENT)


def _by_query(
    asking: np.ndarray, positives: np.ndarray, size: int
) -> tuple[np.ndarray, np.ndarray]:
    """Distinct pairs of a query and a positive, by query, then as they come first."""
    _, first = np.unique(asking * size + positives, return_index=True)
    first = np.sort(first)
    first = first[np.argsort(asking[first], kind="stable")]
    return asking[first], positives[first]


def _expand(keys: np.ndarray, groups: np.ndarray, size: int) -> tuple[np.ndarray, np.ndarray]:
    """Every pair of a key and a member of the group of its name.

    Args:
        keys: names of groups [n], int64, below `size`.
        groups: group of each member [m], int64, ascending.
        size: number of names.

    Returns:
        Places in `keys` and in `groups`, by key, then by member.
    """
    counts = np.bincount(groups, minlength=size)
    starts = np.cumsum(counts) - counts
    return np.repeat(np.arange(len(keys)), counts[keys]), spread(starts[keys], counts[keys])


def spread(starts: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """The numbers from each start on, so many as its count, one range after another, int64."""
    ends = np.cumsum(counts)
    shift = np.repeat(starts - (ends - counts), counts)
    return np.arange(len(shift)) + shift
