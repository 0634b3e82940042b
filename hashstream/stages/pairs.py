"""Counts of pairs of numbers, such as buckets and labels, of which few of all that there could be occur."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

_PENDING = 1 << 22  # pairs that wait to be added up


class Pairs(NamedTuple):
    """Pairs that occur, in ascending order, and how often.

    Attributes
    ----------
    first, second : (n,) int64
    counts : (n,) int64
        Above 0.
    """

    first: NDArray[np.int64]
    second: NDArray[np.int64]
    counts: NDArray[np.int64]


class PairCounter:
    """Adds pairs up as they come; memory grows with the pairs that occur.

    Parameters
    ----------
    n_second : int
        Second numbers are 0 to `n_second` - 1; first ones are not negative.
    """

    def __init__(self, n_second: int) -> None:
        self._n_second = n_second
        self._keys: list[NDArray[np.int64]] = []
        self._counts: list[NDArray[np.int64]] = []
        self._n_pending = 0

    def add(
        self,
        first: NDArray[np.integer],
        second: NDArray[np.integer],
        amounts: NDArray[np.integer | np.bool_] | None = None,
    ) -> None:
        """Count pairs (n,), each `amounts` times or once."""
        keys, place, times = np.unique(
            first.astype(np.int64) * self._n_second + second, return_inverse=True, return_counts=True
        )
        if amounts is not None:
            times = np.zeros(len(keys), np.int64)
            np.add.at(times, place, amounts.astype(np.int64))
        self._keys.append(keys)
        self._counts.append(times.astype(np.int64, copy=False))
        self._n_pending += len(keys)
        if self._n_pending > _PENDING:
            self._merge()
            self._n_pending = 0

    def _merge(self) -> None:
        keys, place = np.unique(np.concatenate([np.empty(0, np.int64), *self._keys]), return_inverse=True)
        counts = np.zeros(len(keys), np.int64)
        np.add.at(counts, place, np.concatenate([np.empty(0, np.int64), *self._counts]))
        self._keys, self._counts = [keys], [counts]

    def pairs(self) -> Pairs:
        self._merge()
        kept = self._counts[0] > 0
        first, second = np.divmod(self._keys[0][kept], self._n_second)
        return Pairs(first, second, self._counts[0][kept])
