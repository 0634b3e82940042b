"""Counting codes in a stream: an open-addressing table of buckets with exact sums of their embeddings."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from hashstream.kernels._arrays import codes_array, float_matrix
from hashstream.kernels._intrinsics import float64_bits, prefetch_row
from hashstream.kernels._jit import bare, inline, jit

FIXED_POINT_SCALE = 2**20  # sums of embeddings are integers in units of 2**-20: exact, so in any order the same
FIXED_POINT_LIMIT = 2.0**20  # embeddings saturate here
COUNT_ROWS = 32  # cells whose sums are asked for before any is added to
# Adding 1.5 * 2**52 to a number below 2**51 rounds it, half to even, to an integer in the low bits of the float.
_ROUNDER = 6755399441055744.0
_ROUNDER_BITS = np.int64(0x4338000000000000)


class BucketArrays(NamedTuple):
    """A table of at most `max_rows` buckets; rows are in the order in which the buckets were met.

    Attributes
    ----------
    slots : (capacity,) int32
        Row of the bucket whose hash leads here, or -1; `capacity` is a power of two, at least twice `max_rows`.
    keys : (max_rows, n_words) uint64
    counts : (max_rows,) int64
        Cells in both halves.
    half_counts : (max_rows,) int64
        Cells in half 0; no rows where halves are not counted.
    sums : (max_rows, n_halves, n_dims) int64
        Sums of embeddings in units of ``1 / FIXED_POINT_SCALE``, of each half or, with one, of all cells.
    used : (1,) int64
        Number of rows in use.

    Notes
    -----
    A cell's half depends on its row in the atlas alone, as if a coin had been tossed for it: see `count_buckets`.
    """

    slots: NDArray[np.int32]
    keys: NDArray[np.uint64]
    counts: NDArray[np.int64]
    half_counts: NDArray[np.int64]
    sums: NDArray[np.int64]
    used: NDArray[np.int64]


def new_bucket_arrays(max_rows: int, n_words: int, n_dims: int, *, with_halves: bool = False) -> BucketArrays:
    """An empty table, `with_halves` one that counts two halves of the cells apart.

    Raises
    ------
    ValueError
        `max_rows` or `n_words` is below 1, `n_dims` below 0, or `max_rows` above 2**30.
    """
    if not 1 <= max_rows <= 1 << 30:
        raise ValueError(f"max_rows is {max_rows}, expected 1 to {1 << 30}")
    if n_words < 1 or n_dims < 0:
        raise ValueError(f"n_words is {n_words} and n_dims {n_dims}, expected at least 1 and 0")
    capacity = max(16, 1 << (2 * max_rows - 1).bit_length())
    return BucketArrays(
        np.full(capacity, -1, np.int32),
        np.zeros((max_rows, n_words), np.uint64),
        np.zeros(max_rows, np.int64),
        np.zeros(max_rows if with_halves else 0, np.int64),
        np.zeros((max_rows, 2 if with_halves else 1, n_dims), np.int64),
        np.zeros(1, np.int64),
    )


@inline
def _mix(h):  # type: ignore[no-untyped-def]
    """A bijection of 64 bits in which every output bit depends on every input bit (as murmur3 ends)."""
    h ^= h >> np.uint64(33)
    h *= np.uint64(0xFF51AFD7ED558CCD)
    h ^= h >> np.uint64(33)
    h *= np.uint64(0xC4CEB9FE1A85EC53)
    h ^= h >> np.uint64(33)
    return h


@bare
def _find(slots, keys, codes, row, mask):  # type: ignore[no-untyped-def]
    """The slot where the masked code is, or the empty one where it would go."""
    n_words = codes.shape[1]
    h = np.uint64(0)
    for word in range(n_words):
        h = _mix(h ^ (codes[row, word] & mask[word]))
    last = np.uint64(len(slots) - 1)
    at = h & last
    while True:
        bucket = slots[at]
        if bucket < 0:
            return np.int64(at)
        same = True
        for word in range(n_words):
            same &= keys[bucket, word] == codes[row, word] & mask[word]
        if same:
            return np.int64(at)
        at = (at + np.uint64(1)) & last


@bare
def _take_row(slots, keys, used, slot, codes, row, mask):  # type: ignore[no-untyped-def]
    """Gives the masked code a new row; -1 if there is none left."""
    bucket = used[0]
    if bucket == len(keys):
        return np.int64(-1)
    slots[slot] = bucket
    for word in range(codes.shape[1]):
        keys[bucket, word] = codes[row, word] & mask[word]
    used[0] = bucket + 1
    return np.int64(bucket)


@inline
def _add_fixed_point(total, value):  # type: ignore[no-untyped-def]
    for i in range(len(total)):
        x = float(value[i])
        x = x if x == x else 0.0  # NaN counts as 0
        x = min(max(x, -FIXED_POINT_LIMIT), FIXED_POINT_LIMIT)
        total[i] += float64_bits(x * FIXED_POINT_SCALE + _ROUNDER) - _ROUNDER_BITS


@bare
def _count_one_word(slots, keys, counts, used, codes, mask, start):  # type: ignore[no-untyped-def]
    """The plain counting of one-word codes, in the fewest steps."""
    keep = mask[0]
    last = np.uint64(len(slots) - 1)
    for row in range(start, len(codes)):
        key = codes[row, 0] & keep
        at = _mix(key) & last
        bucket = np.int64(slots[at])
        while bucket >= 0 and keys[bucket, 0] != key:
            at = (at + np.uint64(1)) & last
            bucket = np.int64(slots[at])
        if bucket < 0:
            bucket = used[0]
            if bucket == len(keys):
                return row
            slots[at] = bucket
            keys[bucket, 0] = key
            used[0] = bucket + 1
        counts[bucket] += 1
    return len(codes)


@bare
def _count(slots, keys, counts, half_counts, sums, used, codes, embedding, mask, start, first_row, targets):  # type: ignore[no-untyped-def]
    """Counts a block of rows, asking for their sums in memory, which is slow to come, and then adds to these.

    `targets` (COUNT_ROWS,) is for in between.
    """
    _, n_halves, n_dims = sums.shape
    for first in range(start, len(codes), COUNT_ROWS):
        n = min(COUNT_ROWS, len(codes) - first)
        done = 0
        while done < n:
            row = first + done
            slot = _find(slots, keys, codes, row, mask)
            bucket = np.int64(slots[slot])
            if bucket < 0:
                bucket = _take_row(slots, keys, used, slot, codes, row, mask)
                if bucket < 0:
                    break
            counts[bucket] += 1
            target = bucket
            if n_halves == 2:
                half = np.int64(_mix(np.uint64(first_row + row)) & np.uint64(1))
                half_counts[bucket] += 1 - half
                target = 2 * bucket + half
            targets[done] = target
            prefetch_row(sums, target, n_dims)
            done += 1
        if n_dims:
            for i in range(done):
                _add_fixed_point(sums[targets[i] // n_halves, targets[i] % n_halves], embedding[first + i])
        if done < n:
            return first + done
    return len(codes)


@bare
def _lookup(slots, keys, codes, mask, rows):  # type: ignore[no-untyped-def]
    for row in range(len(codes)):
        rows[row] = slots[_find(slots, keys, codes, row, mask)]


@bare
def _merge(  # type: ignore[no-untyped-def]
    slots, keys, counts, half_counts, sums, used, other_keys, other_counts, other_half_counts, other_sums, mask, start
):
    for row in range(start, len(other_keys)):
        slot = _find(slots, keys, other_keys, row, mask)
        bucket = np.int64(slots[slot])
        if bucket < 0:
            bucket = _take_row(slots, keys, used, slot, other_keys, row, mask)
            if bucket < 0:
                return row
        counts[bucket] += other_counts[row]
        if len(half_counts):
            half_counts[bucket] += other_half_counts[row]
        for half in range(sums.shape[1]):
            for i in range(sums.shape[2]):
                sums[bucket, half, i] += other_sums[row, half, i]
    return len(other_keys)


@jit
def _shorten(slots, keys, counts, half_counts, sums, used, mask):  # type: ignore[no-untyped-def]
    """Merges rows in place: a row's new place is never behind its old one, as rows keep the order of their firsts."""
    n = used[0]
    _, n_halves, n_dims = sums.shape
    targets = np.empty(n, np.int64)
    slots[:] = -1
    used[0] = 0
    for row in range(n):
        slot = _find(slots, keys, keys, row, mask)
        bucket = np.int64(slots[slot])
        targets[row] = _take_row(slots, keys, used, slot, keys, row, mask) if bucket < 0 else bucket
    met = 0
    for row in range(n):
        if row + COUNT_ROWS < n:
            prefetch_row(sums, targets[row + COUNT_ROWS], n_halves * n_dims)
        target = targets[row]
        if target == met:
            met += 1
            if target != row:
                counts[target] = counts[row]
                sums[target] = sums[row]
                if len(half_counts):
                    half_counts[target] = half_counts[row]
        else:
            counts[target] += counts[row]
            if len(half_counts):
                half_counts[target] += half_counts[row]
            for half in range(n_halves):
                for i in range(n_dims):
                    sums[target, half, i] += sums[row, half, i]
    keys[met:n] = 0
    counts[met:n] = 0
    half_counts[met:n] = 0
    sums[met:n] = 0


