"""A keyed permutation of 0..n-1 computed per index, so that no list of rows is ever held.

A Feistel network over a grid of about sqrt(n) by sqrt(n) cells, with addition modulo the side in
place of exclusive or; the few cells beyond n are walked through (Black and Rogaway 2002,
"Ciphers with arbitrary finite domains"). It shuffles well; it is not meant to be a secret.
"""

import hashlib
from math import isqrt

import numpy as np

NUM_ROUNDS = 8
"""Twice what a random function per round needs for a pseudo-random permutation."""
MAX_ROWS = 1 << 62
"""Sides of the grid stay under 2**32, so that products fit 64 bits."""


def keys_of(*parts: str | int) -> np.ndarray:
    """Round keys drawn from a name such as (seed, source, epoch) [NUM_ROUNDS], uint64."""
    name = "/".join(map(str, parts)).encode()
    return np.frombuffer(hashlib.blake2b(name, digest_size=8 * NUM_ROUNDS).digest(), np.uint64)


def permute(indices: np.ndarray, num_rows: int, keys: np.ndarray) -> np.ndarray:
    """Where a permutation of `num_rows` rows puts each index.

    Args:
        indices: positions in 0..num_rows-1 [n], int64.
        num_rows: size of the permuted set, at least 1.
        keys: round keys [NUM_ROUNDS], uint64.

    Returns:
        Rows [n], int64; distinct for distinct indices.
    """
    assert 0 < num_rows <= MAX_ROWS, num_rows
    width = isqrt(num_rows - 1) + 1
    height = -(-num_rows // width)
    cells = _shuffle(indices.astype(np.uint64), width, height, keys)
    outside = np.flatnonzero(cells >= num_rows)
    while len(outside):
        cells[outside] = _shuffle(cells[outside], width, height, keys)
        outside = outside[cells[outside] >= num_rows]
    return cells.astype(np.int64)


def _shuffle(cells: np.ndarray, width: int, height: int, keys: np.ndarray) -> np.ndarray:
    """One pass of the network over cells of the grid [n], uint64."""
    rows, columns = np.divmod(cells, np.uint64(width))
    for number, key in enumerate(keys):
        if number % 2:
            rows = _add(rows, _draw(columns, key, height), height)
        else:
            columns = _add(columns, _draw(rows, key, width), width)
    return rows * np.uint64(width) + columns


def _add(values: np.ndarray, steps: np.ndarray, side: int) -> np.ndarray:
    """Sum modulo side of two arrays that are below it, in place of the first."""
    values += steps
    # below 0 there are the largest numbers
    return np.minimum(values, values - np.uint64(side), out=values)


def _draw(values: np.ndarray, key: np.uint64, side: int) -> np.ndarray:
    """A number below side for each value: 64 mixed bits (Steele et al. 2014, SplitMix), scaled."""
    bits = values + key
    bits *= np.uint64(0x9E3779B97F4A7C15)
    bits ^= bits >> np.uint64(30)
    bits *= np.uint64(0xBF58476D1CE4E5B9)
    bits ^= bits >> np.uint64(27)
    bits *= np.uint64(0x94D049BB133111EB)
    bits >>= np.uint64(32)
    bits *= np.uint64(side)
    bits >>= np.uint64(32)
    return bits
