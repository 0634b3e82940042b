"""The closed-form head: linear discriminant analysis on principal components, the same prior for every type."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import scipy.linalg
from numpy.typing import NDArray

from hashstream.annotate.discriminant import whiten
from hashstream.hashing.anchors.cells import Standardised
from hashstream.hashing.components import with_positive_peaks


@dataclass(frozen=True)
class Discriminant:
    """Axes on which cells of one type scatter alike in all directions.

    Attributes
    ----------
    weight, bias : (n_genes, n_axes), (n_axes,) float64
        From z to the axes.
    centroids : (n_classes, n_genes) float32
        Mean z of each class.
    wide : (n_genes, n_wide) float64
        More principal components, if asked for.
    """

    weight: NDArray[np.float64]
    bias: NDArray[np.float64]
    centroids: NDArray[np.float32]
    wide: NDArray[np.float64]


def fit_discriminant(
    z: Standardised,
    everything: NDArray[np.int64],
    labelled: NDArray[np.int64],
    classes: NDArray[np.int64],
    n_classes: int,
    *,
    n_components: int,
    shrinkage: float,
    n_wide: int = 0,
) -> Discriminant:
    """Principal components of all cells, whitened by the covariance within the types.

    See `hashstream.annotate.discriminant.whiten`.

    Parameters
    ----------
    everything : (n,) int64
        Cells whose components are taken; labels are not needed.
    labelled, classes : (n_labelled,) int64
        Cells with a label, and their class.
    n_wide : int
        Components to give beside those of the discriminant.
    """
    components, centre, wide = _components(z, everything, n_components, n_wide)
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
    whitening = whiten(within.T @ within / len(within), shrinkage)
    weight = components @ whitening
    return Discriminant(weight, -(centre @ weight), centroids.astype(np.float32), wide)


def _components(
    z: Standardised, numbers: NDArray[np.int64], n_components: int, n_wide: int
) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
    """Leading eigenvectors (n_genes, n) of the covariance of z, its mean, and `n_wide` eigenvectors."""
    gram, total = np.zeros((z.n_genes, z.n_genes)), np.zeros(z.n_genes)
    for _, values in z.groups(numbers):
        gram += values.T @ values
        total += values.sum(axis=0, dtype=np.float64)
    centre = total / len(numbers)
    gram -= len(numbers) * np.outer(centre, centre)
    gram /= len(numbers)
    most = max(1, min(z.n_genes, len(numbers) - 1))
    wide = np.zeros((z.n_genes, 0))
    if n_wide:
        # Apart from the others, so that these are the same to the last bit whether more are asked for or not.
        wide = _eigenvectors(gram.copy(), min(n_wide, most))
    return _eigenvectors(gram, min(n_components, most)), centre, wide


def _eigenvectors(gram: NDArray[np.float64], n: int) -> NDArray[np.float64]:
    """The `n` leading ones; `gram` is overwritten."""
    n_genes = len(gram)
    _, vectors = scipy.linalg.eigh(
        gram, subset_by_index=(n_genes - n, n_genes - 1), overwrite_a=True, check_finite=False
    )
    return with_positive_peaks(vectors[:, ::-1])
