"""Exact nearest codes in Hamming distance, by scanning all of them."""

from __future__ import annotations

from threading import Lock
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hashstream.kernels._arrays import codes_array, share_rows
from hashstream.kernels._code_vectors import EIGHT, any_within, put_distances
from hashstream.kernels._cpu import reads_ahead
from hashstream.kernels._intrinsics import popcount, prefetch, trailing_zeros
from hashstream.kernels._jit import bare, inline, jit
from hashstream.kernels._planes import (
    ENTRIES,
    GROUP,
    SLICE_CODES,
    SLICE_LANES,
    any_below,
    build_tables,
    counter_bits,
    n_choices,
    slice_bits,
    table_planes,
)

BLOCK = 4096  # codes whose distances to one query are kept at a time, in the first-level cache
SMALL_K = 128  # up to here nearest codes are kept sorted by insertion, beyond by counting
LINE = 8  # words of a cache line
READS_AHEAD = reads_ahead()
LINES_AT_ONCE = 24  # most cache lines that are worth asking for in a row, if READS_AHEAD
STREAMS = 4  # places in which memory is read in turn for one query; of longer codes fewer, if READS_AHEAD
AHEAD = 128  # words between asking for a code and reading it for one query, if not READS_AHEAD
SLICED_FROM = 48  # queries from which turning the codes into bit planes pays
SLICED_WORDS = 4  # longest codes for which the loops and a tree of adders are compiled
SLICED_QUERIES = 256  # queries that share the tables of a block
SHARED_CODES = 1 << 16  # fewest codes that a thread is given where threads share the codes
SHARED_BLOCKS = 3  # blocks of codes a thread
SHARED_RESULTS = 1 << 17  # most results where threads share the codes: each block has as many for a while


@inline
def _distances_by_eight(queries, q, part, words, n, out):  # type: ignore[no-untyped-def]
    """Distances of query `q` to the first `n` codes of `part`, but for the last few that do not make eight."""
    for i in range(0, n - n % EIGHT, EIGHT):
        put_distances(words, part, i * len(words), queries, q, out, i)
    return n - n % EIGHT


@bare
def _block_distances(queries, q, flat, start, n, out):  # type: ignore[no-untyped-def]
    """Distances of query `q` to the codes `start` to ``start + n`` of `flat`, which holds all, and the smallest."""
    n_words = queries.shape[1]
    part = flat[start * n_words : (start + n) * n_words]
    smallest, done = np.uint64(0xFFFF), 0
    if n_words == 1:
        q0 = queries[q, 0]
        for i in range(n):
            d = popcount(part[i] ^ q0)
            out[i] = d
            smallest = min(smallest, d)
        return np.int64(smallest)
    if n_words > SLICED_WORDS:
        for i in range(n):
            d = np.uint64(0)
            for word in range(n_words):
                d += popcount(part[i * n_words + word] ^ queries[q, word])
            out[i] = d
            smallest = min(smallest, d)
        return np.int64(smallest)
    if n_words == 2:
        done = _distances_by_eight(queries, q, part, (0, 0), n, out)
    elif n_words == 3:
        done = _distances_by_eight(queries, q, part, (0, 0, 0), n, out)
    else:
        done = _distances_by_eight(queries, q, part, (0, 0, 0, 0), n, out)
    least = np.uint16(0xFFFF)
    for i in range(done):
        least = min(least, out[i])
    for i in range(done, n):
        d = np.uint64(0)
        for word in range(n_words):
            d += popcount(part[i * n_words + word] ^ queries[q, word])
        out[i] = d
        smallest = min(smallest, d)
    return np.int64(min(smallest, np.uint64(least)))


@bare
def _insert(distance, row, distances, rows, k):  # type: ignore[no-untyped-def]
    """Puts a code behind those that are as near: rows come in ascending order, so ties stay so."""
    at = k - 1
    while at > 0 and distances[at - 1] > distance:
        distances[at] = distances[at - 1]
        rows[at] = rows[at - 1]
        at -= 1
    distances[at] = distance
    rows[at] = row


@bare
def _scan_block(query, codes, start, stop, distances, rows, k):  # type: ignore[no-untyped-def]
    """Lets ``codes[start:stop]`` enter one by one; gives the distance of the k-th nearest."""
    for row in range(start, stop):
        d = np.uint64(0)
        for word in range(len(query)):
            d += popcount(codes[row, word] ^ query[word])
        if np.int64(d) < distances[k - 1]:
            _insert(np.int32(d), row, distances, rows, k)
    return np.int64(distances[k - 1])