def _checked_mask(mask: Any, n_words: int) -> NDArray[np.uint64]:
    mask = np.asarray(mask)
    if mask.dtype != np.uint64:
        raise TypeError(f"mask has dtype {mask.dtype}, expected uint64")
    if mask.shape != (n_words,):
        raise ValueError(f"mask has shape {mask.shape}, expected ({n_words},)")
    return np.ascontiguousarray(mask)


def _checked_start(start: int, n: int) -> int:
    if not 0 <= start <= n:
        raise ValueError(f"start is {start}, expected 0 to {n}, the number of rows")
    return int(start)


def count_buckets(
    arrays: BucketArrays, codes: Any, embedding: Any, mask: Any, start: int = 0, *, first_row: int | None = None
) -> int:
    """Counts rows of codes, from row `start` on, into the table, which it changes.

    The bucket of a row is ``code & mask``; its count grows by one and its sums by the embedding, each number rounded
    half to even to a multiple of ``1 / FIXED_POINT_SCALE`` and saturating at `FIXED_POINT_LIMIT` (NaN adds 0).

    Parameters
    ----------
    arrays : BucketArrays
    codes : (n, n_words) uint64
    embedding : (n, n_dims) float32, or None if the table has no dimensions
    mask : (n_words,) uint64
        Always the same for one table; see `prefix_mask`.
    start : int
    first_row : int, optional
        Row in the whole atlas of the first code, for a table that counts halves: the half of a cell is the lowest bit
        of its row, mixed by the finaliser of murmur3. So it depends on nothing else.

    Returns
    -------
    int
        First row that was not counted: n when all were, else a row whose bucket finds the table full.

    Raises
    ------
    TypeError, ValueError
        Arrays that do not fit the table.
    """
    codes = codes_array(codes, n_words=arrays.keys.shape[1])
    mask = _checked_mask(mask, codes.shape[1])
    start = _checked_start(start, len(codes))
    _, n_halves, n_dims = arrays.sums.shape
    if (first_row is not None) != (n_halves == 2):
        raise ValueError(f"first_row is {first_row}, but the table has {n_halves} part(s) a bucket, expected 2 with it")
    if n_dims == 0 and n_halves == 1 and codes.shape[1] == 1:
        return int(_count_one_word(arrays.slots, arrays.keys, arrays.counts, arrays.used, codes, mask, start))
    if n_dims == 0:
        embedding = np.empty((len(codes), 0), np.float32)
    else:
        if embedding is None:
            raise ValueError(f"embedding is None, but the table sums {n_dims} dimensions")
        embedding = float_matrix(embedding, "embedding")
        if embedding.shape != (len(codes), n_dims):
            raise ValueError(f"embedding has shape {embedding.shape}, expected ({len(codes)}, {n_dims})")
    targets = np.empty(COUNT_ROWS, np.int64)
    return int(_count(*arrays, codes, embedding, mask, start, first_row or 0, targets))


