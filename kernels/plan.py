"""Whether to scan the codes or to build a multi-index first: decided by counting the work of either.

The unit is the time in which the bit-sliced scan passes one code of 64 bits. In it a lookup of a bucket costs about
850 where thousands of queries are searched at once, a code in a bucket 6, and building the index 12,000 a row and word
(measured with 1 and 10 million codes of a simulated atlas, `python -m benchmarks.search`). How many lookups a query
needs follows from the distance of its k-th nearest, which the scan finds for a few queries; how full the buckets are,
from how often two codes of a sample share one.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import comb
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hashstream.kernels._arrays import codes_array
from hashstream.kernels._probe import MASK, SHIFT, WIDTH, WORD
from hashstream.kernels.hamming import SMALL_K, hamming_topk
from hashstream.kernels.multi_index import MAX_WORDS, best_tables_per_word, permute_bits

LOOKUP = 850
CODE = 6
BUILD = 12_000
MARGIN = 1.5  # how much dearer than reckoned the index may turn out
FEWEST_CODES = 1 << 18
_SAMPLE_QUERIES = 32
_SAMPLE_CODES = 1 << 16


@dataclass(frozen=True)
class SearchPlan:
    """What a search costs, in codes that the bit-sliced scan passes in the same time.

    Attributes
    ----------
    use_index : bool
        Building and searching a `MultiIndex` is cheaper than scanning.
    scan, index, build : float
        A query by scan, a query by index, and building it; infinite where it cannot be used.
    """

    use_index: bool
    scan: float
    index: float = np.inf
    build: float = np.inf


def plan_search(queries: Any, codes: Any, k: int, *, n_queries: int | None = None, n_threads: int = 1) -> SearchPlan:
    """Compares a scan with a multi-index for the k nearest codes of each query.

    Parameters
    ----------
    queries : (n, n_words) uint64
        All queries, or some that are typical.
    codes : (n_codes, n_words) uint64
    k : int
    n_queries : int, optional
        How many queries there will be, if `queries` are not all.
    n_threads : int
        Threads for the scan of the sample. Queries are shared by threads either way; building is not.

    Returns
    -------
    SearchPlan

    Raises
    ------
    TypeError, ValueError
        Arrays of the wrong kind or shape, or k below 1.
    """
    queries = codes_array(queries, "queries")
    codes = codes_array(codes, n_words=queries.shape[1])
    if k < 1:
        raise ValueError(f"k is {k}, expected at least 1")
    n_queries = len(queries) if n_queries is None else n_queries
    n, n_words = codes.shape
    scan, build = float(n * n_words), float(BUILD * n * n_words)
    if n_words > MAX_WORDS or k > SMALL_K or not FEWEST_CODES <= n <= np.iinfo(np.int32).max or len(queries) == 0:
        return SearchPlan(False, scan)
    if n_queries * scan <= n_threads * build:
        return SearchPlan(False, scan, build=build)
    some = queries[np.linspace(0, len(queries) - 1, min(len(queries), _SAMPLE_QUERIES)).astype(np.int64)]
    furthest = hamming_topk(some, codes, k, n_threads=n_threads)[0][:, -1]
    index = _index_cost(furthest, codes)
    return SearchPlan(n_queries * index * MARGIN + n_threads * build < n_queries * scan, scan, index, build)


def _index_cost(furthest: NDArray[np.int32], codes: NDArray[np.uint64]) -> float:
    """Mean cost of the queries whose k-th nearest code is at these distances; a query never costs more than a scan."""
    n, n_words = codes.shape
    sample = codes[np.linspace(0, n - 1, min(n, _SAMPLE_CODES)).astype(np.int64)]
    n_sampled = len(sample)
    sample = np.unique(sample, axis=0)
    n_distinct = n * len(sample) / n_sampled  # at most, as more repeat among all than in a sample
    pairs = max(1.0, len(sample) * (len(sample) - 1.0))
    permuted, layout = permute_bits(sample, best_tables_per_word(n))
    occupancy = np.empty(len(layout))
    for table, row in enumerate(layout):
        keys = (permuted[:, row[WORD]] >> np.uint64(row[SHIFT])) & np.uint64(row[MASK])
        counts = np.unique(keys, return_counts=True)[1].astype(np.float64)
        occupancy[table] = (counts * (counts - 1)).sum() / pairs * n_distinct
    costs = []
    for distance in furthest:
        cost = 0.0
        # Tables take turns to be looked up one bit further, until distance + 1 turns beyond the first of each.
        for table in range(len(layout)):
            radius = (int(distance) - table) // len(layout)
            lookups = sum(comb(int(layout[table, WIDTH]), bits) for bits in range(radius + 1))
            cost += lookups * (LOOKUP + CODE * occupancy[table])
        costs.append(min(cost, 3.0 * n * n_words))
    return float(np.mean(costs))
