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
    # Products of centred points lose less to rounding.
    wide = points - points.mean(axis=0, dtype=np.float64)
    half_squares = 0.5 * (wide * wide).sum(axis=1)
    # A score is a product less half the square of the other point: one more column of ones and of these.
    left = np.column_stack([wide, np.ones(len(wide))]).astype(np.float32)
    right = np.ascontiguousarray(np.column_stack([wide, -half_squares]).astype(np.float32).T)
    indices = np.empty((len(points), k), dtype=np.int64)
    distances = np.empty((len(points), k))
    step = max(1, _SCORES // len(points))
    room = np.empty((min(step, len(points)), len(points)), dtype=np.float32)
    for start in range(0, len(points), step):
        own = np.arange(start, min(start + step, len(points)))
        scores = np.matmul(left[start : start + step], right, out=room[: len(own)])
        scores[own - start, own] = -np.inf  # a point is left out of its own neighbours, even among duplicates
        near = np.sort(largest_columns(scores, min(k + _SPARE, len(points) - 1), n_threads=n_threads), axis=1)
        squared = squared_distances(wide, near, first_row=start, n_threads=n_threads)
        order = np.argsort(squared, axis=1, kind="stable")[:, :k]
        indices[own] = np.take_along_axis(near, order, axis=1)
        distances[own] = np.sqrt(np.take_along_axis(squared, order, axis=1))
    scale = np.maximum(distances[:, -1], 1e-12)
    weights = np.exp(-(distances**2) / (scale[:, None] * scale[indices]))
    return TokenNeighbours(indices, distances.astype(np.float32), weights.astype(np.float32))
