"""How good codes are, without any clustering: retrieval of the same type, and purity at equal numbers of buckets."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from hashstream import kernels

NEIGHBOURS = 100
#: Prefixes whose purity is measured, and the numbers of buckets at which curves of purity are compared.
PREFIXES = tuple(range(6, 25, 2))
GRID = (64, 128, 256, 512, 1024)
_BLOCK_CELLS = 256


def mean_average_precision(codes: NDArray[np.uint64], truth: NDArray[np.integer], *, n_bits: int) -> float:
    """Leave-one-out mAP@100 of the first `n_bits` bits.

    For each cell the other cells are ranked by Hamming distance, ties by row; the precision at each hit among the
    first 100 is averaged over the hits (0 without any), and then over the cells.

    Parameters
    ----------
    codes : (n_cells, n_words) uint64
    truth : (n_cells,) integer
        Type of each cell, -1 where it is unknown: such cells are left out.
    """
    known = np.flatnonzero(truth >= 0)
    codes = codes[known] & kernels.prefix_mask(n_bits, codes.shape[1])
    types = truth[known]
    n = len(codes)
    k = min(NEIGHBOURS, n - 1)
    ranks = np.arange(1, k + 1)
    total = 0.0
    for start in range(0, n, _BLOCK_CELLS):
        rows = np.arange(start, min(start + _BLOCK_CELLS, n))
        distance = np.bitwise_count(codes[rows][:, None] ^ codes).sum(axis=2, dtype=np.int64)
        distance[np.arange(len(rows)), rows] = 64 * codes.shape[1] + 1
        # Distance and row in one number: a partial sort of it keeps the stated order of ties.
        key = distance * n + np.arange(n)
        nearest = np.sort(np.partition(key, k - 1, axis=1)[:, :k], axis=1) % n
        hit = types[nearest] == types[rows][:, None]
        precision = np.cumsum(hit, axis=1) / ranks
        total += float(((precision * hit).sum(axis=1) / np.maximum(hit.sum(axis=1), 1)).sum())
    return total / n


def purity_curve(codes: NDArray[np.uint64], truth: NDArray[np.integer]) -> NDArray[np.float64]:
    """Number of occupied buckets and their purity for each prefix of `PREFIXES`: (n_prefixes, 2) float64."""
    known = truth >= 0
    codes, types = codes[known], truth[known]
    points = []
    for bits in PREFIXES:
        buckets = np.unique(codes & kernels.prefix_mask(bits, codes.shape[1]), axis=0, return_inverse=True)[1].ravel()
        counts = np.zeros((int(buckets.max()) + 1, int(types.max()) + 1), dtype=np.int64)
        np.add.at(counts, (buckets, types), 1)
        points.append((len(counts), counts.max(axis=1).sum() / len(types)))
    return np.asarray(points)


def purity_at_equal_buckets(curves: list[NDArray[np.float64]]) -> list[float]:
    """Mean purity of each curve at the numbers of buckets of `GRID` that all curves reach.

    Between prefixes, purity is interpolated linearly in the logarithm of the number of buckets.
    """
    low = max(curve[0, 0] for curve in curves)
    high = min(curve[-1, 0] for curve in curves)
    grid = np.log([n for n in GRID if low <= n <= high] or [np.sqrt(low * high)])
    return [float(np.interp(grid, np.log(curve[:, 0]), curve[:, 1]).mean()) for curve in curves]
