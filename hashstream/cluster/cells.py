"""Single cells of a large atlas, moved to the cluster (or given the label) that their whole code fits best.

Of a large atlas only short prefixes of codes can be clustered, so that one bucket holds cells of several types, however
well the buckets were put together. The rest of the code tells these cells apart. Given the clusters of the buckets, how
often each bit is set in each cluster makes a mixture of independent bits, and every cell goes to its most probable
component: one step of expectation and maximisation (Bishop, "Pattern Recognition and Machine Learning", 2006, section
9.3.3). Further steps change little.

Clusters of landmarks were found in their embedding instead, so that there is something to learn: how the bits of a cell
tell its cluster (`BitProfiles.learned`).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from hashstream.calibration import temperature
from hashstream.kernels import unpack_bits
from hashstream.kernels.anchors import AnchorScores, AnchorTables, anchor_scores

_MOST_INT16 = 32_000
_LOG_RANGE = (-5.0, 0.0)
#: Of the logistic regression: weight of the penalty on half the squares against the log-loss of all cells, most steps,
#: and the relative gain at which it ends.
_RIDGE, _STEPS, _GAIN = 30.0, 100, 1e-5


@dataclass(frozen=True)
class BitProfiles:
    """How the cells of each cluster set the bits of their codes.

    Attributes
    ----------
    tables : AnchorTables
        Log-odds of the clusters for each four bits of a code.
    """

    tables: AnchorTables

    @classmethod
    def of(
        cls, set_bits: NDArray[np.int64], sizes: NDArray[np.int64], codes: NDArray[np.uint64], labels: NDArray[np.int32]
    ) -> BitProfiles:
        """Profiles from counts, and a temperature from a sample.

        Parameters
        ----------
        set_bits : (n_clusters, n_bits) int64
            Cells of each cluster that have the bit set.
        sizes : (n_clusters,) int64
            Cells of each cluster, at least 1.
        codes, labels : (n, n_words) uint64, (n,) int32
            Some cells, and the cluster of their bucket. Bits depend on each other, so the probabilities are softened
            until they agree best with these labels.
        """
        n_bits = set_bits.shape[1]
        share = (set_bits + 1.0) / (sizes[:, None] + 2.0)
        weight = np.log(share / (1 - share)) / 2
        offset = np.log(share * (1 - share)).sum(axis=1) / 2 + np.log(sizes)
        signs = 2.0 * unpack_bits(codes, n_bits) - 1.0
        factor = temperature(signs @ weight.T + offset, labels, log_range=_LOG_RANGE)
        return cls(_tables(factor * weight, factor * offset, codes.shape[1]))

    @classmethod
    def learned(cls, codes: NDArray[np.uint64], labels: NDArray[np.int32], n_bits: int) -> BitProfiles:
        """Profiles by logistic regression, for clusters that the cells got by more than their codes.

        Unlike counts it knows that bits depend on each other.

        Parameters
        ----------
        codes, labels : (n, n_words) uint64, (n,) int32
            Some cells and their clusters: 0 to n_clusters - 1, each used; two clusters at least.
        """
        n_clusters = int(labels.max()) + 1
        signs = 2.0 * unpack_bits(codes, n_bits).astype(np.float32) - 1.0
        weight, offset = _logistic_regression(signs, labels, n_clusters)
        return cls(_tables(weight, offset, codes.shape[1]))

    def scores(self, codes: NDArray[np.uint64], *, n_threads: int = 1) -> AnchorScores:
        """The three most probable clusters of each code, fewer where there are fewer; see `anchor_scores`."""
        return anchor_scores(codes, self.tables, n_threads=n_threads)

    def assign(
        self, codes: NDArray[np.uint64], *, n_threads: int = 1
    ) -> tuple[NDArray[np.int32], NDArray[np.float32], NDArray[np.int32]]:
        """The cluster of each code, how sure it is, and the next best one.

        Returns
        -------
        labels : (n,) int32
        confidence : (n,) float32
            Probability of the cluster over its sum with that of the second: 0.5 to 1.
        other : (n,) int32
        """
        found = self.scores(codes, n_threads=n_threads)
        first, second = found.probabilities[:, 0], found.probabilities[:, 1]
        return found.top[:, 0].copy(), first / (first + second), found.top[:, 1].copy()


def _tables(weight: NDArray[np.float64], offset: NDArray[np.float64], n_words: int) -> AnchorTables:
    """The kernel's tables of log-odds ``weight @ signs + offset``: (n_clusters, n_bits), (n_clusters,)."""
    # In whole numbers, whose sums do not depend on their order.
    unit = max(float(np.abs(weight).max()), 1e-9) / _MOST_INT16
    return AnchorTables.of(
        np.rint(weight / unit).astype(np.int16),
        np.rint(offset / unit).astype(np.int32),
        unit,
        np.zeros((len(weight), n_words), np.uint64),
        np.zeros((len(weight), 0), np.int16),
        np.zeros(0, np.int16),
    )


def _logistic_regression(
    signs: NDArray[np.float32], labels: NDArray[np.int32], n_clusters: int
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Weights (n_clusters, n_bits) and offsets (n_clusters,) of the multinomial model, with a ridge penalty.

    By scipy's optimiser, as scikit-learn does it: importing that would take longer than all else here.
    """
    from scipy.optimize import minimize
    from scipy.special import log_softmax

    n, n_bits = signs.shape
    rows = np.arange(n)

    def loss(parameters: NDArray[np.float64]) -> tuple[float, NDArray[np.float64]]:
        weight, offset = parameters[: n_bits * n_clusters].reshape(n_bits, n_clusters), parameters[-n_clusters:]
        log_share = log_softmax(signs @ weight.astype(np.float32) + offset.astype(np.float32), axis=1)
        excess = np.exp(log_share)
        excess[rows, labels] -= 1.0
        value = _RIDGE / 2 * (weight * weight).sum() - log_share[rows, labels].sum(dtype=np.float64)
        slope = (signs.T @ excess).astype(np.float64) + _RIDGE * weight
        return value / n, np.concatenate([slope.ravel(), excess.sum(axis=0, dtype=np.float64)]) / n

    start = np.zeros((n_bits + 1) * n_clusters)
    found = minimize(loss, start, jac=True, method="L-BFGS-B", options={"maxiter": _STEPS, "ftol": _GAIN})
    return found.x[: n_bits * n_clusters].reshape(n_bits, n_clusters).T, found.x[-n_clusters:]
