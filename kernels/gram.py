"""Products of sparse rows with a few dense columns: what principal components of a sample are found from."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from hashstream.kernels._arrays import csr_arrays, float_matrix, share_rows
from hashstream.kernels._jit import jit

_ROWS = 64  # rows whose products are kept at a time, in the second-level cache
_PARTS = 8  # sums that are added up at the end, whatever the number of threads


@jit
def _times(indptr, indices, data, first, stop, block, out):  # type: ignore[no-untyped-def]
    """``out[i]`` becomes row ``first + i`` times `block`."""
    width = block.shape[1]
    for row in range(first, stop):
        y = out[row - first]
        y[:] = 0.0
        for k in range(indptr[row], indptr[row + 1]):
            value, x = np.float64(data[k]), block[indices[k]]
            for j in range(width):
                y[j] += value * x[j]


@jit
def _gram_times(indptr, indices, data, first, stop, block, total):  # type: ignore[no-untyped-def]
    """Adds to `total` the transposed rows times their products with `block`."""
    width = block.shape[1]
    products = np.empty((_ROWS, width))
    for start in range(first, stop, _ROWS):
        end = min(start + _ROWS, stop)
        _times(indptr, indices, data, start, end, block, products)
        for row in range(start, end):
            y = products[row - start]
            for k in range(indptr[row], indptr[row + 1]):
                value, x = np.float64(data[k]), total[indices[k]]
                for j in range(width):
                    x[j] += value * y[j]


def _checked(indptr: Any, indices: Any, data: Any, block: Any) -> tuple[NDArray[Any], ...]:
    indptr, indices, data = csr_arrays(indptr, indices, data)
    block = float_matrix(block, "block", np.float64)
    if len(indices) and (int(indices.min()) < 0 or int(indices.max()) >= len(block)):
        raise ValueError(f"indices go from {indices.min()} to {indices.max()}, but block has {len(block)} rows")
    return indptr, indices, data, block


def rows_times(indptr: Any, indices: Any, data: Any, block: Any, *, n_threads: int = 1) -> NDArray[np.float64]:
    """The product of a CSR matrix and a dense one.

    Parameters
    ----------
    indptr, indices, data
        A CSR matrix (n_rows, n_columns) of numbers.
    block : (n_columns, width) float64
    n_threads : int
        The result does not depend on it.

    Returns
    -------
    (n_rows, width) float64

    Raises
    ------
    TypeError, ValueError
        Arrays of the wrong kind or shape, or a column that `block` does not have.
    """
    indptr, indices, data, block = _checked(indptr, indices, data, block)
    out = np.empty((len(indptr) - 1, block.shape[1]))

    def work(start: int, stop: int) -> None:
        _times(indptr, indices, data, start, stop, block, out[start:stop])

    share_rows(work, len(out), n_threads)
    return out


def gram_times(indptr: Any, indices: Any, data: Any, block: Any, *, n_threads: int = 1) -> NDArray[np.float64]:
    """The product of a CSR matrix's Gram matrix (its transpose times itself) and a dense matrix.

    The Gram matrix is never made: memory is eight times the result.

    Parameters
    ----------
    indptr, indices, data
        A CSR matrix (n_rows, n_columns) of numbers.
    block : (n_columns, width) float64
    n_threads : int
        The result does not depend on it.

    Returns
    -------
    (n_columns, width) float64

    Raises
    ------
    TypeError, ValueError
        Arrays of the wrong kind or shape, or a column that `block` does not have.
    """
    indptr, indices, data, block = _checked(indptr, indices, data, block)
    bounds = np.linspace(0, len(indptr) - 1, _PARTS + 1).astype(np.int64)
    totals = np.zeros((_PARTS, *block.shape))

    def work(start: int, stop: int) -> None:
        for part in range(start, stop):
            _gram_times(indptr, indices, data, bounds[part], bounds[part + 1], block, totals[part])

    share_rows(work, _PARTS, n_threads)
    return np.asarray(totals.sum(axis=0))