def lookup_buckets(arrays: BucketArrays, codes: Any, mask: Any) -> NDArray[np.int32]:
    """The table's row of the bucket of each code, or -1.

    Parameters
    ----------
    arrays : BucketArrays
    codes : (n, n_words) uint64
    mask : (n_words,) uint64
        That with which the table was made.

    Returns
    -------
    (n,) int32

    Raises
    ------
    TypeError, ValueError
        Arrays that do not fit the table.
    """
    codes = codes_array(codes, n_words=arrays.keys.shape[1])
    rows = np.empty(len(codes), np.int32)
    _lookup(arrays.slots, arrays.keys, codes, _checked_mask(mask, codes.shape[1]), rows)
    return rows


def merge_buckets(
    arrays: BucketArrays, keys: Any, counts: Any, half_counts: Any, sums: Any, mask: Any, start: int = 0
) -> int:
    """Adds the rows of another table, from row `start` on, to the table, which it changes.

    Parameters
    ----------
    arrays : BucketArrays
    keys : (n, n_words) uint64
        Codes of the other table, of any longer prefix.
    counts : (n,) int64
    half_counts : (n,) int64
        No rows where the table counts no halves.
    sums : (n, n_halves, n_dims) int64
        In units of ``1 / FIXED_POINT_SCALE``.
    mask : (n_words,) uint64
        That with which this table was made.
    start : int

    Returns
    -------
    int
        First row that was not added: n when all were, else a row whose bucket finds the table full.

    Raises
    ------
    TypeError, ValueError
        Arrays that do not fit the table.
    """
    keys = codes_array(keys, "keys", arrays.keys.shape[1])
    mask = _checked_mask(mask, keys.shape[1])
    start = _checked_start(start, len(keys))
    counts, half_counts, sums = np.asarray(counts), np.asarray(half_counts), np.asarray(sums)
    for name, array, shape in (
        ("counts", counts, (len(keys),)),
        ("half_counts", half_counts, (len(keys) if len(arrays.half_counts) else 0,)),
        ("sums", sums, (len(keys), *arrays.sums.shape[1:])),
    ):
        if array.dtype != np.int64:
            raise TypeError(f"{name} has dtype {array.dtype}, expected int64")
        if array.shape != shape:
            raise ValueError(f"{name} has shape {array.shape}, expected {shape}")
    counts, half_counts, sums = (np.ascontiguousarray(part) for part in (counts, half_counts, sums))
    return int(_merge(*arrays, keys, counts, half_counts, sums, mask, start))


def shorten_buckets(arrays: BucketArrays, mask: Any) -> None:
    """Merges the rows of a table whose masked keys are equal, in place: buckets of a shorter prefix.

    Parameters
    ----------
    arrays : BucketArrays
        Rows keep the order in which the first of their parts stood.
    mask : (n_words,) uint64
        The table's from now on.

    Raises
    ------
    TypeError, ValueError
        A mask that does not fit the table.
    """
    _shorten(*arrays, _checked_mask(mask, arrays.keys.shape[1]))
