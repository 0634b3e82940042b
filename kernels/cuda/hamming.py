"""Exact nearest codes in Hamming distance, and histograms of distances, on the device."""

from __future__ import annotations

from typing import Any

import numpy as np

from hashstream.kernels.cuda._device import NULL, THREADS, WARP, blocks_for, codes_on_device, cupy_module, launch

MAX_WORDS = 4  # lengths of codes that are compiled
TILE = 8  # queries that a block keeps; as in hamming.cu
COLLECT_WARPS = 4  # as in hamming.cu
MAX_SLABS = 1024  # parts of the codes whose distances are counted apart: several for each multiprocessor
SLAB_ROWS = 1024  # slabs are multiples of this
SAMPLE_ROWS = 1 << 14  # codes, or `SAMPLE_FACTOR` times k if these are more, that give the first upper bound
SAMPLE_FACTOR = 64
COUNT_BYTES = 64 << 20  # counts of slabs that are kept at a time; queries beyond wait
_MOST_QUERIES = 1 << 15  # a query, or a tile of them, is a block in y, of which there may be 65,535
_MOST = 2**31 - 1


def hamming_topk(queries: Any, codes: Any, k: int, *, n_threads: int = 1) -> tuple[Any, Any]:
    """The k nearest codes of each query, exactly; see `hashstream.kernels.hamming_topk`.

    Two passes at most: one counts distances up to a bound from a sample, slab by slab; the other reads again only slabs
    that hold one of the k nearest.

    Parameters
    ----------
    queries : (n_queries, n_words) uint64
    codes : (n, n_words) uint64
        Of 1 to 4 words.
    k : int
        Clipped to n.
    n_threads : int
        Not used: here so that the signature is that of the CPU.

    Returns
    -------
    distances : (n_queries, k) int32
        Ascending, on the device.
    rows : (n_queries, k) int64
        Rows of `codes`; among equal distances ascending.

    Raises
    ------
    TypeError, ValueError
        Arrays of the wrong kind or shape, k below 1, or codes of more than 4 words.
    ImportError, RuntimeError
        There is no CuPy or no device.
    """
    cupy = cupy_module()
    queries, codes = _checked(cupy, queries, codes)
    if k < 1:
        raise ValueError(f"k is {k}, expected at least 1")
    k = min(int(k), len(codes))
    if k > _MOST:
        raise ValueError(f"k is {k}, expected at most {_MOST}")
    distances, rows = cupy.empty((len(queries), k), np.int32), cupy.empty((len(queries), k), np.int64)
    if k == 0 or len(queries) == 0:
        return distances, rows
    slabs = _Slabs(len(codes))
    n_bins = 64 * codes.shape[1] + 1
    batch = min(_MOST_QUERIES, max(TILE, COUNT_BYTES // (4 * n_bins * slabs.number) // TILE * TILE))
    for first in range(0, len(queries), batch):
        part = slice(first, first + batch)
        _topk(cupy, queries[part], codes, k, slabs, distances[part], rows[part])
    return distances, rows


def hamming_histogram(queries: Any, codes: Any, *, n_threads: int = 1) -> Any:
    """How many codes lie at each distance of each query.

    Parameters
    ----------
    queries : (n_queries, n_words) uint64
    codes : (n, n_words) uint64
        Of 1 to 4 words.
    n_threads : int
        Not used: here so that the signature is that of the CPU.

    Returns
    -------
    (n_queries, 64 * n_words + 1) int64
        On the device.

    Raises
    ------
    TypeError, ValueError
        Arrays of the wrong kind or shape, or codes of more than 4 words.
    ImportError, RuntimeError
        There is no CuPy or no device.
    """
    cupy = cupy_module()
    queries, codes = _checked(cupy, queries, codes)
    totals = cupy.zeros((len(queries), 64 * codes.shape[1] + 1), np.int64)
    slabs = _Slabs(len(codes))
    for first in range(0, len(queries), _MOST_QUERIES):
        part = slice(first, first + _MOST_QUERIES)
        _count(cupy, queries[part], codes, slabs, NULL, NULL, totals[part])
    return totals


class _Slabs:
    """Consecutive codes, cut into parts: `number` slabs of `rows` codes that begin `step` apart."""

    def __init__(self, n: int) -> None:
        self.rows = SLAB_ROWS * max(1, -(-n // (SLAB_ROWS * MAX_SLABS)))
        self.step, self.number = self.rows, -(-n // self.rows)

    @classmethod
    def sample(cls, n: int, k: int) -> _Slabs:
        """Slabs spread over the codes; all of them if they are few."""
        number = -(-max(SAMPLE_ROWS, SAMPLE_FACTOR * k) // SLAB_ROWS)
        slabs = cls(n)
        if n > 2 * number * SLAB_ROWS:
            slabs.rows, slabs.step, slabs.number = SLAB_ROWS, n // number // 2 * 2, number
        return slabs


def _checked(cupy: Any, queries: Any, codes: Any) -> tuple[Any, Any]:
    queries = codes_on_device(cupy, queries, "queries")
    codes = codes_on_device(cupy, codes, n_words=queries.shape[1])
    if codes.shape[1] > MAX_WORDS:
        raise ValueError(
            f"codes have {codes.shape[1]} words, expected at most {MAX_WORDS} on a GPU; use the CPU kernel"
        )
    return queries, codes


def _count(cupy: Any, queries: Any, codes: Any, slabs: _Slabs, limits: Any, counts: Any, totals: Any) -> None:
    """Adds to `totals`, and sets `counts` where there are any."""
    wide = codes.data.ptr % 16 == 0
    arguments = (
        queries, np.int64(len(queries)), codes, np.int64(len(codes)), np.int64(slabs.rows), np.int64(slabs.step),
        np.int64(slabs.number), np.int64(wide), limits, counts, totals,
    )  # fmt: skip
    grid = (slabs.number, -(-len(queries) // TILE))
    launch(cupy, "hamming.cu", f"count_distances_{codes.shape[1]}", grid, THREADS, arguments)


def _topk(cupy: Any, queries: Any, codes: Any, k: int, slabs: _Slabs, distances: Any, rows: Any) -> None:
    n_queries, n_words = queries.shape
    n_bins = 64 * n_words + 1
    limits = cupy.empty(n_queries, np.int32)
    bounds = (np.int64(n_queries), np.int64(n_bins), np.int64(k), limits)
    find_grid = (blocks_for(cupy, n_queries, WARP),)
    sample = _Slabs.sample(len(codes), k)
    totals = cupy.zeros((n_queries, n_bins), np.int64)
    if sample.number * sample.rows < len(codes):
        _count(cupy, queries, codes, sample, NULL, NULL, totals)
    # A sample of none gives the largest distance there is as the bound.
    launch(cupy, "hamming.cu", "find_limits", find_grid, WARP, (totals, *bounds))
    totals.fill(0)
    counts = cupy.empty((n_queries, n_bins, slabs.number), np.int32)
    _count(cupy, queries, codes, slabs, limits, counts, totals)
    launch(cupy, "hamming.cu", "find_limits", find_grid, WARP, (totals, *bounds))
    hits = cupy.zeros((n_queries, slabs.number), np.uint8)
    threads = min(THREADS, -(-slabs.number // WARP) * WARP)
    places = (totals, np.int64(slabs.number), np.int64(k), counts, hits)
    launch(cupy, "hamming.cu", "place_distances", (n_bins, n_queries), threads, places)
    arguments = (
        queries, np.int64(n_queries), codes, np.int64(len(codes)), np.int64(slabs.rows), np.int64(slabs.number), limits,
        counts, hits, np.int64(k), distances, rows,
    )  # fmt: skip
    grid = (-(-slabs.number // COLLECT_WARPS), n_queries)
    launch(cupy, "hamming.cu", f"collect_rows_{n_words}", grid, COLLECT_WARPS * WARP, arguments)
