"""How many clusters, from the tokens alone."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from hashstream.cluster.leiden import leiden_clusters, token_graph
from hashstream.cluster.neighbours import token_neighbours


def graph_neighbours(n_tokens: int) -> int:
    """Neighbours of a token in its graph: the square root of the number of tokens, from 10 to 30."""
    return int(np.clip(np.sqrt(n_tokens), 10, 30))


def choose_n_clusters(points: NDArray[np.float32], counts: NDArray[np.int64], *, seed: int, n_threads: int = 1) -> int:
    """The number of Leiden communities of the token graph at resolution 1.

    Edges weigh the kernel times the square roots of both counts, so that large buckets matter more. Modularity at
    resolution 1 compares with the expectation of the configuration model and needs no parameter (Newman, "Modularity
    and community structure in networks", PNAS 2006).
    """
    neighbours = token_neighbours(points, graph_neighbours(len(points)), n_threads=n_threads)
    graph = token_graph(neighbours, size=np.sqrt(counts))
    return int(leiden_clusters(graph, resolution=1.0, seed=seed).max()) + 1
