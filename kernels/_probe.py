"""The search of a multi-index: many queries at a time, bucket by bucket, so that each is read but once or twice.

What is met is kept as distinct codes, numbered in the order of their first rows; only the k best become rows at the
end. So the memory that is read at random, where the rows of a code are, is read for few codes.
"""

from __future__ import annotations

import numpy as np

from hashstream.kernels._intrinsics import popcount, prefetch, trailing_zeros, within_mask
from hashstream.kernels._jit import bare, inline, jit

CHUNK = 16  # codes that are compared at once
PROBE_COST = 256  # a lookup takes as long as this many codes of a scan
CODE_COST = 2  # a code in a bucket takes as long as this many codes of a scan
REPEATED = 1 << 31  # set in the number of a code that more than one row has
#: Columns of the layout, a row a table: where in a code its substring is, and where its parts begin.
WORD, SHIFT, MASK, WIDTH, FIRST, CODES, NUMBERS, STRIDE = range(8)
LOOKUPS = 1 << 21  # lookups that are put in order at once, of 8 bytes each
_MET = 32  # codes whose numbers are asked for before they are looked at
_AHEAD = 4  # lookups between asking for a bucket's codes and reading them
_LINES = 8  # cache lines of a bucket that are asked for; the processor asks for the rest by itself
_MOST_BINS = 16  # bits of the bucket by which lookups are ordered
_BLOCK = 4096  # codes of a scan that all queries look at while they are in the first-level cache
_FAR = np.int64(0x7FFF)
_NOTHING = np.int64(0x7FFFFFFFFFFFFFFF)


@inline
def _hold(q, distance, number, n_rows, k, held, held_rows, n_held, n_found, limits):  # type: ignore[no-untyped-def]
    """Lets a code enter those of a query that can have one of its k best rows.

    They are in the order of ``distance << 32 | number``. Behind k of them a code has none of the k best rows, as each
    has its first row before; nor has one further away than codes with k rows.
    """
    entry, n = distance << 32 | number, np.int64(n_held[q])
    if n < k or held[q, k - 1] > entry:
        if n == k:
            n -= 1
            n_found[q] -= held_rows[q, n]
        at = n
        while at > 0 and held[q, at - 1] > entry:
            held[q, at], held_rows[q, at] = held[q, at - 1], held_rows[q, at - 1]
            at -= 1
        held[q, at], held_rows[q, at] = entry, n_rows
        n_found[q] += n_rows
        n += 1
        while n_found[q] >= k:
            limits[q] = held[q, n - 1] >> 32
            nearer, n_nearer = n, n_found[q]
            while nearer > 0 and held[q, nearer - 1] >> 32 == limits[q]:
                nearer -= 1
                n_nearer -= held_rows[q, nearer]
            if n_nearer < k:
                break
            n, n_found[q] = nearer, n_nearer
        n_held[q] = n


@inline
def _met_before(queries, q, codes, at, stride, layout, table, radius):  # type: ignore[no-untyped-def]
    """Whether a code was in a bucket that was looked up earlier: of a table at a smaller distance, or one before."""
    for other in range(len(layout)):
        word, shift = layout[other, WORD], np.uint64(layout[other, SHIFT])
        differing = ((codes[at + word * stride] ^ queries[q, word]) >> shift) & np.uint64(layout[other, MASK])
        d = np.int64(popcount(differing))
        if d < radius or (d == radius and other < table):
            return True
    return False


@bare
def _order_lookups(queries, some, layout, table, masks, shift, ends, buckets, askers):  # type: ignore[no-untyped-def]
    """The buckets that some queries look up, in order but for the low `shift` bits, and which query asks for each."""
    word, low, mask = layout[table, WORD], np.uint64(layout[table, SHIFT]), np.uint64(layout[table, MASK])
    ends[:] = 0
    for q in some:
        own = np.int64((queries[q, word] >> low) & mask)
        for i in range(len(masks)):
            ends[(own ^ masks[i]) >> shift] += 1
    n = 0
    for b in range(len(ends)):
        n_here = ends[b]
        ends[b] = n
        n += n_here
    for q in some:
        own = np.int64((queries[q, word] >> low) & mask)
        for i in range(len(masks)):
            bucket = own ^ masks[i]
            at = ends[bucket >> shift]
            ends[bucket >> shift] = at + 1
            buckets[at] = bucket
            askers[at] = q
    return n


@bare
def _enter(met, n_met, numbers, starts, k, held, held_rows, n_held, n_found, limits):  # type: ignore[no-untyped-def]
    """Lets codes that were met enter; row i of `met` is a query, a distance, and where the number of the code is."""
    for i in range(n_met):
        q, d, number, n_rows = met[i, 0], met[i, 1], np.int64(numbers[met[i, 2]]), np.int64(1)
        if d > limits[q]:
            continue
        if number >= REPEATED:
            number -= REPEATED
            n_rows = min(np.int64(starts[number + 1] - starts[number]), k)
        _hold(q, d, number, n_rows, k, held, held_rows, n_held, n_found, limits)


