"""How surely a token belongs to its cluster."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from hashstream.cluster.kmeans import weighted_means

_BLOCK_ELEMENTS = 1 << 22  # tokens x clusters that are looked at at a time
#: Below this a token is as near to another cluster as to its own, or nearly so. In many dimensions a token far outside
#: both is not much farther from the one than from the other, so that few are above 0.6.
UNSURE = 0.52
#: The same for a cell whose confidence is a probability, see `hashstream.cluster.cells`.
UNSURE_PROBABILITY = 0.6


def assignment_confidence(
    points: NDArray[np.float32], counts: NDArray[np.int64], labels: NDArray[np.integer]
) -> tuple[NDArray[np.float32], NDArray[np.int32]]:
    """The Student-t similarity of each token to its cluster's mean, over its sum with that to the best other cluster.

    1 is sure, 0.5 undecided between two clusters, and less means that another cluster's mean is nearer. The similarity
    is 1 / (1 + d^2 / v), with v the count-weighted mean of d^2 within clusters (the kernel of van der Maaten and
    Hinton, "Visualizing Data using t-SNE", JMLR 2008, as soft cluster assignments use it).

    Parameters
    ----------
    points : (n_tokens, n_dims) float32
    counts : (n_tokens,) int64
    labels : (n_tokens,) integer
        0 to n_clusters - 1, each used.

    Returns
    -------
    confidence : (n_tokens,) float32
    other : (n_tokens,) int32
        The best other cluster; the only one where there is no other.
    """
    n_clusters = int(labels.max()) + 1
    if n_clusters == 1:
        return np.ones(len(points), dtype=np.float32), np.zeros(len(points), dtype=np.int32)
    centres = weighted_means(points, counts, labels, n_clusters)
    own_distance = ((points - centres[labels]) ** 2).sum(axis=1)
    spread = max(float(np.average(own_distance, weights=counts)), 1e-12)
    confidence, other = np.empty(len(points), dtype=np.float32), np.empty(len(points), dtype=np.int32)
    step = max(_BLOCK_ELEMENTS // n_clusters, 1)
    for start in range(0, len(points), step):
        rows = slice(start, start + step)
        some = points[rows].astype(np.float64)
        distance = (some**2).sum(axis=1)[:, None] + (centres**2).sum(axis=1) - 2.0 * some @ centres.T
        similarity = 1.0 / (1.0 + np.maximum(distance, 0.0) / spread)
        mine = np.arange(len(some)), labels[rows]
        own = similarity[mine]
        similarity[mine] = -1.0
        confidence[rows] = own / (own + similarity.max(axis=1))
        other[rows] = similarity.argmax(axis=1)
    return confidence, other
