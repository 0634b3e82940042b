"""Counts of sorted keys, merged: how many cells have each key, over any number of blocks of cells."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from hashstream.kernels._arrays import codes_array
from hashstream.kernels._jit import inline, jit


@inline
def _order(keys, row, other_keys, other_row):  # type: ignore[no-untyped-def]
    """-1, 0 or 1: whether a key is before, the same as or after another; the last word weighs most."""
    order = 0
    for word in range(keys.shape[1]):
        a, b = keys[row, word], other_keys[other_row, word]
        if a != b:
            order = -1 if a < b else 1
    return order


@jit
def _merge(keys, counts, other_keys, other_counts, out_keys, out_counts):  # type: ignore[no-untyped-def]
    n, m = len(keys), len(other_keys)
    i = j = used = 0
    while i < n or j < m:
        order = -1 if j == m else 1 if i == n else _order(keys, i, other_keys, j)
        if order <= 0:
            out_keys[used] = keys[i]
            out_counts[used] = counts[i]
            i += 1
        else:
            out_keys[used] = other_keys[j]
            out_counts[used] = 0
        if order >= 0:
            out_counts[used] += other_counts[j]
            j += 1
        used += 1
    return used


@jit
def _first_out_of_order(keys):  # type: ignore[no-untyped-def]
    for row in range(1, len(keys)):
        if _order(keys, row - 1, keys, row) >= 0:
            return row
    return -1


def first_out_of_order(keys: Any) -> int:
    """The first row that is not above the one before it, by the last word first; -1 where all rise.

    Parameters
    ----------
    keys : (n, n_words) uint64

    Raises
    ------
    TypeError, ValueError
        An array of the wrong kind or shape.
    """
    return int(_first_out_of_order(codes_array(keys, "keys")))


def count_keys(keys: Any) -> tuple[NDArray[np.uint64], NDArray[np.int64]]:
    """The distinct rows of `keys`, sorted by the last word first, and how often each is there.

    Parameters
    ----------
    keys : (n, n_words) uint64

    Returns
    -------
    keys : (n_distinct, n_words) uint64
    counts : (n_distinct,) int64

    Raises
    ------
    TypeError, ValueError
        An array of the wrong kind or shape.
    """
    keys = codes_array(keys, "keys")
    ordered = keys[np.lexsort(keys.T)] if len(keys) else keys
    first = np.ones(len(ordered), dtype=bool)
    np.any(ordered[1:] != ordered[:-1], axis=1, out=first[1:])
    starts = np.flatnonzero(first)
    return ordered[starts], np.diff(starts, append=len(ordered)).astype(np.int64)


def merge_counts(
    keys: Any, counts: NDArray[np.int64], other_keys: Any, other_counts: NDArray[np.int64]
) -> tuple[NDArray[np.uint64], NDArray[np.int64]]:
    """The sum of two tables of counts by key, each sorted as `count_keys` does it.

    Parameters
    ----------
    keys, counts : (n, n_words) uint64, (n,) int64
    other_keys, other_counts : (m, n_words) uint64, (m,) int64

    Returns
    -------
    keys, counts
        Sorted and distinct.

    Raises
    ------
    TypeError, ValueError
        Arrays of the wrong kind or shape.
    """
    keys = codes_array(keys, "keys")
    other_keys = codes_array(other_keys, "other_keys", n_words=keys.shape[1])
    for name, rows, values in (("counts", keys, counts), ("other_counts", other_keys, other_counts)):
        if values.dtype != np.int64 or values.shape != (len(rows),):
            raise ValueError(f"{name} has dtype {values.dtype} and shape {values.shape}, expected int64 ({len(rows)},)")
    if len(keys) == 0 or len(other_keys) == 0:
        return (keys, counts) if len(other_keys) == 0 else (other_keys, other_counts)
    n = len(keys) + len(other_keys)
    out_keys, out_counts = np.empty((n, keys.shape[1]), np.uint64), np.empty(n, np.int64)
    used = _merge(
        keys, np.ascontiguousarray(counts), other_keys, np.ascontiguousarray(other_counts), out_keys, out_counts
    )
    if used < 0.75 * n:  # a view would keep all of it
        return out_keys[:used].copy(), out_counts[:used].copy()
    return out_keys[:used], out_counts[:used]
