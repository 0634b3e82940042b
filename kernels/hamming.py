"""Exact nearest codes in Hamming distance, by scanning all of them."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from hashstream.kernels._arrays import codes_array, share_rows
from hashstream.kernels._intrinsics import (
    SLICE_CODES,
    SLICE_LANES,
    any_below,
    counter_bits,
    popcount,
    slice_bits,
)
from hashstream.kernels._jit import jit

BLOCK = 4096  # codes whose distances to one query are kept at a time, in the first-level cache
SMALL_K = 128  # up to here nearest codes are kept sorted by insertion, beyond by counting
SLICED_FROM = 8  # queries from which turning the codes into bit planes pays
SLICED_WORDS = 4  # longest codes for which a tree of adders is compiled
SLICED_QUERIES = 64  # queries that share the planes of a block while all is in the first-level cache


@jit
def _block_distances(query, block, out):  # type: ignore[no-untyped-def]
    """Distances of `query` (n_words,) to the codes of `block` (n, n_words), and the smallest of them."""
    n = len(block)
    flat = block.ravel()
    smallest = np.uint64(0xFFFF)
    if len(query) == 1:
        q0 = query[0]
        for i in range(n):
            d = popcount(flat[i] ^ q0)
            out[i] = d
            smallest = min(smallest, d)
    elif len(query) == 2:
        q0, q1 = query[0], query[1]
        for i in range(n):
            d = popcount(flat[2 * i] ^ q0) + popcount(flat[2 * i + 1] ^ q1)
            out[i] = d
            smallest = min(smallest, d)
    elif len(query) == 4:
        q0, q1, q2, q3 = query[0], query[1], query[2], query[3]
        for i in range(n):
            d = popcount(flat[4 * i] ^ q0) + popcount(flat[4 * i + 1] ^ q1)
            d += popcount(flat[4 * i + 2] ^ q2) + popcount(flat[4 * i + 3] ^ q3)
            out[i] = d
            smallest = min(smallest, d)
    else:
        for i in range(n):
            row = block[i]
            d = np.uint64(0)
            for word in range(len(query)):
                d += popcount(row[word] ^ query[word])
            out[i] = d
            smallest = min(smallest, d)
    return np.int64(smallest)


@jit
def _insert(distance, row, distances, rows, k):  # type: ignore[no-untyped-def]
    """Puts a code behind those that are as near: rows come in ascending order, so ties stay so."""
    at = k - 1
    while at > 0 and distances[at - 1] > distance:
        distances[at] = distances[at - 1]
        rows[at] = rows[at - 1]
        at -= 1
    distances[at] = distance
    rows[at] = row


@jit
def _topk_small(queries, codes, k, distances, rows):  # type: ignore[no-untyped-def]
    """Nearest codes of few: a code enters only if it is nearer than the k-th nearest so far."""
    block_distances = np.empty(BLOCK, np.uint16)
    distances[:] = np.int32(0x7FFFFFFF)
    for start in range(0, len(codes), BLOCK):
        block = codes[start : start + BLOCK]
        for q in range(len(queries)):
            smallest = _block_distances(queries[q], block, block_distances)
            if smallest < distances[q, k - 1]:
                for i in range(len(block)):
                    if block_distances[i] < distances[q, k - 1]:
                        _insert(block_distances[i], start + i, distances[q], rows[q], k)


@jit
def _slice_block(codes, start, planes):  # type: ignore[no-untyped-def]
    """Bit planes of 512 codes: plane 2 b holds bit b of each code, plane 2 b + 1 its complement."""
    n_words = codes.shape[1]
    if n_words == 1:
        slice_bits(codes, start, planes, 0)
        return
    words = np.empty(SLICE_CODES, np.uint64)
    for word in range(n_words):
        for i in range(SLICE_CODES):
            words[i] = codes[start + i, word]
        slice_bits(words, 0, planes, 128 * word * SLICE_LANES)


@jit
def _scan_block(query, codes, start, stop, distances, rows, k):  # type: ignore[no-untyped-def]
    """Lets ``codes[start:stop]`` enter one by one; gives the distance of the k-th nearest."""
    for row in range(start, stop):
        d = np.uint64(0)
        for word in range(len(query)):
            d += popcount(codes[row, word] ^ query[word])
        if np.int64(d) < distances[k - 1]:
            _insert(np.int32(d), row, distances, rows, k)
    return distances[k - 1]


@jit
def _set_threshold(distance, threshold):  # type: ignore[no-untyped-def]
    for level in range(len(threshold)):
        threshold[level] = np.uint64(0) - np.uint64((distance >> level) & 1)


@jit
def _topk_sliced(queries, codes, k, words, n_levels, distances, rows):  # type: ignore[no-untyped-def]
    """As `_topk_small`, with the distances of 512 codes to a query in bit planes at once.

    `words` is a tuple as long as a code has words, so that each length is compiled for itself.
    """
    n_queries = len(queries)
    n_bits = 64 * len(words)
    choice = np.empty((n_queries, n_bits), np.int32)
    thresholds = np.empty((n_queries, n_levels), np.uint64)
    planes = np.empty((2 * n_bits, SLICE_LANES), np.uint64)
    distances[:] = n_bits + 1
    for q in range(n_queries):
        _set_threshold(n_bits + 1, thresholds[q])
        for b in range(n_bits):
            bit = (queries[q, b >> 6] >> np.uint64(b & 63)) & np.uint64(1)
            choice[q, b] = 2 * b + np.int32(bit)
    whole = len(codes) - len(codes) % SLICE_CODES
    for first in range(0, n_queries, SLICED_QUERIES):
        last = min(first + SLICED_QUERIES, n_queries)
        for start in range(0, whole, SLICE_CODES):
            _slice_block(codes, start, planes)
            for q in range(first, last):
                if any_below(words, planes, choice[q], thresholds[q]):
                    stop = start + SLICE_CODES
                    furthest = _scan_block(queries[q], codes, start, stop, distances[q], rows[q], k)
                    _set_threshold(furthest, thresholds[q])
        for q in range(first, last):
            _scan_block(queries[q], codes, whole, len(codes), distances[q], rows[q], k)


@jit
def _topk_counting(queries, codes, k, distances, rows):  # type: ignore[no-untyped-def]
    """Nearest codes of many: count each distance, then put every code that is near enough where it belongs."""
    n_bits = codes.shape[1] * 64
    block_distances = np.empty(BLOCK, np.uint16)
    places = np.empty(n_bits + 2, np.int64)
    for q in range(len(queries)):
        places[:] = 0
        for start in range(0, len(codes), BLOCK):
            block = codes[start : start + BLOCK]
            _block_distances(queries[q], block, block_distances)
            for i in range(len(block)):
                places[block_distances[i] + 1] += 1
        for d in range(1, n_bits + 2):
            places[d] += places[d - 1]
        for start in range(0, len(codes), BLOCK):
            block = codes[start : start + BLOCK]
            _block_distances(queries[q], block, block_distances)
            for i in range(len(block)):
                d = block_distances[i]
                if places[d] < k:
                    distances[q, places[d]] = d
                    rows[q, places[d]] = start + i
                    places[d] += 1


@jit
def _all_distances(queries, codes, out):  # type: ignore[no-untyped-def]
    for start in range(0, len(codes), BLOCK):
        block = codes[start : start + BLOCK]
        for q in range(len(queries)):
            _block_distances(queries[q], block, out[q, start : start + BLOCK])


def hamming_topk(
    queries: Any, codes: Any, k: int, *, n_threads: int = 1
) -> tuple[NDArray[np.int32], NDArray[np.int64]]:
    """The k nearest codes of each query, exactly.

    Parameters
    ----------
    queries : (n_queries, n_words) uint64
    codes : (n, n_words) uint64
    k : int
        Clipped to n.
    n_threads : int
        Threads that share the queries; the result is the same for any number.

    Returns
    -------
    distances : (n_queries, k) int32
        Ascending.
    rows : (n_queries, k) int64
        Rows of `codes`; among equal distances ascending.

    Raises
    ------
    TypeError, ValueError
        Arrays of the wrong kind or shape, or k below 1.
    """
    queries = codes_array(queries, "queries")
    codes = codes_array(codes, n_words=queries.shape[1])
    if k < 1:
        raise ValueError(f"k is {k}, expected at least 1")
    k = min(int(k), len(codes))
    distances, rows = np.empty((len(queries), k), np.int32), np.empty((len(queries), k), np.int64)
    if k == 0 or len(queries) == 0:
        return distances, rows

    def work(start: int, stop: int) -> None:
        part = slice(start, stop)
        n_words = codes.shape[1]
        if k > SMALL_K:
            _topk_counting(queries[part], codes, k, distances[part], rows[part])
        elif stop - start >= SLICED_FROM and n_words <= SLICED_WORDS:
            levels = counter_bits(64 * n_words)
            _topk_sliced(queries[part], codes, k, (0,) * n_words, levels, distances[part], rows[part])
        else:
            _topk_small(queries[part], codes, k, distances[part], rows[part])

    share_rows(work, len(queries), n_threads)
    return distances, rows


def hamming_distances(queries: Any, codes: Any) -> NDArray[np.uint16]:
    """Every distance of a query to a code.

    Parameters
    ----------
    queries : (n_queries, n_words) uint64
    codes : (n, n_words) uint64

    Returns
    -------
    (n_queries, n) uint16

    Raises
    ------
    TypeError, ValueError
        Arrays of the wrong kind or shape, or codes of more than 65,535 bits.
    """
    queries = codes_array(queries, "queries")
    codes = codes_array(codes, n_words=queries.shape[1])
    if codes.shape[1] * 64 > np.iinfo(np.uint16).max:
        raise ValueError(f"codes have {codes.shape[1]} words, expected at most {np.iinfo(np.uint16).max // 64}")
    out = np.empty((len(queries), len(codes)), np.uint16)
    _all_distances(queries, codes, out)
    return out
