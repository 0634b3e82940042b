"""Landmarks: cells drawn from an atlas, of which a run keeps the embedding itself, not only their bucket's mean.

Which cells are drawn depends on the number of cells alone, so that partitions, workers and later additions agree on it
without a word: they are those whose rows have the smallest hashes. The landmarks of a larger atlas that are among the
cells of a smaller one are landmarks of that too.
"""

from __future__ import annotations

from functools import lru_cache
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

N_LANDMARKS = 20_000
_BLOCK = 1 << 16
_MARGIN = 1.25  # more than enough rows below the hash that as many as are wanted are expected below
_GAMMA = np.uint64(0x9E3779B97F4A7C15)


class Landmarks(NamedTuple):
    """Drawn cells.

    Attributes
    ----------
    rows : (n_landmarks,) int64
        Rows of the atlas, ascending.
    embedding : (n_landmarks, n_dims) float32
    """

    rows: NDArray[np.int64]
    embedding: NDArray[np.float32]


def landmark_rows(n_cells: int, n_landmarks: int = N_LANDMARKS) -> NDArray[np.int64]:
    """Rows of the landmarks among `n_cells` cells, ascending: all where there are no more than `n_landmarks`."""
    return _drawn(n_cells, n_landmarks).copy()


@lru_cache(maxsize=1)
def _drawn(n_cells: int, n_landmarks: int) -> NDArray[np.int64]:
    if n_cells <= n_landmarks:
        return np.arange(n_cells, dtype=np.int64)
    limit = np.uint64(min(n_landmarks / n_cells * _MARGIN * 2.0**64, 2.0**64 - 2.0**12))
    found = []
    for start in range(0, n_cells, _BLOCK):
        rows = np.arange(start, min(start + _BLOCK, n_cells), dtype=np.uint64)
        hashes = _hash(rows)
        near = hashes <= limit
        found.append((hashes[near], rows[near]))
    hashes, rows = (np.concatenate(part) for part in zip(*found, strict=True))
    if len(rows) < n_landmarks:  # next to impossible but for a handful of cells
        rows = np.arange(n_cells, dtype=np.uint64)
        hashes = _hash(rows)
    # The hash is a bijection: there are no ties.
    return np.sort(rows[np.argpartition(hashes, n_landmarks - 1)[:n_landmarks]].astype(np.int64))


def _hash(rows: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """SplitMix64 of each row (Steele, Lea and Flood, "Fast splittable pseudorandom number generators", OOPSLA 2014)."""
    h = (rows + np.uint64(1)) * _GAMMA
    h = (h ^ (h >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    h = (h ^ (h >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return h ^ (h >> np.uint64(31))
