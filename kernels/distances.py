"""Distances between points that are named in pairs."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from hashstream.kernels._arrays import float_matrix, share_rows
from hashstream.kernels._jit import jit


@jit
def _squared_distances(points, first, others, out):  # type: ignore[no-untyped-def]
    for i in range(len(others)):
        own = points[first + i]
        for j in range(others.shape[1]):
            other = points[others[i, j]]
            total = 0.0
            for d in range(len(own)):
                difference = other[d] - own[d]
                total += difference * difference
            out[i, j] = total


def squared_distances(points: Any, others: Any, *, first_row: int = 0, n_threads: int = 1) -> NDArray[np.float64]:
    """Squared Euclidean distances of consecutive points to some others, summed in the order of the dimensions.

    Parameters
    ----------
    points : (n, n_dims) float
        Taken as float64.
    others : (m, k) integer
        Points to compare with: row i those of point ``first_row + i``.
    first_row : int
    n_threads : int
        Threads that share the rows; the result is the same for any number.

    Returns
    -------
    (m, k) float64

    Raises
    ------
    TypeError, ValueError
        Arrays of the wrong kind or shape, or points that are not there.
    """
    points, others = float_matrix(points, "points", np.float64), np.asarray(others)
    if others.dtype.kind not in "iu":
        raise TypeError(f"others has dtype {others.dtype}, expected an integer dtype")
    if others.ndim != 2:
        raise ValueError(f"others has {others.ndim} dimensions, expected 2")
    if others.size and not (int(others.min()) >= 0 and int(others.max()) < len(points)):
        raise ValueError(f"others names point {int(others.max())} or {int(others.min())} of {len(points)}")
    if first_row < 0 or first_row + len(others) > len(points):
        raise ValueError(f"rows {first_row} to {first_row + len(others)} of {len(points)} points")
    others = np.ascontiguousarray(others, dtype=np.int64)
    out = np.empty(others.shape)
    if out.size:
        share_rows(
            lambda a, b: _squared_distances(points, first_row + a, others[a:b], out[a:b]), len(others), n_threads
        )
    return out
