"""Bits that say how well a cell fits the types at all.

How far a cell points in the direction of its type is the length of its standardised profile z along the type's mean
profile, over the length of z: the cosine. Cells of a type that was not learned from point less into the direction of
the type that they are taken for than this type's own cells do. The length of z is not linear in z, but it is nearly
so in the mean of z over the genes, as both depend on the depth of a cell; with that in its place each threshold on the
ratio is a hyperplane, and a few thresholds for every type are a few bits.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from hashstream.hashing.anchors.cells import Standardised

MOST_GROUPS = 64
_HIGHEST, _LOWEST, _SINGLE = 0.5, -3.5, -2.0
_LEAST_LENGTH = 0.1


@dataclass(frozen=True)
class Directions:
    """Where the types point to.

    Attributes
    ----------
    group : (n_classes,) int64
        Group of each class; every class is its own group where they are at most 64.
    weight, bias : (n_genes, n_groups + 1), (n_groups + 1,) float64
        From z to the length along each group's mean profile and, last, to the expected length of z; in units of the
        typical length.
    """

    group: NDArray[np.int64]
    weight: NDArray[np.float64]
    bias: NDArray[np.float64]

    @property
    def n_groups(self) -> int:
        return self.weight.shape[1] - 1


def find_directions(
    z: Standardised, numbers: NDArray[np.int64], centroids: NDArray[np.float32], sizes: NDArray[np.int64]
) -> Directions:
    """Directions of the mean profiles (n_classes, n_genes), and the expected length of z by least squares."""
    group = _groups(centroids)
    n_groups = int(group.max()) + 1
    means = np.zeros((n_groups, centroids.shape[1]))
    np.add.at(means, group, centroids.astype(np.float64) * sizes[:, None])
    means /= np.maximum(np.linalg.norm(means, axis=1, keepdims=True), 1e-12)
    lengths, level = np.empty(len(numbers)), np.empty(len(numbers))
    for part, values in z.groups(numbers):
        lengths[part] = np.sqrt(np.square(values, dtype=np.float64).sum(axis=1))
        level[part] = values.mean(axis=1, dtype=np.float64)
    slope = float(np.cov(level, lengths)[0, 1] / max(level.var(ddof=1), 1e-12)) if len(level) > 1 else 0.0
    typical = max(float(np.median(lengths)), 1e-12)
    n_genes = centroids.shape[1]
    weight = np.column_stack([means.T, np.full(n_genes, slope / n_genes)]) / typical
    bias = np.zeros(n_groups + 1)
    bias[-1] = (lengths.mean() - slope * level.mean()) / typical
    return Directions(group, weight, bias)


def acceptance(
    features: NDArray[np.float32], groups: NDArray[np.int64], n_groups: int, n_bits: int
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Hyperplanes of the acceptance bits.

    Parameters
    ----------
    features : (n, n_groups + 1)
        Of labelled cells, as the layers give them: lengths along the groups, and expected length.
    groups : (n,) int64
        Group of each cell.
    n_bits : int
        Bits that there are; each group gets the same number of them.

    Returns
    -------
    levels : (n_levels,) float64
        Thresholds in standard deviations of a group's own cells from their mean, falling.
    weight : (n_groups + 1, n_groups * n_levels) float64
        Bit ``group * n_levels + level`` is 1 where ``features @ weight > 0``: the cell points into the direction of the
        group at least as much as that.
    """
    n_levels = n_bits // n_groups
    levels = np.linspace(_HIGHEST, _LOWEST, n_levels) if n_levels > 1 else np.full(n_levels, _SINGLE)
    own = features[np.arange(len(groups)), groups] / np.maximum(features[:, -1], _LEAST_LENGTH)
    weight = np.zeros((n_groups + 1, n_groups * n_levels))
    for g in range(n_groups):
        ratio = own[groups == g].astype(np.float64)
        middle = float(ratio.mean()) if len(ratio) else 0.0
        spread = float(ratio.std(ddof=1)) if len(ratio) > 1 else 0.0
        bits = slice(g * n_levels, (g + 1) * n_levels)
        weight[g, bits] = 1.0
        weight[-1, bits] = -(middle + max(spread, 1e-3) * levels)
    return levels, weight


def _groups(centroids: NDArray[np.float32]) -> NDArray[np.int64]:
    """Each class by itself, or groups of classes with correlated mean profiles."""
    n_classes = len(centroids)
    if n_classes <= MOST_GROUPS:
        return np.arange(n_classes)
    from scipy.cluster.hierarchy import fcluster, linkage

    unit = centroids / np.maximum(np.linalg.norm(centroids, axis=1, keepdims=True), 1e-12)
    found = fcluster(linkage(unit, "ward"), MOST_GROUPS, "maxclust")
    return np.unique(found, return_inverse=True)[1].astype(np.int64)
