"""Count-weighted k-means of tokens."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from threadpoolctl import threadpool_limits


def weighted_kmeans(
    points: NDArray[np.floating],
    counts: NDArray[np.int64],
    n_clusters: int,
    *,
    seed: int,
    n_init: int = 10,
    start: NDArray[np.integer] | None = None,
) -> NDArray[np.int32]:
    """The tightest of `n_init` k-means++ starts, and of one from the clusters `start`: (n_tokens,) int32 labels.

    One thread is used, so that the result is reproducible.
    """
    from sklearn.cluster import KMeans  # more than a second to import

    with threadpool_limits(limits=1):
        best = KMeans(n_clusters, n_init=n_init, random_state=seed).fit(points, sample_weight=counts)
        if start is not None:
            centres = weighted_means(points, counts, start, n_clusters).astype(points.dtype)
            other = KMeans(n_clusters, init=centres, n_init=1).fit(points, sample_weight=counts)
            best = other if other.inertia_ < best.inertia_ else best
    return best.labels_.astype(np.int32)


def refine_by_kmeans(
    points: NDArray[np.floating], counts: NDArray[np.int64], labels: NDArray[np.integer]
) -> NDArray[np.int32]:
    """Labels after k-means that starts from the weighted means of given clusters."""
    from sklearn.cluster import KMeans

    n_clusters = int(labels.max()) + 1
    centres = weighted_means(points, counts, labels, n_clusters)
    with threadpool_limits(limits=1):
        model = KMeans(n_clusters, init=centres.astype(points.dtype), n_init=1).fit(points, sample_weight=counts)
    return model.labels_.astype(np.int32)


def weighted_means(
    points: NDArray[np.floating], counts: NDArray[np.int64], labels: NDArray[np.integer], n_clusters: int
) -> NDArray[np.float64]:
    """Count-weighted mean of each cluster: (n_clusters, n_dims) float64."""
    total = np.zeros((n_clusters, points.shape[1]))
    np.add.at(total, labels, points * counts[:, None].astype(np.float64))
    size = np.bincount(labels, weights=counts, minlength=n_clusters)
    return total / size[:, None]
