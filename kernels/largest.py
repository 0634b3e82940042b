"""The largest numbers of each row: who votes, when every query is compared with every bucket of a reference."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from hashstream.kernels._arrays import float_matrix, share_rows
from hashstream.kernels._intrinsics import above_or_nan_mask, trailing_zeros
from hashstream.kernels._jit import jit


@jit
def _enter(kept, columns, n, value, column):  # type: ignore[no-untyped-def]
    """Puts a number behind those that are at least as large; the last of a full list drops out."""
    place = min(n, len(kept) - 1)
    while place > 0 and kept[place - 1] < value:
        kept[place] = kept[place - 1]
        columns[place] = columns[place - 1]
        place -= 1
    kept[place] = value
    columns[place] = column


@jit
def _largest_columns(values, out):  # type: ignore[no-untyped-def]
    """Columns come in ascending order, so that only a larger number displaces one that was met before.

    Says whether all went well: False where there is a NaN.
    """
    n_rows, n_columns = values.shape
    k = out.shape[1]
    whole = n_columns - n_columns % 64
    kept = np.empty(k, np.float32)
    for row in range(n_rows):
        columns = out[row]
        n = 0
        for column in range(k):
            if values[row, column] != values[row, column]:
                return False
            _enter(kept, columns, n, values[row, column], column)
            n += 1
        at = k - k % 64
        while at < whole:
            mask = above_or_nan_mask(values, row * n_columns + at, kept[k - 1])
            if at < k:  # the first of these have entered
                mask &= ~np.uint64(0) << np.uint64(k - at)
            while mask:
                column = at + trailing_zeros(mask)
                mask &= mask - np.uint64(1)
                value = values[row, column]
                if value > kept[k - 1]:
                    _enter(kept, columns, n, value, column)
                elif value != value:
                    return False
            at += 64
        for column in range(max(whole, k), n_columns):
            value = values[row, column]
            if value > kept[k - 1]:
                _enter(kept, columns, n, value, column)
            elif value != value:
                return False
    return True


def largest_columns(values: Any, k: int, *, n_threads: int = 1) -> NDArray[np.int32]:
    """Columns of the k largest numbers of each row, the largest first, of equal ones the lower column first.

    Parameters
    ----------
    values : (n, m) float
        Taken as float32.
    k : int
        Clipped to m.
    n_threads : int
        Threads that share the rows; the result is the same for any number.

    Returns
    -------
    (n, k) int32

    Raises
    ------
    TypeError, ValueError
        An array of the wrong kind or shape, NaN, or k below 1.
    """
    values = float_matrix(values, "values")
    if k < 1:
        raise ValueError(f"k is {k}, expected at least 1")
    if values.shape[1] > np.iinfo(np.int32).max:
        raise ValueError(f"values has {values.shape[1]} columns, expected at most 2**31 - 1")
    out = np.empty((len(values), min(int(k), values.shape[1])), np.int32)
    if out.size:
        parts = share_rows(lambda a, b: _largest_columns(values[a:b], out[a:b]), len(values), n_threads)
        if not all(parts):
            raise ValueError("values holds NaN")
    return out
