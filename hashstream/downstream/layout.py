"""Points of the embedding laid out in a plane, to be looked at."""

from __future__ import annotations

import random

import numpy as np
from numpy.typing import NDArray
from threadpoolctl import threadpool_limits

from hashstream.cluster.neighbours import token_neighbours

NEIGHBOURS = 15
# Chosen by eye on PBMC 3k, paul15 and a simulated atlas of 54 types: the distance that neighbours keep fills the page,
# and from a narrow start types that pass into each other stay together.
MIN_DISTANCE = 1.0
START_DEVIATION = 2.0
EPOCHS = 200


def plane_layout(points: NDArray[np.float32], *, seed: int = 0, n_threads: int = 1) -> NDArray[np.float64]:
    """Where to draw points so that those near each other stay so: UMAP (McInnes, Healy and Melville 2018) by igraph.

    It starts from the two leading principal components, so that far groups lie about as they do in the embedding. The
    same points and seed give the same layout, whatever the threads.

    Parameters
    ----------
    points : (n_points, n_dims) float32
        Scaled, such as by `hashstream.cluster.landmarks.smoothed`.

    Returns
    -------
    (n_points, 2) float64
    """
    start = _principal_plane(points)
    near = token_neighbours(points, NEIGHBOURS, n_threads=n_threads)
    n, k = near.indices.shape
    if k < 2:
        return start
    import igraph  # with what it draws graphs with: half a second

    rows = np.repeat(np.arange(n), k)
    graph = igraph.Graph(n=n, edges=list(zip(rows.tolist(), near.indices.ravel().tolist(), strict=True)), directed=True)
    igraph.set_random_number_generator(random.Random(seed))
    try:
        found = graph.layout_umap(
            dist=near.distances.ravel().tolist(), seed=start.tolist(), epochs=EPOCHS, min_dist=MIN_DISTANCE
        )
    finally:
        igraph.set_random_number_generator(random)
    return np.asarray(found.coords, dtype=np.float64)


def _principal_plane(points: NDArray[np.float32]) -> NDArray[np.float64]:
    """The two leading components of points, of deviation `START_DEVIATION`: (n_points, 2)."""
    out = np.zeros((len(points), 2))
    with threadpool_limits(limits=1, user_api="blas"):  # sums must not depend on the number of threads
        wide = points - points.mean(axis=0, dtype=np.float64)
        axes = np.linalg.eigh(wide.T @ wide)[1][:, ::-1][:, :2]
        out[:, : axes.shape[1]] = wide @ axes
    return out * (START_DEVIATION / max(float(out.std()), 1e-12))
