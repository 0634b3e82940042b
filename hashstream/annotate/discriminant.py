"""Labels by a linear discriminant of the reference's types, in the embedding.

Cells of one type are taken to scatter as those of any other do, about a mean of their own (Fisher, "The use of multiple
measurements in taxonomic problems", 1936). That needs no training: means, one covariance, and a temperature from fifths
of the cells that the other four label.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from hashstream.calibration import temperature

SHRINKAGE = 0.1
_LOG_RANGE = (-5.0, 1.0)
_BLOCK_POINTS = 1 << 14
_FOLDS = 5


def whiten(covariance: NDArray[np.float64], shrinkage: float) -> NDArray[np.float64]:
    """The map (n, n) after which a shrunken covariance within types is the identity.

    It becomes (1 - shrinkage) S + shrinkage trace(S) / n I (Friedman, "Regularized discriminant analysis", JASA 1989).
    """
    n = len(covariance)
    typical = max(float(np.trace(covariance)) / n, 1e-9)
    covariance = (1 - shrinkage) * covariance + shrinkage * typical * np.eye(n)
    # A trace of the typical variance keeps it invertible without shrinkage, too.
    covariance += 1e-6 * typical * np.eye(n)
    # whitening.T @ covariance @ whitening = 1
    return np.linalg.inv(np.linalg.cholesky(covariance)).T


@dataclass(frozen=True)
class TypeDiscriminant:
    """Log-odds of the types of a point.

    Attributes
    ----------
    weights : (n_dims, n_types) float64
    offset : (n_types,) float64
        Priors included: the share of each type among the cells that were learned from.
    scale : float
        What the log-odds of the closed form are multiplied by, so that probabilities are right as often as they say
        among cells that were not learned from.
    """

    weights: NDArray[np.float64]
    offset: NDArray[np.float64]
    scale: float

    @classmethod
    def of(
        cls,
        points: NDArray[np.floating],
        labels: NDArray[np.integer],
        sizes: NDArray[np.integer],
        *,
        more: tuple[NDArray[np.floating], NDArray[np.float64]] | None = None,
    ) -> TypeDiscriminant:
        """From the embedding of some labelled cells.

        Parameters
        ----------
        points, labels : (n, n_dims), (n,)
            Cells and their types, 0 to n_types - 1.
        sizes : (n_types,) integer
            Cells that each type has in the whole reference, at least 1.
        more
            Other points (m, n_dims), and how many cells of each type each stands for, (m, n_types): they add to the
            means of types. Every type has cells here or there.
        """
        plain = cls._closed_form(points, labels, sizes, more)
        folds = _folds(labels)
        odds = np.empty((len(points), len(sizes)))
        for fold in range(_FOLDS):
            learned, judged = folds != fold, folds == fold
            if not learned.any():
                return plain
            odds[judged] = cls._closed_form(points[learned], labels[learned], sizes, more).log_odds(points[judged])
        # A type that only this fifth has, and no other point stands for, cannot be found.
        judged = np.isfinite(odds[np.arange(len(labels)), labels])
        odds = np.maximum(odds, np.finfo(np.float32).min)
        if not judged.any():
            return plain
        return replace(plain, scale=temperature(odds[judged], labels[judged], log_range=_LOG_RANGE))

    @classmethod
    def _closed_form(
        cls,
        points: NDArray[np.floating],
        labels: NDArray[np.integer],
        sizes: NDArray[np.integer],
        more: tuple[NDArray[np.floating], NDArray[np.float64]] | None,
    ) -> TypeDiscriminant:
        values, n_types = np.asarray(points, dtype=np.float64), len(sizes)
        own = np.bincount(labels, minlength=n_types).astype(np.float64)
        columns = [np.bincount(labels, weights=column, minlength=n_types) for column in values.T]
        sums: NDArray[np.float64] = np.stack(columns, axis=1).astype(np.float64)
        means = sums / np.maximum(own, 1.0)[:, None]
        within = values - means[labels]
        whitening = whiten(within.T @ within / max(len(values), 1), SHRINKAGE)
        if more is not None:
            others, cells = np.asarray(more[0], dtype=np.float64), more[1]
            sums += cells.T @ others
            own += cells.sum(axis=0)
            means = sums / np.maximum(own, 1e-9)[:, None]
        whitened = means @ whitening
        prior = np.where(own > 0, np.log(sizes / sizes.sum()), -np.inf)
        return cls(whitening @ whitened.T, prior - 0.5 * np.square(whitened).sum(axis=1), 1.0)

    def log_odds(self, points: NDArray[np.floating]) -> NDArray[np.float64]:
        """(n, n_types) float64 up to a constant of each point; for points in blocks, as memory grows with n."""
        return self.scale * (np.asarray(points, dtype=np.float64) @ self.weights + self.offset)

    def probabilities(self, points: NDArray[np.floating]) -> NDArray[np.float32]:
        """(n, n_types) float32."""
        found = np.empty((len(points), len(self.offset)), dtype=np.float32)
        for start in range(0, len(points), _BLOCK_POINTS):
            part = slice(start, start + _BLOCK_POINTS)
            odds = self.log_odds(points[part])
            odds = np.exp(odds - odds.max(axis=1, keepdims=True))
            found[part] = odds / odds.sum(axis=1, keepdims=True)
        return found


def _folds(labels: NDArray[np.integer]) -> NDArray[np.int64]:
    """0 to 4 for each cell, in turns within each type."""
    order = np.argsort(labels, kind="stable")
    starts = np.searchsorted(labels[order], labels[order])
    folds = np.empty(len(labels), dtype=np.int64)
    folds[order] = (np.arange(len(labels)) - starts) % _FOLDS
    return folds
