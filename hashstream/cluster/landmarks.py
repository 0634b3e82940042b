"""Clusters of an atlas too large for buckets: of cells drawn from it, smoothed over those near them.

Buckets of millions of cells that number at most some ten thousand share a short prefix only, and hold several types.
Of its landmarks a run keeps the embedding (`hashstream.buckets.landmarks`), which tells types apart; as it is a sum
over the genes of a single, noisy cell, each is smoothed a little. Their number bounds the graph, whatever the size of
the atlas. All cells follow by their own codes (`hashstream.cluster.cells`).
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from hashstream.cluster.leiden import leiden_clusters, leiden_with_n_clusters, token_graph
from hashstream.cluster.neighbours import token_neighbours
from hashstream.cluster.scale import scaled

#: Neighbours that a landmark is averaged with, and those that it has edges to. The latter are many more: where they are
#: among the former, the graph falls into pieces, and communities with it.
SMOOTHED_OVER, GRAPH_NEIGHBOURS = 2, 30


def smoothed(embedding: NDArray[np.float32], *, n_threads: int = 1) -> NDArray[np.float32]:
    """Scaled landmarks (see `scaled`), each averaged with its two nearest.

    A neighbour weighs the self-tuning kernel of `TokenNeighbours` and a landmark itself 1, so that one that lies alone
    is moved little by what lies beyond the gap.

    Parameters
    ----------
    embedding : (n_landmarks, n_dims) float32

    Returns
    -------
    (n_landmarks, n_dims) float32
    """
    points = scaled(embedding, np.ones(len(embedding), np.int64))
    near = token_neighbours(points, SMOOTHED_OVER, n_threads=n_threads)
    total = 1.0 + near.weights.sum(axis=1)
    out = points / total[:, None]
    for i in range(near.indices.shape[1]):
        out += (near.weights[:, i] / total)[:, None] * points[near.indices[:, i]]
    return out.astype(np.float32)


def landmark_communities(
    points: NDArray[np.float32], *, resolution: float | None, n_clusters: int | None, seed: int, n_threads: int = 1
) -> tuple[NDArray[np.int32], str]:
    """Leiden communities of the graph of 30 nearest landmarks, and what chose their number.

    Parameters
    ----------
    points : (n_landmarks, n_dims) float32
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
