"""Clusters of an atlas too large for buckets: of cells drawn from it, smoothed over those near them.

Buckets of millions of cells that number at most some ten thousand share a short prefix only, and hold several types.
Of its landmarks a run keeps the embedding (`hashstream.buckets.landmarks`), which tells types apart; as it is a sum
over the genes of a single, noisy cell, each is smoothed a little. Their number bounds the work, whatever the size of
the atlas. All cells follow by their own codes (`hashstream.cluster.cells`).
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from hashstream.cluster.neighbours import token_neighbours
from hashstream.cluster.scale import scaled

#: Neighbours that a landmark is averaged with: far fewer than it has edges to in the graph of Leiden, which would fall
#: into pieces otherwise, and communities with it.
SMOOTHED_OVER = 2


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
