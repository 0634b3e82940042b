"""Nearest neighbours among tokens, in embedding space."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from sklearn.neighbors import NearestNeighbors


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


def token_neighbours(points: NDArray[np.float32], k: int) -> TokenNeighbours:
    """Exact nearest neighbours of points (n_tokens, n_dims), in memory proportional to n_tokens x k.

    With fewer than k other tokens, all of them are taken.
    """
    k = min(k, len(points) - 1)
    if k < 1:
        empty = np.zeros((len(points), 0), dtype=np.float32)
        return TokenNeighbours(np.zeros((len(points), 0), dtype=np.int64), empty, empty)
    search = NearestNeighbors(n_neighbors=k, algorithm="brute").fit(np.ascontiguousarray(points, dtype=np.float32))
    # Without an argument each point is left out of its own neighbours, even among duplicates.
    distances, indices = search.kneighbors()
    scale = np.maximum(distances[:, -1].astype(np.float64), 1e-12)
    weights = np.exp(-(distances.astype(np.float64) ** 2) / (scale[:, None] * scale[indices]))
    return TokenNeighbours(indices.astype(np.int64), distances.astype(np.float32), weights.astype(np.float32))