@inline
def lines_each(n_words, n_queries):  # type: ignore[no-untyped-def]
    """Cache lines that each of some queries asks for, so that all do for a block of 512 codes.

    The processor looks ahead within a page of memory only, which is one block of 64-bit codes. Requests for many at
    once wait for each other, and what is read then for them: on a processor that reads ahead better by itself few
    queries ask for nothing.
    """
    each = (SLICE_CODES * n_words // LINE + n_queries - 1) // n_queries
    return 0 if READS_AHEAD and each > LINES_AT_ONCE else each


@bare
def _topk_scan(queries, codes, flat, k, words, distances, rows):  # type: ignore[no-untyped-def]
    """Nearest codes of few: a code enters only if it is nearer than the k-th nearest so far.

    `words` is a tuple as long as a code has words, at most 4, so that each length is compiled for itself; `flat` is
    `codes` in one dimension. `distances` begins with what only nearer codes displace.
    """
    n_words = len(words)
    whole, each = len(codes) - len(codes) % SLICE_CODES, lines_each(n_words, len(queries))
    for first in range(0, whole, SLICE_CODES):
        ahead = (first + SLICE_CODES) * n_words
        for q in range(len(queries)):
            for line in range(each):
                prefetch(flat, ahead + (q * each + line) * LINE)
            query, furthest = queries[q], np.int64(distances[q, k - 1])
            for start in range(first, first + SLICE_CODES, 64):
                if any_within(words, flat, start * n_words, query, furthest - 1):
                    furthest = _scan_block(query, codes, start, start + 64, distances[q], rows[q], k)
    for q in range(len(queries)):
        _scan_block(queries[q], codes, whole, len(codes), distances[q], rows[q], k)


@inline
def _enter(distance, row, distances, rows, k):  # type: ignore[no-untyped-def]
    """Lets a code enter if it is nearer than the k-th so far, or as near with a lower row."""
    at = k - 1
    if distance > distances[at] or (distance == distances[at] and row > rows[at]):
        return
    while at > 0 and (distances[at - 1] > distance or (distances[at - 1] == distance and rows[at - 1] > row)):
        distances[at] = distances[at - 1]
        rows[at] = rows[at - 1]
        at -= 1
    distances[at] = distance
    rows[at] = row


@bare
def _topk_one(query, codes, flat, k, words, distances, rows):  # type: ignore[no-untyped-def]
    """As `_topk_scan`, for one query: bound by memory, which gives more when read in several places in turn."""
    n_words = len(words)
    n_streams = STREAMS // n_words if READS_AHEAD else STREAMS
    part = len(codes) // n_streams // 64 * 64
    for first in range(0, part, 64):
        for stream in range(n_streams):
            start = stream * part + first
            if not READS_AHEAD:
                for line in range(0, 64 * n_words, LINE):
                    prefetch(flat, start * n_words + AHEAD + line)
            # As near as the k-th is near enough before its row.
            limit = np.int64(distances[k - 1]) - np.int64(start >= rows[k - 1])
            if any_within(words, flat, start * n_words, query, limit):
                for row in range(start, start + 64):
                    d = np.int64(0)
                    for word in range(n_words):
                        d += np.int64(popcount(flat[row * n_words + word] ^ query[word]))
                    _enter(d, row, distances, rows, k)
    _scan_block(query, codes, n_streams * part, len(codes), distances, rows, k)


@jit
def _topk_wide(queries, codes, k, distances, rows):  # type: ignore[no-untyped-def]
    """As `_topk_scan`, for codes of any number of words."""
    block_distances, flat = np.empty(BLOCK, np.uint16), codes.ravel()
    for start in range(0, len(codes), BLOCK):
        n = min(BLOCK, len(codes) - start)
        for q in range(len(queries)):
            if _block_distances(queries, q, flat, start, n, block_distances) < distances[q, k - 1]:
                for i in range(n):
                    if block_distances[i] < distances[q, k - 1]:
                        _insert(block_distances[i], start + i, distances[q], rows[q], k)


@jit
def _aligned(n):  # type: ignore[no-untyped-def]
    """Room for `n` words that begins where a cache line does: loads of a plane then touch one line, not two."""
    room = np.empty(n + 7, np.uint64)
    first = -(room.ctypes.data >> 3) & 7
    return room[first : first + n]


@bare
def _slice_block(flat, n_words, start, planes, tables):  # type: ignore[no-untyped-def]
    """The tables of 512 codes of `n_words` (see `_planes`); `planes` is for in between."""
    if n_words == 1:
        slice_bits(flat, start, planes, 0)
    else:
        for word in range(n_words):
            at = 64 * word * SLICE_LANES
            for i in range(SLICE_CODES):
                planes[at + i] = flat[(start + i) * n_words + word]
            slice_bits(planes, at, planes, at)
    build_tables(64 * n_words, planes, tables)


@jit
def _choices_of(queries, n_entries):  # type: ignore[no-untyped-def]
    """Where the entries that each query picks begin in the tables: (n_queries * n_entries,) uint16."""
    n_groups = 64 * queries.shape[1] // GROUP
    choices = np.empty(len(queries) * n_entries, np.uint16)
    for q in range(len(queries)):
        for entry in range(n_entries):
            first = GROUP * entry if entry < n_groups else GROUP * n_groups + entry - n_groups
            last = first + GROUP if entry < n_groups else first + 1
            picked = np.int64(0)
            for b in range(first, last):
                picked |= np.int64((queries[q, b >> 6] >> np.uint64(b & 63)) & np.uint64(1)) << (b - first)
            if entry < n_groups:
                plane = 2 * (ENTRIES * entry + picked)
            else:
                plane = 2 * (ENTRIES * n_groups + entry - n_groups) + picked
            choices[q * n_entries + entry] = plane * SLICE_LANES
    return choices


@jit
def _limits_to(n_bits, n_levels):  # type: ignore[no-untyped-def]
    """For each threshold up to ``n_bits + 1`` the bits of ``2**n_levels`` less it, each spread over a word."""
    limits = np.empty((n_bits + 2) * n_levels, np.uint64)
    for threshold in range(n_bits + 2):
        for level in range(n_levels):
            bit = (((1 << n_levels) - threshold) >> level) & 1
            limits[threshold * n_levels + level] = np.uint64(0) - np.uint64(bit)
    return limits


_Row = NDArray[Any]


def sliced_scratch(queries: NDArray[np.uint64]) -> tuple[tuple[int, int], tuple[_Row, _Row, _Row, _Row, _Row]]:
    """What a bit-sliced scan needs: the sizes, and the choices, limits, planes, tables and marks of `_planes`."""
    n_bits = 64 * queries.shape[1]
    sizes = n_choices(n_bits), counter_bits(n_bits)
    planes, tables = _aligned(n_bits * SLICE_LANES), _aligned(table_planes(n_bits) * SLICE_LANES)
    marked = np.empty(SLICE_LANES, np.uint64)
    return sizes, (_choices_of(queries, sizes[0]), _limits_to(n_bits, sizes[1]), planes, tables, marked)


@inline
def _enter_marked(query, flat, start, words, marked, distances, rows, k):  # type: ignore[no-untyped-def]
    """Lets the codes enter of a block at `start` that are marked; they come by lanes, so rows decide ties."""
    n_words = len(words)
    for lane in range(SLICE_LANES):
        bits = marked[lane]
        while bits:
            row = start + SLICE_LANES * trailing_zeros(bits) + lane
            bits &= bits - np.uint64(1)
            d = np.int64(0)
            for word in range(n_words):
                d += np.int64(popcount(flat[row * n_words + word] ^ query[word]))
            _enter(d, row, distances, rows, k)


@bare
def _topk_sliced(  # type: ignore[no-untyped-def]
    queries, codes, flat, k, words, sizes, choices, limits, planes, tables, marked, distances, rows
):
    """As `_topk_scan`, with the distances of 512 codes to a query in bit planes at once.

    `sizes` is `n_choices` and `counter_bits` of the code's bits; `planes`, `tables` and `marked` are for in between.
    """
    n_entries, n_levels = sizes
    whole = len(codes) - len(codes) % SLICE_CODES
    for first in range(0, len(queries), SLICED_QUERIES):
        last = min(first + SLICED_QUERIES, len(queries))
        each = lines_each(len(words), last - first)
        for start in range(0, whole, SLICE_CODES):
            _slice_block(flat, len(words), start, planes, tables)
            ahead = (start + SLICE_CODES) * len(words)
            for q in range(first, last):
                for line in range(each):
                    prefetch(flat, ahead + ((q - first) * each + line) * LINE)
                limit = np.int64(distances[q, k - 1])
                if limit > 0 and any_below(words, tables, choices, q * n_entries, limits, limit * n_levels, marked):
                    _enter_marked(queries[q], flat, start, words, marked, distances[q], rows[q], k)
        for q in range(first, last):
            _scan_block(queries[q], codes, whole, len(codes), distances[q], rows[q], k)


@jit
def _topk_counting(queries, codes, k, distances, rows):  # type: ignore[no-untyped-def]
    """Nearest codes of many: count each distance, then put every code that is near enough where it belongs."""
    n_bits = codes.shape[1] * 64
    block_distances, flat = np.empty(BLOCK, np.uint16), codes.ravel()
    places = np.empty(n_bits + 2, np.int64)
    for q in range(len(queries)):
        places[:] = 0
        for start in range(0, len(codes), BLOCK):
            n = min(BLOCK, len(codes) - start)
            _block_distances(queries, q, flat, start, n, block_distances)
            for i in range(n):
                places[block_distances[i] + 1] += 1
        for d in range(1, n_bits + 2):
            places[d] += places[d - 1]
        for start in range(0, len(codes), BLOCK):
            n = min(BLOCK, len(codes) - start)
            _block_distances(queries, q, flat, start, n, block_distances)
            for i in range(n):
                d = block_distances[i]
                if places[d] < k:
                    distances[q, places[d]] = d
                    rows[q, places[d]] = start + i
                    places[d] += 1


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
        Threads that share the queries, or the codes where queries are few; the result is the same for any number.

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

    few = len(queries) < n_threads * SLICED_QUERIES and len(queries) * k <= SHARED_RESULTS
    if few and k < len(codes) >= 2 * SHARED_CODES and n_threads > 1:
        # Too few queries to share the work of making bit planes: threads share the codes.
        return _search_in_parts(queries, codes, k, n_threads)

    def work(start: int, stop: int) -> None:
        distances[start:stop], rows[start:stop] = _search(queries[start:stop], codes, k)

    share_rows(work, len(queries), n_threads)
    return distances, rows


def _search_in_parts(queries: NDArray[np.uint64], codes: NDArray[np.uint64], k: int, n_threads: int) -> Any:
    """The k nearest codes, by threads that take blocks of codes."""
    # Where k codes within a distance are known, those of other blocks matter only up to that distance.
    least = np.full(len(queries), 64 * codes.shape[1], np.int32)
    lock = Lock()

    def search(start: int, stop: int) -> tuple[NDArray[np.int32], NDArray[np.int64]]:
        block = codes[start:stop]
        with lock:
            beyond = least + 1
        distances, rows = _search(queries, block, min(k, len(block)), beyond)
        if len(block) >= k:
            with lock:
                np.minimum(least, distances[:, -1], out=least)
        return distances, rows + start

    parts = share_rows(search, len(codes), n_threads, multiple=SHARED_CODES, blocks_each=SHARED_BLOCKS)
    distances, rows = (np.concatenate([part[i] for part in parts], axis=1) for i in (0, 1))
    # Blocks come in the order of rows, so that ties of a stable sort do too.
    order = np.argsort(distances, axis=1, kind="stable")[:, :k]
    return np.take_along_axis(distances, order, axis=1), np.take_along_axis(rows, order, axis=1)


def _search(
    queries: NDArray[np.uint64], codes: NDArray[np.uint64], k: int, beyond: NDArray[np.int32] | None = None
) -> Any:
    """The k nearest codes by the scan that suits the number of queries, on one thread.

    With `beyond`, a distance for each query, only codes nearer than that are certain to be found; in place of others
    may stand that distance or a larger one.
    """
    distances, rows = np.empty((len(queries), k), np.int32), np.full((len(queries), k), -1, np.int64)
    distances[:] = 64 * codes.shape[1] + 1 if beyond is None else beyond[:, None]
    n_words = codes.shape[1]
    if k > SMALL_K:
        _topk_counting(queries, codes, k, distances, rows)
    elif n_words > SLICED_WORDS:
        _topk_wide(queries, codes, k, distances, rows)
    elif len(queries) >= SLICED_FROM:
        sizes, scratch = sliced_scratch(queries)
        _topk_sliced(queries, codes, codes.ravel(), k, (0,) * n_words, sizes, *scratch, distances, rows)
    elif len(queries) == 1:
        _topk_one(queries[0], codes, codes.ravel(), k, (0,) * n_words, distances[0], rows[0])
    else:
        _topk_scan(queries, codes, codes.ravel(), k, (0,) * n_words, distances, rows)
    return distances, rows
