"""Nearest neighbours among tokens, in embedding space."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from hashstream.kernels import largest_columns, squared_distances

_SCORES = 1 << 23  # scores held at a time: 32 MiB
_SPARE = 8  # candidates beyond the k that are wanted: float32 may order near ties wrongly


@dataclass(frozen=True)
class TokenNeighbours:
    """The k nearest other tokens of each token.

    Attributes
    ----------
    indices : (n_tokens, k) int64
        Nearest first.
    distances : (n_tokens, k) float32
        Euclidean.
    weights : (n_tokens, k) float32
        exp(-d^2 / (s_i s_j)), where s is a token's distance to its k-th neighbour: the self-tuning kernel of
        Zelnik-Manor and Perona, "Self-Tuning Spectral Clustering", NIPS 2004.
    """

    indices: NDArray[np.int64]
    distances: NDArray[np.float32]
    weights: NDArray[np.float32]


def token_neighbours(points: NDArray[np.float32], k: int, *, n_threads: int = 1) -> TokenNeighbours:
    """Nearest neighbours of points (n_tokens, n_dims), by comparing all, in memory proportional to n_tokens x k.

    Candidates come from products in float32; their order, from distances in float64, ties by index. With fewer than k
    other tokens, all of them are taken.
    """
    k = min(k, len(points) - 1)
    if k < 1:
        empty = np.zeros((len(points), 0), dtype=np.float32)
        return TokenNeighbours(np.zeros((len(points), 0), dtype=np.int64), empty, empty)
    indices, distances = _nearest(points, len(points), 0, k, n_threads)
    scale = np.maximum(distances[:, -1], 1e-12)
    weights = np.exp(-(distances**2) / (scale[:, None] * scale[indices]))
    return TokenNeighbours(indices, distances.astype(np.float32), weights.astype(np.float32))


def nearest_points(
    queries: NDArray[np.float32], points: NDArray[np.float32], k: int, *, n_threads: int = 1
) -> NDArray[np.int64]:
    """The k nearest of some points (n, n_dims) to each query (n_queries, n_dims): (n_queries, min(k, n)) int64.

    Nearest first, as `token_neighbours` compares them.
    """
    return _nearest(np.concatenate([points, queries]), len(points), len(points), min(k, len(points)), n_threads)[0]


def _nearest(
    rows: NDArray[np.float32], n_points: int, first_query: int, k: int, n_threads: int
) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """The k nearest of the first `n_points` rows to each row from `first_query` on, never itself, and distances."""
    # Products of centred points lose less to rounding.
    wide = rows - rows[:n_points].mean(axis=0, dtype=np.float64)
    half_squares = 0.5 * (wide[:n_points] * wide[:n_points]).sum(axis=1)
    # A score is a product less half the square of the other point: one more column of ones and of these.
    left = np.column_stack([wide[first_query:], np.ones(len(wide) - first_query)]).astype(np.float32)
    right = np.ascontiguousarray(np.column_stack([wide[:n_points], -half_squares]).astype(np.float32).T)
    indices = np.empty((len(left), k), dtype=np.int64)
    distances = np.empty((len(left), k))
    step = max(1, _SCORES // n_points)
    room = np.empty((min(step, len(left)), n_points), dtype=np.float32)
    for start in range(0, len(left), step):
        part = slice(start, min(start + step, len(left)))
        scores = np.matmul(left[part], right, out=room[: part.stop - start])
        own = np.arange(first_query + start, min(first_query + part.stop, n_points))
        scores[own - first_query - start, own] = -np.inf  # left out of its own neighbours, even among duplicates
        most = n_points - 1 if first_query < n_points else n_points
        near = np.sort(largest_columns(scores, min(k + _SPARE, most), n_threads=n_threads), axis=1)
        squared = squared_distances(wide, near, first_row=first_query + start, n_threads=n_threads)
        order = np.argsort(squared, axis=1, kind="stable")[:, :k]
        indices[part] = np.take_along_axis(near, order, axis=1)
        distances[part] = np.sqrt(np.take_along_axis(squared, order, axis=1))
    return indices, distances
