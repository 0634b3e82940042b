"""Exact nearest neighbours among codes, ties broken by the distance of points: the neighbourhood of each bucket."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from hashstream.kernels._arrays import codes_array, float_matrix, share_rows
from hashstream.kernels._intrinsics import below_mask, popcount, trailing_zeros
from hashstream.kernels._jit import inline, jit
from hashstream.kernels.hamming import BLOCK, _block_distances

_FAR = np.uint16(0xFFFF)  # further than any code


@inline
def _squared_distance(points, a, b):  # type: ignore[no-untyped-def]
    """``|points[a] - points[b]|**2`` in float64: four sums over every fourth dimension, added in pairs."""
    n_dims = points.shape[1]
    p, q = points[a], points[b]
    s0 = s1 = s2 = s3 = 0.0
    whole = n_dims - n_dims % 4
    for i in range(0, whole, 4):
        d0 = np.float64(p[i]) - np.float64(q[i])
        d1 = np.float64(p[i + 1]) - np.float64(q[i + 1])
        d2 = np.float64(p[i + 2]) - np.float64(q[i + 2])
        d3 = np.float64(p[i + 3]) - np.float64(q[i + 3])
        s0 += d0 * d0
        s1 += d1 * d1
        s2 += d2 * d2
        s3 += d3 * d3
    for i in range(whole, n_dims):
        d = np.float64(p[i]) - np.float64(q[i])
        if i == whole:
            s0 += d * d
        elif i == whole + 1:
            s1 += d * d
        else:
            s2 += d * d
    return (s0 + s1) + (s2 + s3)


@inline
def _count_within(row_distances, radius):  # type: ignore[no-untyped-def]
    """How many distances are at most `radius`."""
    total = np.uint64(0)
    for at in range(0, len(row_distances), 64):
        total += popcount(below_mask(row_distances, at, radius))
    return np.int64(total)


@jit
def _neighbours(codes, points, start, stop, indices, distances):  # type: ignore[no-untyped-def]
    """Neighbours of the rows `start` to `stop`, ``indices.shape[1]`` of each.

    The radius that holds k neighbours is looked for from that of the row before. Who is within it is counted by
    distance, so that each has its group of places, and enters the group by insertion: all but the outermost group hold
    exactly those that belong there.
    """
    n, k = len(codes), indices.shape[1]
    n_bits = 64 * codes.shape[1]
    row_distances, flat = np.full(-(-n // 64) * 64, _FAR), codes.ravel()
    squared = np.empty(k)
    first = np.empty(n_bits + 2, np.int64)  # where the places of a distance begin
    held = np.empty(n_bits + 2, np.int64)  # how many of them are taken
    radius = 0
    for row in range(start, stop):
        for at in range(0, n, BLOCK):
            _block_distances(codes, row, flat, at, min(BLOCK, n - at), row_distances[at : at + BLOCK])
        row_distances[row] = _FAR
        n_within = _count_within(row_distances, np.uint16(radius))
        while n_within < k:
            radius += 1
            n_within = _count_within(row_distances, np.uint16(radius))
        while radius > 0:
            n_closer = _count_within(row_distances, np.uint16(radius - 1))
            if n_closer < k:
                break
            radius -= 1
        first[: radius + 2] = 0
        held[: radius + 1] = 0
        if radius > 0:
            for at in range(0, len(row_distances), 64):
                mask = below_mask(row_distances, at, np.uint16(radius - 1))
                while mask:
                    first[row_distances[at + trailing_zeros(mask)] + 1] += 1
                    mask &= mask - np.uint64(1)
        for closer in range(radius):
            first[closer + 1] += first[closer]
        first[radius + 1] = k
        for at in range(0, len(row_distances), 64):
            mask = below_mask(row_distances, at, np.uint16(radius))
            while mask:
                other = at + trailing_zeros(mask)
                mask &= mask - np.uint64(1)
                d = np.int64(row_distances[other])
                room = first[d + 1] - first[d]
                value = _squared_distance(points, row, other)
                place = first[d] + held[d]
                if held[d] == room:
                    place -= 1
                    if value >= squared[place]:
                        continue
                else:
                    held[d] += 1
                while place > first[d] and squared[place - 1] > value:
                    squared[place] = squared[place - 1]
                    indices[row - start, place] = indices[row - start, place - 1]
                    place -= 1
                squared[place] = value
                indices[row - start, place] = other
                distances[row - start, first[d] + held[d] - 1] = d


def hamming_neighbours(
    codes: Any, points: Any, k: int, *, n_threads: int = 1, start: int = 0, stop: int | None = None
) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
    """The k nearest other rows of each row: by Hamming distance, then by distance of points, then by row.

    Nothing of the size n x n is held; a thread holds one row of distances.

    Parameters
    ----------
    codes : (n, n_words) uint64
        Rows may repeat.
    points : (n, n_dims) float
        Taken as float32; squared distances are summed in float64 in a fixed order.
    k : int
        Clipped to n - 1.
    n_threads : int
        Threads that share the rows; the result is the same for any number.
    start, stop : int
        Only the neighbours of these rows, among all.

    Returns
    -------
    indices : (stop - start, k) int32
        Nearest first.
    distances : (stop - start, k) int32
        Bits that differ.

    Raises
    ------
    TypeError, ValueError
        Arrays of the wrong kind or shape, points that are not finite, k below 1, or rows that are not there.
    """
    codes, points = codes_array(codes), float_matrix(points, "points")
    n = len(codes)
    if len(points) != n:
        raise ValueError(f"points has {len(points)} rows, expected {n}, as many as codes")
    if not np.isfinite(points).all():
        raise ValueError(f"row {int(np.flatnonzero(~np.isfinite(points).all(axis=1))[0])} of points is not finite")
    if k < 1:
        raise ValueError(f"k is {k}, expected at least 1")
    if codes.shape[1] * 64 >= int(_FAR) or n > np.iinfo(np.int32).max:
        raise ValueError(f"codes has shape {codes.shape}, expected at most 1,023 words and 2**31 - 1 rows")
    stop = n if stop is None else stop
    if not 0 <= start <= stop <= n:
        raise ValueError(f"rows {start} to {stop} are not all among 0 to {n}")
    k = max(0, min(int(k), n - 1))
    indices, distances = np.empty((stop - start, k), np.int32), np.empty((stop - start, k), np.int32)

    def work(first: int, last: int) -> None:
        _neighbours(codes, points, start + first, start + last, indices[first:last], distances[first:last])

    if k:
        share_rows(work, stop - start, n_threads)
    return indices, distances
