"""Column indices in two bytes, where there are few enough columns."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from hashstream.kernels._jit import bare

MOST_COLUMNS = 65_535  # that two bytes tell from a number that is no column
_NONE = np.uint64(MOST_COLUMNS)


@bare
def _narrow(values, out):  # type: ignore[no-untyped-def]
    for i in range(len(values)):
        out[i] = min(np.uint64(values[i]), _NONE)


@bare
def _join(low, high, out):  # type: ignore[no-untyped-def]
    for i in range(len(out)):
        out[i] = np.uint16(low[i]) | (np.uint16(high[i]) << np.uint16(8))


def join_bytes(low: NDArray[np.uint8], high: NDArray[np.uint8], out: NDArray[np.uint16]) -> None:
    """Put numbers of two bytes together from their low and their high bytes.

    Parameters
    ----------
    low, high : (n,) uint8
    out : (n,) uint16

    Raises
    ------
    ValueError
        The lengths differ.
    """
    if not low.shape == high.shape == out.shape:
        raise ValueError(f"{low.shape} low and {high.shape} high bytes for {out.shape} places")
    _join(low, high, out)


def narrow_columns(values: NDArray[np.integer[Any]], out: NDArray[np.uint16]) -> None:
    """Copy column indices; whatever is negative or beyond 65,534 becomes 65,535, which is no column.

    Parameters
    ----------
    values : (n,) integer
        Of a matrix of at most `MOST_COLUMNS` columns.
    out : (n,) uint16

    Raises
    ------
    ValueError
        The lengths differ.
    """
    if values.shape != out.shape:
        raise ValueError(f"{values.shape} values for {out.shape} places")
    # Negative ones are the largest then.
    _narrow(values.view(np.dtype(f"u{values.dtype.itemsize}")), out)
