"""One label a cluster, by a majority vote of its cells; the frequencies are kept."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from hashstream.errors import SettingsError


@dataclass(frozen=True)
class Consensus:
    """The outcome of the vote in each cluster.

    Attributes
    ----------
    labels : (n_clusters,) int32
        -1 where no cell has a label, or the winner's share is below the least that was asked for.
    shares : (n_clusters,) float64
        Share of the cluster's cells, those without a label included, that have its most frequent label.
    counts : (n_clusters, n_labels + 1) int64
        Cells of each cluster and label; the last column counts cells without a label.
    """

    labels: NDArray[np.int32]
    shares: NDArray[np.float64]
    counts: NDArray[np.int64]


def consensus_labels(
    clusters: NDArray[np.integer],
    labels: NDArray[np.integer],
    weights: NDArray[np.integer],
    *,
    n_clusters: int,
    n_labels: int,
    min_share: float = 0.0,
) -> Consensus:
    """Give each cluster the label that most of its cells have (as CellTypist does: Dominguez Conde et al. 2022).

    Parameters
    ----------
    clusters, labels : (n_tokens,) integer
        Of buckets, or of cells; label -1 where there is none.
    weights : (n_tokens,) integer
        Cells of each.
    min_share
        Least share of a cluster's cells that must have the label, or the cluster gets none.

    Raises
    ------
    SettingsError
        If `min_share` is not from 0 to 1.
    ValueError
        If the arrays differ in length, or name clusters or labels that are not there.
    """
    if not 0.0 <= min_share <= 1.0:
        raise SettingsError(f"the least share of a majority is {min_share}; expected 0 to 1.")
    clusters, labels, weights = np.asarray(clusters), np.asarray(labels), np.asarray(weights)
    if not clusters.shape == labels.shape == weights.shape:
        raise ValueError(f"{clusters.shape} clusters, {labels.shape} labels and {weights.shape} weights")
    for name, values, low, high in (("clusters", clusters, 0, n_clusters), ("labels", labels, -1, n_labels)):
        if len(values) and not low <= int(values.min()) <= int(values.max()) < high:
            raise ValueError(f"{name} go from {values.min()} to {values.max()}, expected {low} to {high - 1}")
    counts = np.zeros((n_clusters, n_labels + 1), dtype=np.int64)
    np.add.at(counts, (clusters, np.where(labels < 0, n_labels, labels)), weights)
    known = counts[:, :n_labels]
    if n_labels == 0:
        return Consensus(np.full(n_clusters, -1, np.int32), np.zeros(n_clusters), counts)
    winner = known.argmax(axis=1)
    most = known.max(axis=1)
    shares = most / np.maximum(counts.sum(axis=1), 1)
    unsure = (most == 0) | (shares < min_share)
    return Consensus(np.where(unsure, -1, winner).astype(np.int32), shares, counts)
