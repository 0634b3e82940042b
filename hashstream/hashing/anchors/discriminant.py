"""The closed-form head: linear discriminant analysis on principal components, the same prior for every type."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import scipy.linalg
from numpy.typing import NDArray

from hashstream.hashing.anchors.cells import Standardised


@dataclass(frozen=True)
class Discriminant:
    """Axes on which cells of one type scatter alike in all directions.

    Attributes
    ----------
    weight, bias : (n_genes, n_axes), (n_axes,) float64
        From z to the axes.
    centroids : (n_classes, n_genes) float32
        Mean z of each class.
    """

    weight: NDArray[np.float64]
    bias: NDArray[np.float64]
    centroids: NDArray[np.float32]


def fit_discriminant(
    z: Standardised,
    everything: NDArray[np.int64],
    labelled: NDArray[np.int64],
    classes: NDArray[np.int64],
    n_classes: int,
    *,
    n_components: int,
    shrinkage: float,
) -> Discriminant:
    """Principal components of all cells, whitened by the covariance within the types.

    The covariance is (1 - shrinkage) S + shrinkage trace(S) / d I (Friedman, "Regularized discriminant analysis",
    JASA 1989).

    Parameters
    ----------
    everything : (n,) int64
        Cells whose components are taken; labels are not needed.
    labelled, classes : (n_labelled,) int64
        Cells with a label, and their class.
    """
    components, centre = _components(z, everything, n_components)
    sums = np.zeros((n_classes, z.n_genes))
    scores = np.empty((len(labelled), components.shape[1]))
    for part, values in z.groups(labelled):
        members = np.zeros((n_classes, len(values)), dtype=np.float32)
        members[classes[part], np.arange(len(values))] = 1.0
        sums += members @ values
        scores[part] = values @ components - centre @ components
    sizes = np.bincount(classes, minlength=n_classes)
    centroids = sums / np.maximum(sizes, 1)[:, None]
    means = np.stack([np.bincount(classes, weights=s, minlength=n_classes) for s in scores.T], axis=1)
    within = scores - (means / np.maximum(sizes, 1)[:, None])[classes]
    covariance = within.T @ within / len(within)
    n = len(covariance)
    typical = max(float(np.trace(covariance)) / n, 1e-9)
    covariance = (1 - shrinkage) * covariance + shrinkage * typical * np.eye(n)
    # A trace of the typical variance keeps it invertible without shrinkage, too.
    covariance += 1e-6 * typical * np.eye(n)
    # whitening.T @ covariance @ whitening = 1
    whitening = scipy.linalg.solve_triangular(np.linalg.cholesky(covariance), np.eye(n), lower=True).T
    weight = components @ whitening
    return Discriminant(weight, -(centre @ weight), centroids.astype(np.float32))


def _components(
    z: Standardised, numbers: NDArray[np.int64], n_components: int
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Leading eigenvectors (n_genes, n) of the covariance of z, and its mean; summed a group of cells at a time."""
    gram, total = np.zeros((z.n_genes, z.n_genes)), np.zeros(z.n_genes)
    for _, values in z.groups(numbers):
        gram += values.T @ values
        total += values.sum(axis=0, dtype=np.float64)
    centre = total / len(numbers)
    gram -= len(numbers) * np.outer(centre, centre)
    gram /= len(numbers)
    n = max(1, min(n_components, z.n_genes, len(numbers) - 1))
    _, vectors = scipy.linalg.eigh(
        gram, subset_by_index=(z.n_genes - n, z.n_genes - 1), overwrite_a=True, check_finite=False
    )
    vectors = vectors[:, ::-1]
    # An eigenvector's sign is arbitrary; the largest loading is made positive so that a fit is reproducible.
    peak = vectors[np.abs(vectors).argmax(axis=0), np.arange(n)]
    return vectors * np.where(peak < 0, -1.0, 1.0), centre
