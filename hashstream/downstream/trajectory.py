"""Diffusion pseudotime, and how groups of cells hang together, from the nearest neighbours of some cells."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy import sparse

#: Diffusion components, with the first, which says nothing.
N_COMPONENTS = 10
#: Below so many points all components are found at once.
_DENSE = 200
#: An eigenvalue nearer to 1 tells pieces that hardly hang together. Weighed as the others it would drown them.
_APART = 0.9994


def neighbour_graph(indices: NDArray[np.integer], weights: NDArray[np.floating]) -> sparse.csr_array:
    """The symmetric graph of nearest neighbours, (n, n): an edge weighs the larger of its two weights, 1e-6 at least.

    Parameters
    ----------
    indices : (n, k) integer
        Of each point, others.
    weights : (n, k) floating
        From 0 to 1.
    """
    n, k = indices.shape
    ends = np.repeat(np.arange(n), k), indices.ravel()
    graph = sparse.csr_array((np.maximum(weights, 1e-6).ravel().astype(np.float64), ends), shape=(n, n))
    return graph.maximum(graph.T).tocsr()


def pieces(graph: sparse.csr_array) -> NDArray[np.int32]:
    """The connected piece of each point, (n,) int32, numbered from the largest."""
    n, found = sparse.csgraph.connected_components(graph, directed=False)
    number = np.empty(n, np.int32)
    number[np.argsort(-np.bincount(found, minlength=n), kind="stable")] = np.arange(n, dtype=np.int32)
    return number[found]


def diffusion_coordinates(graph: sparse.csr_array, n_components: int = N_COMPONENTS) -> NDArray[np.float64]:
    """Coordinates of the points of a connected graph, whose Euclidean distance is the diffusion pseudotime.

    Haghverdi, Buettner, Wolf, Buettner & Theis, "Diffusion pseudotime robustly reconstructs lineage branching", Nature
    Methods 2016: weights are divided by the density at both ends and made a symmetric transition matrix; its
    eigenvectors, each times ``e / (1 - e)`` with e its eigenvalue, sum random walks of every length. Those of
    eigenvalues above 0.9994 are taken as they are, as scanpy does.

    Parameters
    ----------
    graph : (n, n)
        Symmetric, of non-negative weights, connected.
    n_components
        How many eigenvectors, with the first, which is left out.

    Returns
    -------
    (n, min(n_components, n) - 1) float64
    """
    from scipy.sparse.linalg import eigsh
    from threadpoolctl import threadpool_limits

    n = graph.shape[0]
    n_components = min(n_components, n)
    inverse_density = sparse.diags_array(1.0 / graph.sum(axis=1))
    kernel = inverse_density @ graph @ inverse_density
    inverse_root = sparse.diags_array(1.0 / np.sqrt(kernel.sum(axis=1)))
    transition = inverse_root @ kernel @ inverse_root
    with threadpool_limits(1):  # so that the last bits do not depend on the number of cores
        if n < _DENSE:
            values, vectors = np.linalg.eigh(transition.toarray())
        else:
            values, vectors = eigsh(transition, k=n_components, which="LA", v0=np.ones(n))
    order = np.argsort(-values)[1:n_components]
    values, vectors = values[order], vectors[:, order]
    return vectors * np.where(values < _APART, values / (1.0 - np.minimum(values, _APART)), 1.0)


def pseudotime(coordinates: NDArray[np.float64], root: NDArray[np.float64]) -> NDArray[np.float32]:
    """The distance of each point from a root (n_components,), over the largest: (n,) float32, 0 to 1."""
    distance = np.sqrt(((coordinates - root) ** 2).sum(axis=1))
    return (distance / max(float(distance.max(initial=0.0)), 1e-300)).astype(np.float32)


def group_connectivity(indices: NDArray[np.integer], groups: NDArray[np.integer], n_groups: int) -> NDArray[np.float64]:
    """How much more than by chance the members of two groups are each other's neighbours.

    Wolf et al., "PAGA: graph abstraction reconciles clustering with trajectory inference", Genome Biology 2019: edges
    between two groups, over those expected of groups of their sizes and numbers of edges. There what is above 1 is cut
    to 1; but neighbouring stages all are above it, and a tree of equal connections is one of chance.

    Parameters
    ----------
    indices : (n, k) integer
        Nearest neighbours of each point.
    groups : (n,) integer
        0 to n_groups - 1, or -1 for points that are in none.

    Returns
    -------
    (n_groups, n_groups) float64
        Symmetric, 0 on the diagonal.
    """
    own, other = np.repeat(groups, indices.shape[1]).astype(np.int64), groups[indices.ravel()]
    known = (own >= 0) & (other >= 0)
    edges = np.bincount(own[known] * n_groups + other[known], minlength=n_groups * n_groups)
    edges = edges.reshape(n_groups, n_groups).astype(np.float64)
    leaving, sizes = edges.sum(axis=1), np.bincount(groups[groups >= 0], minlength=n_groups)
    between = edges + edges.T
    expected = (np.outer(leaving, sizes) + np.outer(sizes, leaving)) / max(int(sizes.sum()) - 1, 1)
    found = np.divide(between, expected, out=np.zeros_like(between), where=expected > 0)
    np.fill_diagonal(found, 0.0)
    return found


def tree_of_groups(connectivity: NDArray[np.float64], root: int) -> list[tuple[int, int]]:
    """Edges of the tree of strongest connections, from parent to child, the root's first.

    Groups that are not connected with the root make trees of their own, each from its lowest number.

    Parameters
    ----------
    connectivity : (n_groups, n_groups) float64
    """
    n = len(connectivity)
    if n == 0:
        return []
    costs = np.where(connectivity > 0, 1.0 / np.maximum(connectivity, 1e-12), 0.0)
    tree = sparse.csgraph.minimum_spanning_tree(sparse.csr_array(np.triu(costs, 1)))
    edges: list[tuple[int, int]] = []
    seen: set[int] = set()
    for start in [root, *range(n)]:
        if start in seen:
            continue
        order, parents = sparse.csgraph.breadth_first_order(tree, start, directed=False)
        seen.update(order.tolist())
        edges += [(int(parents[child]), int(child)) for child in order[1:]]
    return edges
