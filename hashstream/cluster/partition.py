"""Cluster bucket tokens: the one entry of this room."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from hashstream.buckets import Tokens
from hashstream.cluster.confidence import assignment_confidence
from hashstream.cluster.kmeans import weighted_kmeans
from hashstream.cluster.landmarks import smoothed
from hashstream.cluster.leiden import leiden_clusters, leiden_with_n_clusters, token_graph
from hashstream.cluster.neighbours import token_neighbours
from hashstream.cluster.number import choose_n_clusters, graph_neighbours
from hashstream.cluster.scale import scaled
from hashstream.cluster.transformer import TransformerSettings, learn_tokens, transformer_clusters
from hashstream.cluster.ward import cut_tree, ward_clusters
from hashstream.errors import SettingsError
from hashstream.kernels import ward_linkage

METHODS = ("ward", "kmeans", "leiden", "transformer")
#: Components that clustering looks at.
N_DIMS = 50
#: Buckets are clustered at the longest prefix that leaves 3 cells to a bucket on average and gives at most 16,384 of
#: them, which Ward linkage joins in seconds. Leiden at one resolution takes four times as many.
SHORTEST_PREFIX, CELLS_PER_BUCKET, MOST_POINTS, MOST_LEIDEN_POINTS = 8, 3, 16_384, 65_536


@dataclass(frozen=True)
class TokenClusters:
    """Clusters of tokens.

    Attributes
    ----------
    labels : (n_tokens,) int32
        0 to n_clusters - 1, each used.
    confidence, other : (n_tokens,) float32, (n_tokens,) int32
        How sure the cluster is, and the next best one; see `assignment_confidence`.
    n_clusters : int
    chosen_by : str
        How the number of clusters came about.
    bucket_bits, n_points : int
        The prefix that was clustered, and how many tokens it has.
    warnings : tuple of str
    """

    labels: NDArray[np.int32]
    confidence: NDArray[np.float32]
    other: NDArray[np.int32]
    n_clusters: int
    chosen_by: str
    bucket_bits: int
    n_points: int
    warnings: tuple[str, ...] = ()


def cluster_tokens(
    tokens: Tokens,
    *,
    method: str = "ward",
    n_clusters: int | None = None,
    resolution: float | None = None,
    bucket_bits: int | None = None,
    transformer: TransformerSettings | None = None,
    seed: int = 0,
    n_threads: int = 1,
    batch_names: Sequence[str] | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> TokenClusters:
    """Cluster tokens weighted by their counts; tokens of several batches are integrated first.

    Parameters
    ----------
    method
        ``ward``: count-weighted Ward linkage refined by k-means; ``kmeans``: count-weighted k-means, the tightest
        of ten random starts and one from a Ward tree; ``leiden``: communities of the nearest-neighbour graph of the
        tokens; ``transformer``: clusters of the token embedding that a Transformer learns from the buckets around each
        (`hashstream.cluster.transformer`).
    n_clusters
        None: chosen from the tokens (`choose_n_clusters`). Leiden gets as near to it as the graph allows.
    resolution
        Of Leiden, on the tokens or, for ``transformer``, on the embedding that it learns; excludes `n_clusters`.
    bucket_bits
        Prefix at which the tokens are clustered; None: see `clustering_prefix`.
    transformer
        Settings of the Transformer.
    batch_names
        Names of the batches of the tokens, for messages.
    progress
        Called with (steps done, steps in all) while the Transformer learns.

    Raises
    ------
    SettingsError
        If the settings contradict each other, or ask for more clusters than there are buckets; or torch is missing.
    TrainingError
        If the Transformer's loss is not a number.
    """
    _check_asked(method, n_clusters, resolution)
    if n_clusters is not None and not 1 <= n_clusters <= tokens.n_tokens:
        raise SettingsError(
            f"{n_clusters} clusters asked for, but the run has {tokens.n_tokens} buckets; use at most that many, or "
            "encode with more buckets (--max-buckets)."
        )
    if bucket_bits is None:
        most = MOST_LEIDEN_POINTS if method == "leiden" and n_clusters is None else MOST_POINTS
        bucket_bits = clustering_prefix(tokens, at_least=n_clusters or 1, most=most)
    elif not 1 <= bucket_bits <= tokens.bucket_bits:
        raise SettingsError(f"bucket_bits is {bucket_bits}; the run's buckets have {tokens.bucket_bits} bits.")
    coarse, parent = tokens.shorten(bucket_bits)
    if n_clusters is not None and n_clusters > coarse.n_tokens:
        raise SettingsError(f"{n_clusters} clusters asked for, but {bucket_bits} bits give {coarse.n_tokens} buckets.")
    means, warnings = coarse.means[:, :N_DIMS], tuple[str, ...]()
    if coarse.batches is not None:
        from hashstream.cluster.integrate import integrate  # scikit-learn takes a second to import

        integrated = integrate(means, coarse.counts, coarse.batches, names=batch_names, seed=seed)
        means, warnings = integrated.points, integrated.warnings
    points = scaled(means, coarse.counts)
    wanted = _Wanted(n_clusters, resolution, seed, n_threads)
    if coarse.n_tokens == 1:
        labels, chosen_by = np.zeros(1, dtype=np.int32), "there is one bucket"
    elif method == "transformer":
        labels, points, chosen_by = _transformer(coarse, points, wanted, transformer, progress)
    else:
        labels, points, chosen_by = _cluster(means, points, coarse.counts, method, wanted)
    used, compact = np.unique(labels, return_inverse=True)
    confidence, other = assignment_confidence(points, coarse.counts, compact)
    return TokenClusters(
        compact.astype(np.int32)[parent],
        confidence[parent],
        other[parent],
        len(used),
        chosen_by,
        bucket_bits,
        coarse.n_tokens,
        warnings,
    )


def cluster_landmarks(
    embedding: NDArray[np.float32],
    *,
    method: str,
    n_clusters: int | None = None,
    resolution: float | None = None,
    seed: int = 0,
    n_threads: int = 1,
) -> tuple[NDArray[np.int32], str]:
    """Clusters of the landmarks of a large atlas, and what chose their number.

    Parameters
    ----------
    embedding : (n_landmarks, n_dims) float32
    method, n_clusters, resolution
        See `cluster_tokens`; ``transformer`` is for tokens only.

    Returns
    -------
    labels : (n_landmarks,) int32
        0 to n_clusters - 1, each used.
    chosen_by : str

    Raises
    ------
    SettingsError
        If the settings contradict each other, or ask for more clusters than there are landmarks.
    ValueError
        For ``transformer``.
    """
    _check_asked(method, n_clusters, resolution)
    if method == "transformer":
        raise ValueError("landmarks are not the tokens that the transformer is for")
    n = len(embedding)
    if n_clusters is not None and n_clusters > n:
        raise SettingsError(f"{n_clusters} clusters asked for, but there are {n} landmarks.")
    if n == 1:
        return np.zeros(1, np.int32), "there is one landmark"
    points = smoothed(embedding, n_threads=n_threads)
    wanted = _Wanted(n_clusters, resolution, seed, n_threads)
    labels, _, chosen_by = _cluster(embedding, points, np.ones(n, np.int64), method, wanted)
    return np.unique(labels, return_inverse=True)[1].astype(np.int32), f"{chosen_by}, of {n:,} landmarks"


def _check_asked(method: str, n_clusters: int | None, resolution: float | None) -> None:
    if method not in METHODS:
        raise SettingsError(f"method is {method!r}; expected one of {', '.join(METHODS)}.")
    if resolution is not None and (method not in ("leiden", "transformer") or n_clusters is not None):
        raise SettingsError("a resolution is for --method leiden or transformer, and excludes --n-clusters.")


def clustering_prefix(tokens: Tokens, *, at_least: int = 1, most: int | None = None) -> int:
    """The longest prefix that leaves 3 cells a bucket on average and gives at most `most` (16,384) buckets.

    It has 8 bits at least.

    Shorter buckets average out noise and cost less; longer ones are nearly single cells. A longer prefix is taken
    where it needs one to have `at_least` buckets.
    """
    most = min(tokens.n_cells // CELLS_PER_BUCKET, MOST_POINTS if most is None else most)
    best, too_long = min(SHORTEST_PREFIX, tokens.bucket_bits), tokens.bucket_bits + 1
    # The number of distinct prefixes rises with their length, so the length is found by bisection.
    while too_long - best > 1:
        middle = (best + too_long) // 2
        best, too_long = (middle, too_long) if tokens.n_prefixes(middle) <= most else (best, middle)
    while best < tokens.bucket_bits and tokens.n_prefixes(best) < at_least:
        best += 1
    return best


def scaled_points(tokens: Tokens) -> NDArray[np.float32]:
    """Token means in the space that clusters are looked for in."""
    return scaled(tokens.means[:, :N_DIMS], tokens.counts)


@dataclass(frozen=True)
class _Wanted:
    """What was asked of the clusters."""

    n_clusters: int | None
    resolution: float | None
    seed: int
    n_threads: int

    def number(self, points: NDArray[np.float32], counts: NDArray[np.int64]) -> tuple[int, str]:
        """The number of clusters, and what chose it."""
        if self.n_clusters is not None:
            return self.n_clusters, "user"
        found = choose_n_clusters(points, counts, seed=self.seed, n_threads=self.n_threads)
        return found, "Leiden communities of the token graph at resolution 1"


def _cluster(
    means: NDArray[np.float32], points: NDArray[np.float32], counts: NDArray[np.int64], method: str, wanted: _Wanted
) -> tuple[NDArray[np.int32], NDArray[np.float32], str]:
    """Labels by a method that learns nothing, and the points it looks at: k-means takes the components unscaled."""
    if method == "leiden":
        labels, chosen_by = _leiden(points, counts, wanted)
        return labels, points, chosen_by
    n_clusters, chosen_by = wanted.number(points, counts)
    if method == "kmeans":
        points = means
    linkage = ward_linkage(points, counts.astype(np.float64), n_threads=wanted.n_threads)
    if method == "kmeans":
        # Ten random starts often miss the tightest clusters; a cut of the Ward tree is one more, usually a good one.
        start = cut_tree(linkage, n_clusters)
        return weighted_kmeans(points, counts, n_clusters, seed=wanted.seed, start=start), points, chosen_by
    return ward_clusters(points, counts, linkage, n_clusters), points, chosen_by


def _transformer(
    tokens: Tokens,
    points: NDArray[np.float32],
    wanted: _Wanted,
    settings: TransformerSettings | None,
    progress: Callable[[int, int], None] | None,
) -> tuple[NDArray[np.int32], NDArray[np.float32], str]:
    """Labels, the learned points, and what chose the number of clusters."""
    seed, n_threads = wanted.seed, wanted.n_threads
    if wanted.resolution is not None:
        learned = learn_tokens(tokens, points, settings=settings, seed=seed, n_threads=n_threads, progress=progress)
        labels, chosen_by = _leiden(learned, tokens.counts, wanted)
        return labels, learned, f"{chosen_by} of the learned tokens"
    n_clusters, chosen_by = wanted.number(points, tokens.counts)
    found = transformer_clusters(
        tokens, points, n_clusters, settings=settings, seed=seed, n_threads=n_threads, progress=progress
    )
    return found.labels, found.points, chosen_by


def _leiden(points: NDArray[np.float32], counts: NDArray[np.int64], wanted: _Wanted) -> tuple[NDArray[np.int32], str]:
    neighbours = token_neighbours(points, graph_neighbours(len(points)), n_threads=wanted.n_threads)
    graph = token_graph(neighbours, size=np.sqrt(counts))
    if wanted.n_clusters is not None:
        labels, found = leiden_with_n_clusters(graph, wanted.n_clusters, seed=wanted.seed)
        return labels, f"user ({wanted.n_clusters} asked for, at resolution {found:.3g})"
    value = 1.0 if wanted.resolution is None else wanted.resolution
    return leiden_clusters(graph, resolution=value, seed=wanted.seed), f"Leiden communities at resolution {value:g}"
