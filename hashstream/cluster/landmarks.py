"""Leiden communities of an atlas too large for buckets: of cells drawn from it, smoothed over the cells near them.

Buckets of millions of cells that number at most some ten thousand share a short prefix only, and hold several types.
Whole codes tell types apart, but a single code is noisy. A landmark is a drawn cell whose code is averaged over the
codes nearest to it, found exactly by Hamming distance: the number of landmarks bounds the graph, whatever the size of
the atlas. All cells follow by their own codes (`hashstream.cluster.cells`).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from hashstream.cluster.leiden import leiden_clusters, leiden_with_n_clusters, token_graph
from hashstream.cluster.neighbours import token_neighbours
from hashstream.kernels import hamming_topk, unpack_bits

#: Cells that are landmarks, and cells that they are smoothed over.
N_LANDMARKS, N_POOL = 20_000, 200_000
SMOOTHED_OVER = 30
#: Standard deviation of the weight of a near code, in bits of a code of 64.
SMOOTHING_BITS = 8.0
GRAPH_NEIGHBOURS = 15
_BLOCK = 1024


@dataclass(frozen=True)
class Drawn:
    """Which cells of an atlas are looked at.

    Attributes
    ----------
    pool : (n_pool,) int64
        Rows of the atlas, ascending.
    landmarks : (n_landmarks,) int64
        Which of the pool are landmarks, ascending.
    """

    pool: NDArray[np.int64]
    landmarks: NDArray[np.int64]

    @classmethod
    def of(cls, n_cells: int, *, seed: int) -> Drawn:
        """At random, without replacement: all cells where there are few."""
        rng = np.random.default_rng(seed)
        pool = np.sort(rng.choice(n_cells, min(n_cells, N_POOL), replace=False))
        landmarks = np.sort(rng.choice(len(pool), min(len(pool), N_LANDMARKS), replace=False))
        return cls(pool, landmarks)


def smooth_codes(
    landmarks: NDArray[np.uint64], pool: NDArray[np.uint64], n_bits: int, *, n_threads: int = 1
) -> NDArray[np.float32]:
    """Means of the bits (as +-1) of the codes nearest to each landmark, its own among them.

    The nearest 30 of the pool count, by a Gaussian of their distance.

    Parameters
    ----------
    landmarks, pool : (n_landmarks, n_words), (n_pool, n_words) uint64

    Returns
    -------
    (n_landmarks, n_bits) float32
    """
    distances, rows = hamming_topk(landmarks, pool, SMOOTHED_OVER, n_threads=n_threads)
    weights = np.exp(-0.5 * (distances * (64.0 / (n_bits * SMOOTHING_BITS))) ** 2).astype(np.float32)
    weights /= weights.sum(axis=1, keepdims=True)
    out = np.empty((len(landmarks), n_bits), np.float32)
    for start in range(0, len(landmarks), _BLOCK):
        part = slice(start, start + _BLOCK)
        bits = unpack_bits(pool[rows[part].ravel()], n_bits).reshape(*rows[part].shape, n_bits)
        out[part] = 2.0 * np.einsum("ij,ijb->ib", weights[part], bits, dtype=np.float32) - 1.0
    return out


def landmark_communities(
    points: NDArray[np.float32], *, resolution: float | None, n_clusters: int | None, seed: int, n_threads: int = 1
) -> tuple[NDArray[np.int32], str]:
    """Communities of the graph of 15 nearest landmarks, and what chose their number.

    Parameters
    ----------
    points : (n_landmarks, n_bits) float32
    resolution, n_clusters
        One of them, or neither for resolution 1.
    """
    graph = token_graph(token_neighbours(points, GRAPH_NEIGHBOURS, n_threads=n_threads), size=np.ones(len(points)))
    if n_clusters is not None:
        labels, found = leiden_with_n_clusters(graph, n_clusters, seed=seed)
        return labels, f"user ({n_clusters} asked for, at resolution {found:.3g})"
    value = 1.0 if resolution is None else resolution
    labels = leiden_clusters(graph, resolution=value, seed=seed)
    return labels, f"Leiden communities of {len(points):,} landmarks at resolution {value:g}"