@bare
def _look_up(  # type: ignore[no-untyped-def]
    queries, words, first, codes, numbers, layout, table, radius, buckets, askers, met, starts, k,
    held, held_rows, n_held, n_found, limits,
):  # fmt: skip
    """Lets the codes of buckets enter, one bucket after the other, each for the query that asks for it.

    Bucket b is what is at ``first[b]`` to ``first[b + 1]`` of the table. Below a radius of 0 codes enter whether they
    were met before or not.
    """
    codes_at, numbers_at, stride = layout[table, CODES], layout[table, NUMBERS], layout[table, STRIDE]
    n, n_met, asked = len(buckets), 0, np.int64(-1)
    for i in range(n):
        if i + 2 * _AHEAD < n:
            prefetch(first, np.int64(buckets[i + 2 * _AHEAD]))
        if i + _AHEAD < n and buckets[i + _AHEAD] != asked:
            asked = np.int64(buckets[i + _AHEAD])
            lo, hi = np.int64(first[asked]), np.int64(first[asked + 1])
            for at in range(lo, min(hi, lo + 8 * _LINES), 8):
                for w in range(len(words)):
                    prefetch(codes, codes_at + at + w * stride)
        q, bucket = np.int64(askers[i]), np.int64(buckets[i])
        limit = np.int64(limits[q])
        lo, hi = np.int64(first[bucket]), np.int64(first[bucket + 1])
        for at in range(lo, hi, CHUNK):
            near = within_mask(words, codes, codes_at + at, stride, queries, q, limit)
            if near == 0:
                continue
            if hi - at < CHUNK:
                near &= (np.uint64(1) << np.uint64(hi - at)) - np.uint64(1)
            while near:
                place = at + trailing_zeros(near)
                near &= near - np.uint64(1)
                if radius >= 0 and _met_before(queries, q, codes, codes_at + place, stride, layout, table, radius):
                    continue
                d = np.int64(0)
                for w in range(len(words)):
                    d += np.int64(popcount(codes[codes_at + place + w * stride] ^ queries[q, w]))
                if d > limit:
                    continue
                prefetch(numbers, numbers_at + place)
                met[n_met, 0], met[n_met, 1], met[n_met, 2] = q, d, numbers_at + place
                n_met += 1
                if n_met == len(met):
                    _enter(met, n_met, numbers, starts, k, held, held_rows, n_held, n_found, limits)
                    n_met, limit = 0, np.int64(limits[q])
    _enter(met, n_met, numbers, starts, k, held, held_rows, n_held, n_found, limits)


@bare
def _enter_rows(distance, number, starts, rows, best, k):  # type: ignore[no-untyped-def]
    """Lets the rows of a code, which ascend, enter the k best of ``distance << 32 | row``."""
    for i in range(starts[number], starts[number + 1]):
        entry = distance << 32 | np.int64(rows[i])
        if entry >= best[k - 1]:
            return
        at = k - 1
        while at > 0 and best[at - 1] > entry:
            best[at] = best[at - 1]
            at -= 1
        best[at] = entry


@jit
def search_tables(  # type: ignore[no-untyped-def]
    queries, words, first, codes, numbers, layout, masks, shells, starts, rows, k, best
):
    """The k best rows of each query, as ``distance << 32 | row``.

    `first`, `codes` and `numbers` hold the tables one after another, where `layout` says; `masks` the patterns of
    differing bits, ``masks[shells[a]:shells[a + 1]]`` those of a bits, ascending, so that the patterns of a shorter
    substring come first.
    """
    n_tables, n_codes, n_queries = len(layout), len(starts) - 1, len(queries)
    held, held_rows = np.empty((n_queries, k), np.int64), np.empty((n_queries, k), np.int32)
    n_held, n_found = np.zeros(n_queries, np.int32), np.zeros(n_queries, np.int64)
    limits = np.full(n_queries, _FAR, np.int16)
    active = np.arange(n_queries).astype(np.int32)
    buckets, askers = np.empty(0, np.int32), np.empty(0, np.int32)
    met = np.empty((_MET, 3), np.int64)
    radius, table = 0, 0
    while len(active):
        width = layout[table, WIDTH]
        n_probes = 1
        for i in range(radius):
            n_probes = n_probes * (width - i) // (i + 1)
        if radius >= len(shells) - 1 or n_probes * (PROBE_COST + CODE_COST * (n_codes >> width)) > n_codes:
            # A scan of all codes, which knows how far the k-th nearest can be.
            blocks = np.minimum(np.arange(-(-n_codes // _BLOCK) + 1) * _BLOCK, n_codes).astype(np.int32)
            for q in active:
                n_held[q], n_found[q] = 0, 0
            for block in range(len(blocks) - 1):
                _look_up(
                    queries, words, blocks, codes, numbers, layout, 0, -1, np.full(len(active), block, np.int32),
                    active, met, starts, k, held, held_rows, n_held, n_found, limits,
                )  # fmt: skip
            break
        some = max(1, min(len(active), LOOKUPS // n_probes))
        if len(buckets) < some * n_probes:
            buckets, askers = np.empty(some * n_probes, np.int32), np.empty(some * n_probes, np.int32)
        bits = 0
        while bits < min(width, _MOST_BINS) and 1 << bits < some * n_probes:
            bits += 1
        ends = np.empty(1 << bits, np.int32)
        patterns = masks[shells[radius] : shells[radius] + n_probes]
        for begin in range(0, len(active), some):
            n = _order_lookups(
                queries, active[begin : begin + some], layout, table, patterns, width - bits, ends, buckets, askers
            )
            _look_up(
                queries, words, first[layout[table, FIRST] :], codes, numbers, layout, table, radius, buckets[:n],
                askers[:n], met, starts, k, held, held_rows, n_held, n_found, limits,
            )  # fmt: skip
        # A code that was not met differs in more than `radius` bits in the tables so far, in as many in the others.
        left = 0
        for q in active:
            if limits[q] > n_tables * radius + table:
                active[left] = q
                left += 1
        active = active[:left]
        table += 1
        if table == n_tables:
            radius, table = radius + 1, 0
    best[:] = _NOTHING
    for query in range(n_queries):
        for i in range(n_held[query]):
            prefetch(starts, held[query, i] & np.int64(0xFFFFFFFF))
        for i in range(n_held[query]):
            _enter_rows(held[query, i] >> 32, held[query, i] & np.int64(0xFFFFFFFF), starts, rows, best[query], k)
