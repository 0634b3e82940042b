"""How little a code looks like any type of a labelled reference.

Votes of the nearest reference cells do not tell a type that the reference lacks: its cells have nearest cells as well,
mostly of one type. How often the cells of each type set each bit of their codes does: a code fits the type best that
makes it most likely (independent bits, a class each), and is novel where even that type makes it less likely than it
makes its own cells. These are judged without what they add to their type themselves.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from hashstream.kernels import unpack_bits
from hashstream.kernels.anchors import best_classes

#: A type's own deviation counts as much as the middle one of all types when it has so many cells.
_PRIOR_CELLS = 10.0
_LEAST_DEVIATION = 1e-3
_BLOCK_CODES = 1 << 14


@dataclass(frozen=True)
class TypeFit:
    """What codes are compared with.

    Attributes
    ----------
    weights, offset : (n_types, n_bits) int16, (n_types,) int32
        Log-likelihood of a code, bits being +-1, as ``unit * (weights @ bits + offset)``.
    unit : float
    mean, deviation : (n_types,) float64
        Of the negative log-likelihood of a type's own cells.
    middle : float
        Median novelty of the reference's own cells.
    threshold : float
        Novelty above which a cell is novel.
    """

    weights: NDArray[np.int16]
    offset: NDArray[np.int32]
    unit: float
    mean: NDArray[np.float64]
    deviation: NDArray[np.float64]
    middle: float
    threshold: float

    @classmethod
    def of(
        cls,
        set_bits: NDArray[np.int64],
        sizes: NDArray[np.int64],
        codes: NDArray[np.uint64],
        labels: NDArray[np.int32],
        *,
        novel_rate: float,
    ) -> TypeFit:
        """From counts over all labelled cells of a reference, and some of these cells.

        Parameters
        ----------
        set_bits : (n_types, n_bits) int64
            Cells of each type that have the bit set.
        sizes : (n_types,) int64
            Cells of each type, at least 1.
        codes, labels : (n, n_words) uint64, (n,) int32
            Some of the cells, one at least.
        novel_rate
            Share of these cells that may count as novel.
        """
        n_types, n_bits = set_bits.shape
        weights, offset, unit = _in_units(*_log_likelihood((set_bits + 1.0) / (sizes[:, None] + 2.0)))
        # Without the cell itself, a set bit of its type has this share and an unset one that share from below.
        with_bit = np.maximum(set_bits, 1) / (sizes[:, None] + 1.0)
        without = np.maximum(sizes[:, None] - set_bits, 1) / (sizes[:, None] + 1.0)
        own, best, others = np.empty(len(codes)), labels.copy(), np.empty(len(codes))
        for start in range(0, len(codes), _BLOCK_CODES):
            part = slice(start, start + _BLOCK_CODES)
            bits = unpack_bits(codes[part], n_bits)
            own[part] = np.where(bits, np.log(with_bit)[labels[part]], np.log(without)[labels[part]]).sum(axis=1)
            sums = (2.0 * bits - 1.0) @ weights.T + offset
            sums[np.arange(len(bits)), labels[part]] = -np.inf
            best[part], others[part] = sums.argmax(axis=1), unit * sums.max(axis=1)
        best = np.where(own >= others, labels, best).astype(np.int32)
        mean, deviation = _moments(-own, labels, n_types)
        novelty = (np.minimum(-own, -others) - mean[best]) / deviation[best]
        threshold = float(np.quantile(novelty, 1 - novel_rate))
        return cls(weights, offset, unit, mean, deviation, float(np.median(novelty)), threshold)

    def novelty(self, codes: NDArray[np.uint64], *, n_threads: int = 1) -> NDArray[np.float32]:
        """How much less each code looks like the type that it fits best than that type's own cells do: (n,) float32.

        In standard deviations of theirs.
        """
        best, units = best_classes(codes, self.weights, self.offset, n_threads=n_threads)
        novelty = (-self.unit * units - self.mean[best]) / self.deviation[best]
        return novelty.astype(np.float32)

    def shift(self, codes: NDArray[np.uint64]) -> float:
        """How much less than the reference's cells some cells of another atlas look like any type as a whole.

        Where batches differ, all cells fit less well. The median of the cells tells by how much, as long as most of
        them are of types that the reference has.
        """
        return max(float(np.median(self.novelty(codes))) - self.middle, 0.0) if len(codes) else 0.0


def _log_likelihood(share: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Weights (n_types, n_bits) of bits as +-1, and offsets (n_types,), from the share of cells that have each set."""
    return np.log(share / (1 - share)) / 2, np.log(share * (1 - share)).sum(axis=1) / 2


def _in_units(
    weights: NDArray[np.float64], offset: NDArray[np.float64]
) -> tuple[NDArray[np.int16], NDArray[np.int32], float]:
    """Whole numbers, whose sums do not depend on their order, and what one of them is."""
    unit = max(float(np.abs(weights).max()), 1e-9) / np.iinfo(np.int16).max
    return np.rint(weights / unit).astype(np.int16), np.rint(offset / unit).astype(np.int32), unit


def _moments(
    values: NDArray[np.float64], labels: NDArray[np.int32], n_types: int
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Mean and standard deviation of each type, drawn to those of all where it has few cells."""
    n = np.bincount(labels, minlength=n_types)
    mean = np.bincount(labels, weights=values, minlength=n_types) / np.maximum(n, 1)
    squares = np.bincount(labels, weights=np.square(values - mean[labels]), minlength=n_types)
    seen = n > 0
    middle = float(np.median(squares[seen] / n[seen]))
    mean[~seen] = np.median(values)
    variance = (squares + _PRIOR_CELLS * middle) / (n + _PRIOR_CELLS)
    return mean, np.maximum(np.sqrt(variance), _LEAST_DEVIATION)
