"""What the kernels of `within` and `multi_index` mean, in plain NumPy, with the same names and signatures."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from hashstream.kernels.reference import hamming_distances, hamming_topk
from hashstream.kernels.within import CodesWithin


def hamming_histogram(queries: Any, codes: Any, *, n_threads: int = 1) -> NDArray[np.int64]:
    """All distances, counted."""
    n_bits = 64 * codes.shape[1]
    counts = [np.bincount(distances, minlength=n_bits + 1) for distances in hamming_distances(queries, codes)]
    return np.array(counts, np.int64).reshape(len(queries), n_bits + 1)


def count_within(queries: Any, codes: Any, radius: int, *, n_threads: int = 1) -> NDArray[np.int64]:
    """All distances, counted up to the radius."""
    return hamming_histogram(queries, codes)[:, : radius + 1]


def hamming_radius(
    queries: Any, codes: Any, radius: int, *, max_results: int | None = None, n_threads: int = 1
) -> CodesWithin:
    """All distances up to the radius, sorted by distance and row."""
    rows: list[int] = []
    found: list[int] = []
    offsets = [0]
    for distances in hamming_distances(queries, codes):
        order = np.argsort(distances, kind="stable")
        order = order[distances[order] <= radius]
        rows += order.tolist()
        found += distances[order].tolist()
        offsets.append(len(rows))
    return CodesWithin(np.array(offsets, np.int64), np.array(rows, np.int64), np.array(found, np.int32))


class MultiIndex:
    """The k nearest rows by all distances."""

    def __init__(self, codes: Any) -> None:
        self.codes = np.array(codes, np.uint64)

    def search(self, queries: Any, k: int, *, n_threads: int = 1) -> tuple[NDArray[np.int32], NDArray[np.int64]]:
        """As `reference.hamming_topk` over the rows that were indexed."""
        return hamming_topk(queries, self.codes, k)
