"""Principal components from products with the covariance, which need not be made."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

_EXTRA = 8  # columns beyond the components: the last of these converge sooner
STEPS = 5  # products with the covariance


def krylov_components(
    times: Callable[[NDArray[np.float64]], NDArray[np.float64]],
    n_columns: int,
    n_components: int,
    *,
    rng: np.random.Generator,
) -> NDArray[np.float64]:
    """Leading eigenvectors of a symmetric matrix that is known by its products alone.

    Block Krylov iteration (Musco & Musco, "Randomized block Krylov methods for stronger and faster approximate
    singular value decomposition", NIPS 2015): from random columns, each step multiplies the last block by the matrix
    and makes it orthogonal to all before it; the best vectors that all blocks together span are taken. Where
    eigenvalues are nearly the same, as those of noise are, vectors are mixed.

    Parameters
    ----------
    times
        From (n_columns, width) float64 to the matrix times that.
    n_columns
        Of the matrix; at least what all blocks take together, `krylov_width`.

    Returns
    -------
    (n_columns, n_components) float64
        Orthonormal, by falling eigenvalue; the largest entry of each is positive.

    Raises
    ------
    ValueError
        The matrix is smaller than that.
    """
    if n_columns < krylov_width(n_components):
        raise ValueError(f"{n_columns} columns, expected at least {krylov_width(n_components)}")
    blocks = [np.linalg.qr(rng.standard_normal((n_columns, n_components + _EXTRA)))[0]]
    images: list[NDArray[np.float64]] = []
    while True:
        images.append(times(blocks[-1]))
        basis = np.concatenate(blocks, axis=1)
        if len(blocks) == STEPS:
            break
        block = images[-1]
        for _ in range(2):  # once leaves what rounding brings back
            block = np.linalg.qr(block - basis @ (basis.T @ block))[0]
        blocks.append(block)
    inner = basis.T @ np.concatenate(images, axis=1)
    _, vectors = np.linalg.eigh((inner + inner.T) / 2)
    return with_positive_peaks(basis @ vectors[:, : -n_components - 1 : -1])


def krylov_width(n_components: int) -> int:
    """Columns of all blocks together."""
    return STEPS * (n_components + _EXTRA)


def with_positive_peaks(vectors: NDArray[np.float64]) -> NDArray[np.float64]:
    """Each column with the sign that makes its largest entry positive: the sign of an eigenvector is arbitrary."""
    peak = vectors[np.abs(vectors).argmax(axis=0), np.arange(vectors.shape[1])]
    return vectors * np.where(peak < 0, -1.0, 1.0)
