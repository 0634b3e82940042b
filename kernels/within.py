"""All codes within a Hamming distance of a query, and how many codes are how far from it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from hashstream.kernels._arrays import codes_array, share_rows
from hashstream.kernels._intrinsics import below_mask, prefetch, trailing_zeros
from hashstream.kernels._jit import bare, jit
from hashstream.kernels._planes import SLICE_CODES, any_below
from hashstream.kernels.hamming import (
    BLOCK,
    LINE,
    SLICED_FROM,
    SLICED_WORDS,
    _block_distances,
    _slice_block,
    lines_each,
    sliced_scratch,
)

QUERIES = 256  # queries that are searched at a time; a bit is kept for each of them and each block of codes
_FAR = np.uint16(0xFFFF)  # further than any code


class CodesWithin(NamedTuple):
    """The codes within a distance of each of n queries.

    Attributes
    ----------
    offsets : (n + 1,) int64
        Those of query q are at ``offsets[q]:offsets[q + 1]`` of the other two.
    rows : (n_found,) int64
        Rows of the codes.
    distances : (n_found,) int32
        Ascending for each query; among equal distances rows ascend.
    """

    offsets: NDArray[np.int64]
    rows: NDArray[np.int64]
    distances: NDArray[np.int32]


@bare
def _mark_sliced(  # type: ignore[no-untyped-def]
    flat, n_queries, radius, words, sizes, choices, limits, planes, tables, marked, hits
):
    """Which blocks of 512 codes hold any within the radius of a query; the last, if it is not full, is marked."""
    n_entries, n_levels = sizes
    each = lines_each(len(words), n_queries)
    for block in range(len(flat) // len(words) // SLICE_CODES):
        _slice_block(flat, len(words), block * SLICE_CODES, planes, tables)
        ahead = (block + 1) * SLICE_CODES * len(words)
        for q in range(n_queries):
            for line in range(each):
                prefetch(flat, ahead + (q * each + line) * LINE)
            hits[q, block] = any_below(words, tables, choices, q * n_entries, limits, (radius + 1) * n_levels, marked)


@jit
def _count(queries, codes, radius, hits, counts):  # type: ignore[no-untyped-def]
    """Codes at each distance up to the radius, in the blocks that are marked; blocks without any lose their mark."""
    distances, flat = np.full(SLICE_CODES, _FAR), codes.ravel()
    for block in range(hits.shape[1]):
        n = min(SLICE_CODES, len(codes) - block * SLICE_CODES)
        distances[n:] = _FAR
        for q in range(len(queries)):
            if not hits[q, block]:
                continue
            if _block_distances(queries, q, flat, block * SLICE_CODES, n, distances) > radius:
                hits[q, block] = False
                continue
            for at in range(0, n, 64):
                mask = below_mask(distances, at, np.uint16(radius))
                while mask:
                    counts[q, distances[at + trailing_zeros(mask)]] += 1
                    mask &= mask - np.uint64(1)


@jit
def _place(queries, codes, radius, hits, places, rows, out):  # type: ignore[no-untyped-def]
    """Puts every code within the radius where the next of its query and distance belongs."""
    distances, flat = np.full(SLICE_CODES, _FAR), codes.ravel()
    for block in range(hits.shape[1]):
        n = min(SLICE_CODES, len(codes) - block * SLICE_CODES)
        distances[n:] = _FAR
        for q in range(len(queries)):
            if not hits[q, block]:
                continue
            _block_distances(queries, q, flat, block * SLICE_CODES, n, distances)
            for at in range(0, n, 64):
                mask = below_mask(distances, at, np.uint16(radius))
                while mask:
                    i = at + trailing_zeros(mask)
                    mask &= mask - np.uint64(1)
                    place = places[q, distances[i]]
                    places[q, distances[i]] = place + 1
                    rows[place] = block * SLICE_CODES + i
                    out[place] = distances[i]


@jit
def _histogram(queries, codes, out):  # type: ignore[no-untyped-def]
    """Counts by distance, every fourth code into one of four tables: equal distances that follow do not wait."""
    n_bins = out.shape[1]
    distances, flat = np.empty(BLOCK, np.uint16), codes.ravel()
    counts = np.empty((4, n_bins), np.int64)
    for q in range(len(queries)):
        counts[:] = 0
        for start in range(0, len(codes), BLOCK):
            n = min(BLOCK, len(codes) - start)
            _block_distances(queries, q, flat, start, n, distances)
            whole = n - n % 4
            for i in range(0, whole, 4):
                counts[0, distances[i]] += 1
                counts[1, distances[i + 1]] += 1
                counts[2, distances[i + 2]] += 1
                counts[3, distances[i + 3]] += 1
            for i in range(whole, n):
                counts[0, distances[i]] += 1
        for d in range(n_bins):
            out[q, d] = counts[0, d] + counts[1, d] + counts[2, d] + counts[3, d]


def _marks(queries: NDArray[np.uint64], codes: NDArray[np.uint64], radius: int) -> NDArray[np.bool_]:
    """Blocks of codes that may hold any within the radius: (n_queries, n_blocks)."""
    hits = np.ones((len(queries), -(-len(codes) // SLICE_CODES)), np.bool_)
    n_words = codes.shape[1]
    if len(queries) >= SLICED_FROM and n_words <= SLICED_WORDS:
        sizes, scratch = sliced_scratch(queries)
        _mark_sliced(codes.ravel(), len(queries), radius, (0,) * n_words, sizes, *scratch, hits)
    return hits


def _checked(queries: Any, codes: Any, radius: int) -> tuple[NDArray[np.uint64], NDArray[np.uint64], int]:
    queries = codes_array(queries, "queries")
    codes = codes_array(codes, n_words=queries.shape[1])
    if 64 * codes.shape[1] >= int(_FAR):
        raise ValueError(f"codes have {codes.shape[1]} words, expected at most 1,023")
    if radius < 0:
        raise ValueError(f"radius is {radius}, expected at least 0")
    return queries, codes, min(int(radius), 64 * codes.shape[1])


def count_within(queries: Any, codes: Any, radius: int, *, n_threads: int = 1) -> NDArray[np.int64]:
    """How many codes are at each distance up to a radius: what `hamming_radius` would have to hold.

    Parameters
    ----------
    queries : (n_queries, n_words) uint64
    codes : (n, n_words) uint64
    radius : int
        Largest distance in bits; clipped to the bits of a code.
    n_threads : int
        Threads that share the queries.

    Returns
    -------
    (n_queries, radius + 1) int64

    Raises
    ------
    TypeError, ValueError
        Arrays of the wrong kind or shape, or a radius below 0.
    """
    queries, codes, radius = _checked(queries, codes, radius)
    counts = np.zeros((len(queries), radius + 1), np.int64)

    def work(start: int, stop: int) -> None:
        for first in range(start, stop, QUERIES):
            part = slice(first, min(first + QUERIES, stop))
            _count(queries[part], codes, radius, _marks(queries[part], codes, radius), counts[part])

    share_rows(work, len(queries), n_threads)
    return counts


def hamming_radius(
    queries: Any, codes: Any, radius: int, *, max_results: int | None = None, n_threads: int = 1
) -> CodesWithin:
    """Every code within a Hamming distance of each query, nearest first, ties by row.

    Codes are counted by distance first, so that exactly the memory of the result is taken: 12 bytes a code found, and a
    byte for 512 codes and query. For many queries there is `hamming_radius_blocks`.

    Parameters
    ----------
    queries : (n_queries, n_words) uint64
    codes : (n, n_words) uint64
    radius : int
        Largest distance in bits; clipped to the bits of a code.
    max_results : int, optional
        Refuse a result that is larger, before it is made.
    n_threads : int
        Threads that share the queries; the result is the same for any number.

    Returns
    -------
    CodesWithin

    Raises
    ------
    TypeError, ValueError
        Arrays of the wrong kind or shape, a radius below 0, or more results than `max_results`.
    """
    queries, codes, radius = _checked(queries, codes, radius)
    counts, groups = _count_all(queries, codes, radius, n_threads)
    n_found = int(counts.sum())
    if max_results is not None and n_found > max_results:
        raise ValueError(
            f"{n_found} codes are within {radius} bits of the {len(queries)} queries, more than the {max_results} "
            "allowed; give fewer queries at a time or a smaller radius"
        )
    return _place_all(queries, codes, radius, counts, groups, n_threads)


def hamming_radius_blocks(
    queries: Any, codes: Any, radius: int, *, max_results: int, n_threads: int = 1
) -> Iterator[tuple[int, CodesWithin]]:
    """What `hamming_radius` finds, in blocks of consecutive queries that hold at most so many results.

    A query that has more by itself is a block. Scanning for a block is not repeated.

    Parameters
    ----------
    queries, codes, radius, n_threads
        As for `hamming_radius`.
    max_results : int
        Most results of a block, 1 at least.

    Yields
    ------
    first : int
        The block's first query.
    found : CodesWithin
        Of the queries from there on.

    Raises
    ------
    TypeError, ValueError
        As `hamming_radius`, or `max_results` below 1.
    """
    queries, codes, radius = _checked(queries, codes, radius)
    if max_results < 1:
        raise ValueError(f"max_results is {max_results}, expected at least 1")
    for begin in range(0, len(queries), QUERIES * n_threads):
        some = queries[begin : begin + QUERIES * n_threads]
        counts, groups = _count_all(some, codes, radius, n_threads)
        hits = np.concatenate([group[2] for group in groups])
        ends = np.cumsum(counts.sum(axis=1))
        first = 0
        while first < len(some):
            before = ends[first - 1] if first else 0
            last = max(first + 1, int(np.searchsorted(ends, before + max_results, side="right")))
            step = -(-(last - first) // n_threads)
            parts = [
                (at - first, min(at + step, last) - first, hits[at : min(at + step, last)])
                for at in range(first, last, step)
            ]
            found = _place_all(some[first:last], codes, radius, counts[first:last], parts, n_threads)
            yield begin + first, found
            first = last


_Groups = list[tuple[int, int, NDArray[np.bool_]]]


def _count_all(
    queries: NDArray[np.uint64], codes: NDArray[np.uint64], radius: int, n_threads: int
) -> tuple[NDArray[np.int64], _Groups]:
    """Codes at each distance from each query, and groups of queries with the blocks of codes that hold them."""
    counts = np.zeros((len(queries), radius + 1), np.int64)

    def count(start: int, stop: int) -> _Groups:
        marked = []
        for first in range(start, stop, QUERIES):
            last = min(first + QUERIES, stop)
            hits = _marks(queries[first:last], codes, radius)
            _count(queries[first:last], codes, radius, hits, counts[first:last])
            marked.append((first, last, hits))
        return marked

    return counts, [group for part in share_rows(count, len(queries), n_threads) for group in part]


def _place_all(
    queries: NDArray[np.uint64],
    codes: NDArray[np.uint64],
    radius: int,
    counts: NDArray[np.int64],
    groups: _Groups,
    n_threads: int,
) -> CodesWithin:
    """The codes of which there are so many at each distance."""
    offsets = np.zeros(len(queries) + 1, np.int64)
    np.cumsum(counts.sum(axis=1), out=offsets[1:])
    places = (np.cumsum(counts.ravel()) - counts.ravel()).reshape(counts.shape)
    rows, distances = np.empty(offsets[-1], np.int64), np.empty(offsets[-1], np.int32)

    def place(start: int, stop: int) -> None:
        for first, last, hits in groups[start:stop]:
            _place(queries[first:last], codes, radius, hits, places[first:last], rows, distances)

    share_rows(place, len(groups), n_threads)
    return CodesWithin(offsets, rows, distances)


def hamming_histogram(queries: Any, codes: Any, *, n_threads: int = 1) -> NDArray[np.int64]:
    """How many codes are at each Hamming distance from each query.

    Parameters
    ----------
    queries : (n_queries, n_words) uint64
    codes : (n, n_words) uint64
    n_threads : int
        Threads that share the queries; the result is the same for any number.

    Returns
    -------
    (n_queries, 64 * n_words + 1) int64

    Raises
    ------
    TypeError, ValueError
        Arrays of the wrong kind or shape.
    """
    queries, codes, n_bits = _checked(queries, codes, np.iinfo(np.int64).max)
    out = np.zeros((len(queries), n_bits + 1), np.int64)

    def work(start: int, stop: int) -> None:
        _histogram(queries[start:stop], codes, out[start:stop])

    share_rows(work, len(queries), n_threads)
    return out
