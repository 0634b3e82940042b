"""Exact Ward linkage of weighted points, in memory proportional to the points.

Nearest-neighbour chains: from any cluster, go to its nearest neighbour, from there to that one's, until two are each
other's; these merge. Ward's distance is reducible (a merged cluster is never nearer to a third than the nearer of its
parts was; Bruynooghe 1978), so this gives the same tree as merging the nearest pair each time, and a neighbour once
found holds until it is itself merged. Many chains grow at once, so that a pass over the points serves many searches.

A search screens in float32 with a bound on its rounding error and then measures in float64 what the bound cannot rule
out, so its answer is that of float64.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hashstream.kernels._arrays import float_matrix, share_rows
from hashstream.kernels._intrinsics import DISTANCE_POINTS, DISTANCE_QUERIES, smallest_increases
from hashstream.kernels._jit import inline, jit

_SEARCHES = 64  # searches in one pass over the points; more would mean more that turn out not to be needed
_TILE_BLOCKS = 4  # blocks of points that stay in the first-level cache while all queries pass over them
_THREADED_FROM = 1 << 22  # measured coordinates of a pass from which threads pay
_FULL = 0.85  # share of rows in use below which the gaps that merges leave are closed
_UNIT = 2.0**-24  # relative rounding error of a float32


@dataclass
class _Clusters:
    """What is left of the points; merged clusters take the row of one part, the other's row becomes a gap."""

    points: NDArray[np.float64]  # (n, n_dims) centroids
    weights: NDArray[np.float64]  # (n,), 0 in gaps
    nodes: NDArray[np.int64]  # (n,) point or, from n_points on, merge
    heights: NDArray[np.float64]  # (n,)
    nearest: NDArray[np.int64]  # (n,) row of the nearest other, or -1
    distance: NDArray[np.float64]  # (n,) increase of the sum of squares if merged with it
    blocks: NDArray[np.float32]  # (n_blocks, n_dims, 16) centroids, infinitely far in gaps
    weights32: NDArray[np.float32]  # (n_blocks * 16,)


@jit
def _exact_block(points, weights, query, first, last, best, best_at):  # type: ignore[no-untyped-def]
    """The nearest of ``points[first:last]`` if nearer than `best`, or as near and before it."""
    n_dims = points.shape[1]
    at = points[query]
    whole = n_dims - n_dims % 4
    for other in range(first, last):
        if other == query or weights[other] == 0.0:
            continue
        point = points[other]
        s0 = s1 = s2 = s3 = 0.0
        for i in range(0, whole, 4):
            d0, d1, d2, d3 = (
                point[i] - at[i],
                point[i + 1] - at[i + 1],
                point[i + 2] - at[i + 2],
                point[i + 3] - at[i + 3],
            )
            s0 += d0 * d0
            s1 += d1 * d1
            s2 += d2 * d2
            s3 += d3 * d3
        for i in range(whole, n_dims):
            d0 = point[i] - at[i]
            s0 += d0 * d0
        squared = (s0 + s1) + (s2 + s3)
        distance = weights[query] * weights[other] / (weights[query] + weights[other]) * squared
        if distance < best or (distance == best and other < best_at):
            best = distance
            best_at = np.int64(other)
    return best, best_at


@jit
def _screen(blocks, weights32, queries32, query_weights, minima):  # type: ignore[no-untyped-def]
    """``minima[q, block]``: the smallest approximate distance of query q to the points of a block."""
    n_blocks, n_dims, _ = blocks.shape
    for tile in range(0, n_blocks, _TILE_BLOCKS):
        for group in range(len(queries32)):
            first = group * DISTANCE_QUERIES
            for block in range(tile, min(tile + _TILE_BLOCKS, n_blocks)):
                smallest_increases(
                    queries32,
                    first * n_dims,
                    query_weights[first:],
                    blocks,
                    block * n_dims * DISTANCE_POINTS,
                    weights32,
                    block * DISTANCE_POINTS,
                    n_dims,
                    minima,
                    first * n_blocks + block,
                    n_blocks,
                )


