"""Count-weighted Ward linkage of tokens, cut and refined by k-means."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from hashstream.cluster.kmeans import refine_by_kmeans


def cut_tree(linkage: NDArray[np.float64], n_clusters: int) -> NDArray[np.int32]:
    """Labels 0 to n_clusters - 1 of the leaves: (n_tokens,) int32."""
    if len(linkage) == 0:
        return np.zeros(1, dtype=np.int32)
    from scipy.cluster.hierarchy import fcluster  # a quarter of a second to import

    # Cutting by number of merges, not by height, gives exactly n_clusters even where heights tie.
    order = linkage.copy()
    order[:, 2] = np.arange(1, len(linkage) + 1)
    labels = fcluster(order, t=len(linkage) + 1 - n_clusters + 0.5, criterion="distance")
    return (labels - 1).astype(np.int32)


def ward_clusters(
    points: NDArray[np.floating], counts: NDArray[np.int64], linkage: NDArray[np.float64], n_clusters: int
) -> NDArray[np.int32]:
    """The Ward tree cut into `n_clusters`, refined by k-means."""
    return refine_by_kmeans(points, counts, cut_tree(linkage, n_clusters))
