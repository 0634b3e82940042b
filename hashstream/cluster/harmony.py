"""Harmony on weighted points: soft clusters that mix the batches, and in each a linear correction of every batch.

Source: Korsunsky et al., "Fast, sensitive and accurate integration of single-cell data with Harmony", Nat. Methods
2019; the ridge penalty in proportion to the expected weight is that of version 2 of the authors' package. Own code,
because tokens have weights and the published implementations take every point as one. With equal weights it agrees
with harmonypy as well as two seeds of harmonypy agree with each other.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from sklearn.cluster import KMeans
from threadpoolctl import threadpool_limits

from hashstream.errors import SettingsError

_TINY = 1e-12
_SMALLEST = np.float32(1e-30)
_START_ITERATIONS = 25
_POINTS_PER_CLUSTER, _MOST_CLUSTERS = 30, 100
_CLUSTER_TOLERANCE, _OUTER_TOLERANCE = 1e-3, 1e-2


@dataclass(frozen=True)
class HarmonySettings:
    """Settings of `harmony`.

    Attributes
    ----------
    n_clusters : int, optional
        Soft clusters; None: one for 30 points, from 2 to 100.
    theta : float
        Strength of the penalty on clusters in which a batch is over-represented; 0 turns it off.
    sigma : float
        Width of the soft assignment, in units of twice the cosine distance. The default is twice that of the paper:
        points of one kind but of far apart batches must share a cluster before they can be brought together, and the
        few tens of clusters of a token table are far apart themselves.
    alpha : float
        Ridge penalty of a batch in a cluster, as a share of the weight it would have there if batches were mixed.
    iterations, rounds : int
        Most corrections, and most updates of the clusters before each.
    n_blocks : int
        Parts of the points whose assignments are updated together.
    """

    n_clusters: int | None = None
    theta: float = 2.0
    sigma: float = 0.2
    alpha: float = 0.2
    iterations: int = 10
    rounds: int = 4
    n_blocks: int = 20

    def __post_init__(self) -> None:
        for name in ("n_clusters", "iterations", "rounds", "n_blocks"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise SettingsError(f"{name} is {value}; expected a positive number.")
        if self.theta < 0 or self.sigma <= 0 or self.alpha <= 0:
            raise SettingsError("theta must not be negative; sigma and alpha must be positive.")


def harmony(
    points: NDArray[np.floating],
    weights: NDArray[np.floating],
    batches: NDArray[np.integer],
    *,
    settings: HarmonySettings | None = None,
    seed: int = 0,
) -> NDArray[np.float64]:
    """The points with the batches brought together: (n_points, n_dims) float64.

    Parameters
    ----------
    points : (n_points, n_dims)
        Centred, such as principal components: clusters are formed by the cosine.
    weights : (n_points,)
        Positive.
    batches : (n_points,)
        0 to n_batches - 1.

    Notes
    -----
    One thread is used, so that the result is reproducible. Memory is n_points x n_clusters, a few times.
    """
    settings = settings or HarmonySettings()
    # Tokens of one batch stand together, so that sums over a batch are sums over a slice.
    order = np.argsort(batches, kind="stable")
    with threadpool_limits(limits=1):
        corrected = _Harmony(
            np.asarray(points[order], dtype=np.float64),
            np.asarray(weights[order], dtype=np.float64),
            np.asarray(batches[order], dtype=np.int64),
            settings,
            seed,
        ).run()
    result = np.empty_like(corrected)
    result[order] = corrected
    return result


class _Harmony:
    """State of one run: points sorted by batch, soft assignments, and the weights of batches in clusters."""

    def __init__(
        self,
        points: NDArray[np.float64],
        weights: NDArray[np.float64],
        batches: NDArray[np.int64],
        settings: HarmonySettings,
        seed: int,
    ) -> None:
        self.points, self.weights, self.batches, self.settings = points, weights, batches, settings
        self._weights32 = weights.astype(np.float32)[:, None]
        self.rng = np.random.default_rng(seed)
        n = len(points)
        wanted = settings.n_clusters or int(np.clip(round(n / _POINTS_PER_CLUSTER), 2, _MOST_CLUSTERS))
        self.n_batches = int(batches.max()) + 1
        edges = np.searchsorted(batches, np.arange(self.n_batches + 1))
        self.slices = [slice(a, b) for a, b in zip(edges[:-1], edges[1:], strict=True)]
        self.batch_share = np.bincount(batches, weights=weights) / weights.sum()
        # Arrays of points x clusters are float32: half the memory and time, and Harmony settles far above its rounding.
        self.directions = _unit(points).astype(np.float32)
        self.n_clusters = min(wanted, len(np.unique(self.directions, axis=0)))
        start = KMeans(self.n_clusters, n_init=1, max_iter=_START_ITERATIONS, random_state=seed)
        self.distances = self._distances(start.fit(self.directions, sample_weight=weights).cluster_centers_)
        self.assigned = _closeness(self.distances, settings.sigma)  # (n_points, n_clusters)
        self.assigned /= self.assigned.sum(axis=1, keepdims=True)
        self.observed, self.expected = self._weights_of(slice(None))  # (n_batches, n_clusters)

    def run(self) -> NDArray[np.float64]:
        corrected, last = self.points, np.inf
        for _ in range(self.settings.iterations):
            objective = self._cluster()
            corrected = self._correct()
            self.directions = _unit(corrected).astype(np.float32)
            if last - objective < _OUTER_TOLERANCE * abs(last):
                break
            last = objective
        return corrected

    def _weights_of(self, rows: slice | NDArray[np.int64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Observed and expected weight of each batch in each cluster, from some points in ascending order."""
        weighted = self.assigned[rows] * self._weights32[rows]
        observed = np.zeros((self.n_batches, self.n_clusters))
        batches = self.batches[rows]
        first = np.flatnonzero(np.diff(batches, prepend=-1))
        if len(first):
            observed[batches[first]] = np.add.reduceat(weighted, first, axis=0)
        return observed, np.outer(self.batch_share, observed.sum(axis=0))

    def _distances(self, centres: NDArray[np.floating]) -> NDArray[np.float32]:
        """Twice the cosine distance of each point from the directions of the centres: (n_points, n_clusters)."""
        distances = self.directions @ _unit(centres).astype(np.float32).T
        distances -= 1.0
        distances *= -2.0
        return distances

    def _cluster(self) -> float:
        """Update centres and assignments until the objective settles; the objective."""
        last = np.inf
        for _ in range(self.settings.rounds):
            self.distances = self._distances(self.assigned.T @ (self.directions * self._weights32))
            closeness = _closeness(self.distances, self.settings.sigma)
            for block in np.array_split(self.rng.permutation(len(self.points)), self.settings.n_blocks):
                self._assign(np.sort(block), closeness)
            objective = self._objective()
            if abs(last - objective) < _CLUSTER_TOLERANCE * abs(objective):
                return objective
            last = objective
        return last

    def _assign(self, block: NDArray[np.int64], closeness: NDArray[np.float32]) -> None:
        """New assignments of some points, with the penalty that the other points' assignments give."""
        if len(block) == 0:
            return
        observed, expected = self._weights_of(block)
        self.observed = np.maximum(self.observed - observed, 0.0)
        self.expected = np.maximum(self.expected - expected, 0.0)
        mixing = (2.0 * self.expected / (self.observed + self.expected + _TINY)) ** self.settings.theta
        assigned = closeness[block] * mixing.astype(np.float32)[self.batches[block]]
        assigned /= np.maximum(assigned.sum(axis=1, keepdims=True), _SMALLEST)
        self.assigned[block] = assigned
        observed, expected = self._weights_of(block)
        self.observed += observed
        self.expected += expected

    def _objective(self) -> float:
        """Weighted distances, entropy of the assignments, and divergence of the batches (the paper's equation 3)."""
        surprise = np.log(np.maximum(self.assigned, _SMALLEST))
        surprise *= np.float32(self.settings.sigma)
        surprise += self.distances
        surprise *= self.assigned
        ratio = (self.observed + self.expected + _TINY) / (2.0 * self.expected + _TINY)
        mixing = (self.observed * np.log(ratio)).sum()
        return float(self.weights @ surprise.sum(axis=1) + self.settings.sigma * self.settings.theta * mixing)

    def _correct(self) -> NDArray[np.float64]:
        """Points less the offset of their batch in each cluster, by weighted ridge regression on the batch.

        The normal equations of an intercept and one indicator for each batch are an arrow, which is solved by
        elimination. The intercept, what all batches share, is not removed.
        """
        sums = np.stack(
            [self.assigned[rows].T @ (self.points[rows] * self.weights[rows, None]) for rows in self.slices]
        )  # (n_batches, n_clusters, n_dims)
        damped = self.observed + self.settings.alpha * self.expected + _TINY
        share = self.observed / damped
        intercept = (sums - share[:, :, None] * sums).sum(axis=0)
        intercept /= np.maximum((self.observed - share * self.observed).sum(axis=0), _TINY)[:, None]
        offsets = (sums - self.observed[:, :, None] * intercept) / damped[:, :, None]
        corrected = self.points.copy()
        for batch, rows in enumerate(self.slices):
            corrected[rows] -= self.assigned[rows] @ offsets[batch]
        return corrected


def _unit(rows: NDArray[np.floating]) -> NDArray[np.floating]:
    return rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), _TINY)


def _closeness(distances: NDArray[np.float32], sigma: float) -> NDArray[np.float32]:
    """exp(-distance / sigma), times whatever makes the largest of each row 1."""
    exponent = distances - distances.min(axis=1, keepdims=True)
    exponent *= np.float32(-1.0 / sigma)
    return np.exp(exponent, out=exponent)
