"""Cluster bucket tokens: the one entry of this room."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from hashstream.buckets import Tokens
from hashstream.cluster.kmeans import weighted_kmeans
from hashstream.cluster.leiden import leiden_clusters, leiden_with_n_clusters, token_graph
from hashstream.cluster.neighbours import token_neighbours
from hashstream.cluster.number import choose_n_clusters, graph_neighbours
from hashstream.cluster.ward import cut_tree, ward_clusters
from hashstream.errors import SettingsError
from hashstream.kernels import ward_linkage

METHODS = ("ward", "kmeans", "leiden")
#: Components are divided by their deviation to this power: between PCA as it is (0) and whitened (1).
DEVIATION_POWER = 0.5
#: Components that clustering looks at.
N_DIMS = 50
#: Buckets are clustered at the longest prefix, up to 16 bits, that leaves 3 cells to a bucket on average.
LONGEST_PREFIX, SHORTEST_PREFIX, CELLS_PER_BUCKET = 16, 8, 3


@dataclass(frozen=True)
class TokenClusters:
    """Clusters of tokens.

    Attributes
    ----------
    labels : (n_tokens,) int32
        0 to n_clusters - 1, each used.
    n_clusters : int
    chosen_by : str
        How the number of clusters came about.
    bucket_bits, n_points : int
        The prefix that was clustered, and how many buckets it has.
    """

    labels: NDArray[np.int32]
    n_clusters: int
    chosen_by: str
    bucket_bits: int
    n_points: int


def cluster_tokens(
    tokens: Tokens,
    *,
    method: str = "ward",
    n_clusters: int | None = None,
    resolution: float | None = None,
    bucket_bits: int | None = None,
    seed: int = 0,
    n_threads: int = 1,
) -> TokenClusters:
    """Cluster tokens weighted by their counts.

    Parameters
    ----------
    method
        ``ward``: count-weighted Ward linkage refined by k-means; ``kmeans``: count-weighted k-means, the tightest
        of ten random starts and one from a Ward tree; ``leiden``: communities of the nearest-neighbour graph of the
        tokens.
    n_clusters
        None: chosen from the tokens (`choose_n_clusters`). Leiden gets as near to it as the graph allows.
    resolution
        Of Leiden; only for it, and only without `n_clusters`.
    bucket_bits
        Prefix at which the tokens are clustered; None: see `clustering_prefix`.

    Raises
    ------
    SettingsError
        If the settings contradict each other, or ask for more clusters than there are buckets.
    """
    if method not in METHODS:
        raise SettingsError(f"method is {method!r}; expected one of {', '.join(METHODS)}.")
    if resolution is not None and (method != "leiden" or n_clusters is not None):
        raise SettingsError("a resolution is for --method leiden alone, and excludes --n-clusters.")
    if n_clusters is not None and not 1 <= n_clusters <= tokens.n_tokens:
        raise SettingsError(
            f"{n_clusters} clusters asked for, but the run has {tokens.n_tokens} buckets; use at most that many, or "
            "encode with more buckets (--max-buckets)."
        )
    if bucket_bits is None:
        bucket_bits = clustering_prefix(tokens, at_least=n_clusters or 1)
    elif not 1 <= bucket_bits <= tokens.bucket_bits:
        raise SettingsError(f"bucket_bits is {bucket_bits}; the run's buckets have {tokens.bucket_bits} bits.")
    coarse, parent = tokens.shorten(bucket_bits)
    if n_clusters is not None and n_clusters > coarse.n_tokens:
        raise SettingsError(f"{n_clusters} clusters asked for, but {bucket_bits} bits give {coarse.n_tokens} buckets.")
    labels, chosen_by = _cluster(coarse, method, n_clusters, resolution, seed, n_threads)
    used, compact = np.unique(labels, return_inverse=True)
    return TokenClusters(compact.astype(np.int32)[parent], len(used), chosen_by, bucket_bits, coarse.n_tokens)


def clustering_prefix(tokens: Tokens, *, at_least: int = 1) -> int:
    """The longest prefix of at most 16 bits that leaves 3 cells to a bucket on average, but at least 8 bits.

    Shorter buckets average out noise and cost less; longer ones are nearly single cells. A longer prefix is taken
    where it needs one to have `at_least` buckets.
    """
    longest = min(LONGEST_PREFIX, tokens.bucket_bits)
    best = min(SHORTEST_PREFIX, tokens.bucket_bits)
    for bits in range(longest, best, -1):
        if tokens.n_prefixes(bits) * CELLS_PER_BUCKET <= tokens.n_cells:
            best = bits
            break
    while best < tokens.bucket_bits and tokens.n_prefixes(best) < at_least:
        best += 1
    return best


def scaled_points(tokens: Tokens) -> NDArray[np.float32]:
    """Token means with each component divided by the square root of its count-weighted deviation.

    Leading components otherwise drown the later ones, in which rare types differ.
    """
    means = tokens.means[:, :N_DIMS].astype(np.float64)
    weights = tokens.counts / tokens.counts.sum()
    centred = means - weights @ means
    deviation = np.sqrt(weights @ (centred * centred))
    return (centred / np.maximum(deviation, 1e-12) ** DEVIATION_POWER).astype(np.float32)


def _cluster(
    tokens: Tokens, method: str, n_clusters: int | None, resolution: float | None, seed: int, n_threads: int
) -> tuple[NDArray[np.int32], str]:
    if tokens.n_tokens == 1:
        return np.zeros(1, dtype=np.int32), "there is one bucket"
    if method == "leiden":
        return _leiden(tokens, n_clusters, resolution, seed)
    points = scaled_points(tokens)
    chosen_by = "user"
    if n_clusters is None:
        n_clusters = choose_n_clusters(points, tokens.counts, seed=seed)
        chosen_by = "Leiden communities of the token graph at resolution 1"
    if method == "kmeans":
        # Ten random starts often miss the tightest clusters; a cut of the Ward tree is one more, usually a good one.
        components = tokens.means[:, :N_DIMS]
        start = cut_tree(ward_linkage(components, tokens.counts.astype(np.float64), n_threads=n_threads), n_clusters)
        return weighted_kmeans(components, tokens.counts, n_clusters, seed=seed, start=start), chosen_by
    linkage = ward_linkage(points, tokens.counts.astype(np.float64), n_threads=n_threads)
    return ward_clusters(points, tokens.counts, linkage, n_clusters), chosen_by


def _leiden(
    tokens: Tokens, n_clusters: int | None, resolution: float | None, seed: int
) -> tuple[NDArray[np.int32], str]:
    neighbours = token_neighbours(scaled_points(tokens), graph_neighbours(tokens.n_tokens))
    graph = token_graph(neighbours, size=np.sqrt(tokens.counts))
    if n_clusters is not None:
        labels, found = leiden_with_n_clusters(graph, n_clusters, seed=seed)
        return labels, f"user ({n_clusters} asked for, at resolution {found:.3g})"
    value = 1.0 if resolution is None else resolution
    return leiden_clusters(graph, resolution=value, seed=seed), f"Leiden communities at resolution {value:g}"
