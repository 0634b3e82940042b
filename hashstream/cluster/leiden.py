"""Leiden communities of the token graph."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hashstream.cluster.neighbours import TokenNeighbours

_SEARCH_STEPS = 24


def token_graph(neighbours: TokenNeighbours, *, size: NDArray[np.floating]) -> Any:
    """The symmetric neighbour graph, an `igraph.Graph`.

    An edge weighs the larger of the two kernel weights, times the `size` (n_tokens,) of both its tokens.
    """
    import igraph  # with what it draws graphs with: half a second

    n, k = neighbours.indices.shape
    rows = np.repeat(np.arange(n, dtype=np.int64), k)
    columns = neighbours.indices.ravel()
    # A pair as one number: rows of two are sorted forty times as slowly.
    pairs, inverse = np.unique(np.minimum(rows, columns) * n + np.maximum(rows, columns), return_inverse=True)
    ends = pairs // n, pairs % n
    weights = np.zeros(len(pairs))
    np.maximum.at(weights, inverse.ravel(), neighbours.weights.ravel())
    # An edge of weight 0 would leave a token alone however near it is.
    weights = np.maximum(weights, 1e-6) * size[ends[0]] * size[ends[1]]
    # igraph reads tuples twice as fast as lists or an array.
    graph = igraph.Graph(n=n, edges=list(zip(*(end.tolist() for end in ends), strict=True)))
    graph.es["weight"] = weights.tolist()
    return graph


def leiden_clusters(graph: Any, *, resolution: float, seed: int, iterations: int = -1) -> NDArray[np.int32]:
    """Communities of largest modularity (Traag, Waltman and van Eck 2019): (n_tokens,) int32."""
    import igraph

    igraph.set_random_number_generator(random.Random(seed))
    try:
        found = graph.community_leiden(
            objective_function="modularity", weights="weight", resolution=resolution, n_iterations=iterations
        )
    finally:
        igraph.set_random_number_generator(random)
    return np.asarray(found.membership, dtype=np.int32)


def leiden_with_n_clusters(graph: Any, n_clusters: int, *, seed: int) -> tuple[NDArray[np.int32], float]:
    """Communities at a resolution, found by bisection, that gives `n_clusters` or the number nearest to it."""
    low, high = 1e-4, 64.0
    best: tuple[int, NDArray[np.int32], float] | None = None
    for _ in range(_SEARCH_STEPS):
        resolution = float(np.sqrt(low * high))
        labels = leiden_clusters(graph, resolution=resolution, seed=seed, iterations=4)
        number = int(labels.max()) + 1
        if best is None or abs(number - n_clusters) < best[0]:
            best = (abs(number - n_clusters), labels, resolution)
        if number == n_clusters:
            break
        low, high = (resolution, high) if number < n_clusters else (low, resolution)
    assert best is not None
    return best[1], best[2]
