"""Rows of sources that share steps, as one number each: pure arithmetic.

The number of a row says which source of the mix it is of, and which row of that source. Rows that
are added to a source leave the numbers of all others as they are.
"""

import numpy as np

OWNER_BIT = 40
"""Numbers of rows of a source lie below; a source has fewer than 10^12 rows."""


def joined(owner: int, rows: np.ndarray) -> np.ndarray:
    """Numbers in a mix [n], int64, for rows of its source number `owner` [n], int64."""
    return rows + (owner << OWNER_BIT)


def owners_of(numbers: np.ndarray) -> np.ndarray:
    """Which source of a mix rows are of [n], int64; 0 for rows of a source by itself."""
    return numbers >> OWNER_BIT


def parted(numbers: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Which source of a mix rows are of, and which rows of it [n], int64 each."""
    return owners_of(numbers), numbers & ((1 << OWNER_BIT) - 1)