@jit
def _find_nearest(points, weights, blocks, weights32, radius, wanted, out_at, out_distance):  # type: ignore[no-untyped-def]
    """The nearest other point of each of the rows `wanted`, ties to the lowest row."""
    n, n_dims = points.shape
    n_blocks = len(blocks)
    n_groups = (len(wanted) + DISTANCE_QUERIES - 1) // DISTANCE_QUERIES
    queries32 = np.zeros((n_groups, n_dims, DISTANCE_QUERIES), np.float32)
    query_weights = np.ones(n_groups * DISTANCE_QUERIES, np.float32)
    minima = np.empty((n_groups * DISTANCE_QUERIES, n_blocks), np.float32)
    for q in range(len(wanted)):
        query_weights[q] = weights[wanted[q]]
        for i in range(n_dims):
            queries32[q // DISTANCE_QUERIES, i, q % DISTANCE_QUERIES] = points[wanted[q], i]
    _screen(blocks, weights32, queries32, query_weights, minima)
    # A float32 centroid is off by `_UNIT * radius` at most, a difference of two by twice that, squares and sums by
    # `n_dims + 2` roundings; each bound is taken twice.
    relative = 1.0 - 2.0 * (n_dims + 8.0) * _UNIT
    for q in range(len(wanted)):
        query = wanted[q]
        slack = 4.0 * _UNIT * radius * np.sqrt(weights[query])
        own = query // DISTANCE_POINTS
        low = minima[q]
        low[own] = np.inf
        nearest = 0
        lowest = np.float32(np.inf)
        for block in range(n_blocks):
            if low[block] < lowest:
                lowest = low[block]
                nearest = block
        best, best_at = np.inf, np.int64(n)
        for block in (own, nearest):
            first = block * DISTANCE_POINTS
            best, best_at = _exact_block(points, weights, query, first, min(n, first + DISTANCE_POINTS), best, best_at)
        # Blocks whose bound exceeds `best` are passed over: sqrt(low) * relative - slack > sqrt(best).
        limit = (np.sqrt(best) + slack) / relative
        limit32 = np.float32(limit * limit * (1.0 + 4.0 * _UNIT))
        for block in range(n_blocks):
            if low[block] <= limit32 and block != own and block != nearest:
                first = block * DISTANCE_POINTS
                best, best_at = _exact_block(
                    points, weights, query, first, min(n, first + DISTANCE_POINTS), best, best_at
                )
        out_at[q] = best_at
        out_distance[q] = best


@inline
def _set_block(points, weights, blocks, weights32, row):  # type: ignore[no-untyped-def]
    """The float32 copy of a row; a gap is infinitely far."""
    block, lane = row // DISTANCE_POINTS, row % DISTANCE_POINTS
    gap = row >= len(points) or weights[row] == 0.0
    for i in range(blocks.shape[1]):
        blocks[block, i, lane] = np.inf if gap else points[row, i]
    weights32[row] = 1.0 if gap else weights[row]


@jit
def _fill_blocks(points, weights, blocks, weights32):  # type: ignore[no-untyped-def]
    for row in range(len(weights32)):
        _set_block(points, weights, blocks, weights32, row)


@jit
def _merge_pairs(  # type: ignore[no-untyped-def]
    points, weights, nodes, heights, nearest, distance, blocks, weights32, n_merged, merges, merge_heights
):
    """Merges all that are each other's nearest, and forgets neighbours that are no more. Gives the merges so far."""
    n = len(nearest)
    changed = np.zeros(n, np.bool_)
    for row in range(n):
        mate = nearest[row]
        if mate <= row or nearest[mate] != row:
            continue
        merges[n_merged, 0] = nodes[row]
        merges[n_merged, 1] = nodes[mate]
        # A height below those of its parts can only come from rounding.
        heights[row] = max(distance[row], heights[row], heights[mate])
        merge_heights[n_merged] = heights[row]
        nodes[row] = len(merge_heights) + 1 + n_merged
        n_merged += 1
        total = weights[row] + weights[mate]
        share, mate_share = weights[row] / total, weights[mate] / total
        for i in range(points.shape[1]):
            points[row, i] = points[row, i] * share + points[mate, i] * mate_share
        weights[row] = total
        weights[mate] = 0.0
        nearest[row] = nearest[mate] = -1
        changed[row] = changed[mate] = True
        _set_block(points, weights, blocks, weights32, row)
        _set_block(points, weights, blocks, weights32, mate)
    for row in range(n):
        if nearest[row] >= 0 and changed[nearest[row]]:
            nearest[row] = -1
    return n_merged


@jit
def _chain_ends(weights, nearest, wanted):  # type: ignore[no-untyped-def]
    """Follows chains from the first rows on to ends whose nearest neighbour is not known; gives their number."""
    n = len(nearest)
    seen = np.zeros(n, np.bool_)
    found = 0
    for row in range(n):
        if weights[row] == 0.0:
            continue
        at = np.int64(row)
        while not seen[at]:
            seen[at] = True
            if nearest[at] < 0:
                wanted[found] = at
                found += 1
                break
            at = nearest[at]
        if found == len(wanted):
            break
    return found


@jit
def _has_pair(nearest):  # type: ignore[no-untyped-def]
    found = False
    for row in range(len(nearest)):
        found |= nearest[row] >= 0 and nearest[nearest[row]] == row
    return found


@jit
def _label(merges, heights, order, linkage):  # type: ignore[no-untyped-def]
    """The merges in ascending order of height, with SciPy's numbers for the clusters."""
    n = len(merges) + 1
    name = np.arange(2 * n - 1)
    size = np.ones(2 * n - 1, np.int64)
    for k in range(len(order)):
        name[n + order[k]] = n + k
    for k in range(len(order)):
        merge = order[k]
        a, b = name[merges[merge, 0]], name[merges[merge, 1]]
        size[n + k] = size[a] + size[b]
        linkage[k, 0] = min(a, b)
        linkage[k, 1] = max(a, b)
        linkage[k, 2] = heights[merge]
        linkage[k, 3] = size[n + k]


def ward_linkage(points: Any, weights: Any = None, *, n_threads: int = 1) -> NDArray[np.float64]:
    """Ward's tree of weighted points, in the form of `scipy.cluster.hierarchy`.

    Parameters
    ----------
    points : (n, n_dims) float
    weights : (n,) float64, optional
        Weight of each point (how many cells it stands for); 1 by default.
    n_threads : int
        Threads that share the search for nearest neighbours; the result is the same for any number.

    Returns
    -------
    (n - 1, 4) float64
        Each row a merge, by ascending height: the two clusters (the lower number first; the points are 0 to n - 1, the
        merge of row i is n + i), the height ``sqrt(2 w_a w_b / (w_a + w_b)) * |mean_a - mean_b|``, the number of
        points.

    Raises
    ------
    TypeError, ValueError
        No points, numbers that are not finite, weights that are not positive, or shapes that do not fit.

    Notes
    -----
    With unit weights this is `scipy.cluster.hierarchy.ward`; with integer weights, the tree of points repeated so
    often, above the merges of the copies. Ward, J. Am. Stat. Assoc. 58 (1963) 236.
    """
    points = float_matrix(points, "points", np.float64)
    n, n_dims = points.shape
    if n == 0:
        raise ValueError("points has no rows, expected at least one")
    weights = np.ones(n) if weights is None else np.array(weights, dtype=np.float64)
    if weights.shape != (n,):
        raise ValueError(f"weights has shape {weights.shape}, expected ({n},)")
    if not np.isfinite(points).all():
        raise ValueError(f"row {int(np.flatnonzero(~np.isfinite(points).all(axis=1))[0])} of points is not finite")
    if not (np.isfinite(weights) & (weights > 0)).all():
        row = int(np.flatnonzero(~(np.isfinite(weights) & (weights > 0)))[0])
        raise ValueError(f"weight {row} is {weights[row]}, expected a positive number")
    # Centred and scaled by a power of two, which is exact, so that float32 neither overflows nor wastes its digits.
    points = points - points.mean(axis=0) if n_dims else np.zeros((n, 1))
    scale = 2.0 ** float(np.ceil(np.log2(max(float(np.abs(points).max()), 1e-300))))
    points /= scale
    weight_unit = float(weights.max())
    weights /= weight_unit

    merges, merge_heights = np.empty((n - 1, 2), np.int64), np.empty(n - 1)
    _merge_all(points, weights, merges, merge_heights, n_threads)
    linkage = np.empty((n - 1, 4))
    order = np.lexsort((np.arange(n - 1), merge_heights))
    _label(merges, np.sqrt(2.0 * weight_unit * merge_heights) * scale, order, linkage)
    return linkage


def _merge_all(
    points: NDArray[np.float64],
    weights: NDArray[np.float64],
    merges: NDArray[np.int64],
    merge_heights: NDArray[np.float64],
    n_threads: int,
) -> None:
    """Fills `merges`, pairs of nodes in no order but parts before wholes, and their increases of the sum of squares."""
    n = len(points)
    radius = float(np.sqrt((points**2).sum(axis=1).max()))  # that of the points holds for all their means
    clusters = _gather(points, weights, np.arange(n), np.zeros(n), np.full(n, -1), np.zeros(n), np.arange(n))
    ends = np.empty(_SEARCHES, np.int64)
    n_merged = 0
    while n_merged < n - 1:
        n_left = n - n_merged
        if n_left < _FULL * len(clusters.points):
            c = clusters
            clusters = _gather(
                c.points, c.weights, c.nodes, c.heights, c.nearest, c.distance, np.flatnonzero(c.weights)
            )
        n_ends = _chain_ends(clusters.weights, clusters.nearest, ends)
        _search(clusters, ends[:n_ends], radius, n_threads)
        if not _has_pair(clusters.nearest) and n_ends == 0:
            # Neighbours found at different times can break ties differently and go in a circle; found at once, never.
            _search(clusters, np.flatnonzero(clusters.weights), radius, n_threads)
        n_merged = _merge_pairs(
            clusters.points,
            clusters.weights,
            clusters.nodes,
            clusters.heights,
            clusters.nearest,
            clusters.distance,
            clusters.blocks,
            clusters.weights32,
            n_merged,
            merges,
            merge_heights,
        )


def _gather(
    points: NDArray[np.float64],
    weights: NDArray[np.float64],
    nodes: NDArray[np.int64],
    heights: NDArray[np.float64],
    nearest: NDArray[np.int64],
    distance: NDArray[np.float64],
    rows: NDArray[np.int64],
) -> _Clusters:
    """The clusters of `rows`, without gaps."""
    place = np.full(len(points) + 1, -1)
    place[rows] = np.arange(len(rows))
    points, weights = points[rows], weights[rows]
    n_blocks = -(-len(rows) // DISTANCE_POINTS)
    blocks = np.empty((n_blocks, points.shape[1], DISTANCE_POINTS), np.float32)
    weights32 = np.empty(n_blocks * DISTANCE_POINTS, np.float32)
    _fill_blocks(points, weights, blocks, weights32)
    return _Clusters(
        points, weights, nodes[rows], heights[rows], place[nearest[rows]], distance[rows], blocks, weights32
    )


def _search(clusters: _Clusters, wanted: NDArray[np.int64], radius: float, n_threads: int) -> None:
    """Looks for the nearest neighbours of the rows `wanted`."""
    found, distance = np.empty(len(wanted), np.int64), np.empty(len(wanted))

    def work(start: int, stop: int) -> None:
        for first in range(start, stop, _SEARCHES):
            part = slice(first, min(first + _SEARCHES, stop))
            _find_nearest(
                clusters.points,
                clusters.weights,
                clusters.blocks,
                clusters.weights32,
                radius,
                wanted[part],
                found[part],
                distance[part],
            )

    threaded = len(wanted) * clusters.points.size >= _THREADED_FROM
    share_rows(work, len(wanted), n_threads if threaded else 1, multiple=DISTANCE_QUERIES)
    clusters.nearest[wanted], clusters.distance[wanted] = found, distance
