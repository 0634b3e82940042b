"""Sums over cells from which means and variances of genes follow, chunk by chunk."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hashstream.kernels._arrays import csr_arrays
from hashstream.kernels._jit import jit
from hashstream.kernels._log1p import log1p_
from hashstream.kernels.rows import TABLE, RowFlag, check_arrays


@dataclass(frozen=True, eq=False)
class GeneMoments:
    """Sums over cells, for each gene; those of two sets of cells add up with ``+``.

    Attributes
    ----------
    n_cells : int
        Cells that were counted, empty ones included, those with bad counts not.
    sum, sum_sq : (n_genes,) float64
        Of the log-normalised values and of their squares.
    nnz : (n_genes,) int64
        Cells with a count above 0.
    raw_sum, raw_sum_sq : (n_genes,) float64
        Of the counts and of their squares.
    """

    n_cells: int
    sum: NDArray[np.float64]
    sum_sq: NDArray[np.float64]
    nnz: NDArray[np.int64]
    raw_sum: NDArray[np.float64]
    raw_sum_sq: NDArray[np.float64]

    @classmethod
    def zeros(cls, n_genes: int) -> GeneMoments:
        """The moments of no cells."""
        return cls(
            0,
            np.zeros(n_genes),
            np.zeros(n_genes),
            np.zeros(n_genes, np.int64),
            np.zeros(n_genes),
            np.zeros(n_genes),
        )

    def __add__(self, other: GeneMoments) -> GeneMoments:
        if not isinstance(other, GeneMoments):
            return NotImplemented
        if len(self.sum) != len(other.sum):
            raise ValueError(f"moments of {len(self.sum)} and of {len(other.sum)} genes, expected as many")
        return GeneMoments(
            self.n_cells + other.n_cells,
            self.sum + other.sum,
            self.sum_sq + other.sum_sq,
            self.nnz + other.nnz,
            self.raw_sum + other.raw_sum,
            self.raw_sum_sq + other.raw_sum_sq,
        )


@jit
def _add_moments(indptr, indices, data, totals, flags, target_sum, sums, nnz):  # type: ignore[no-untyped-def]
    """Adds each row to `sums` (n_genes, 4): log-normalised, its square, count, its square; and to `nnz`."""
    table = np.zeros(TABLE, np.float64)
    for row in range(len(totals)):
        if flags[row] != 0:
            continue
        scale = target_sum / totals[row]
        for i in range(1, TABLE):
            table[i] = log1p_(np.float64(i) * scale)
        for k in range(indptr[row], indptr[row + 1]):
            count = np.float64(data[k])
            gene = indices[k]
            if count < TABLE:
                y = table[np.int64(count)]
            else:
                y = log1p_(count * scale)
            sums[gene, 0] += y
            sums[gene, 1] += y * y
            sums[gene, 2] += count
            sums[gene, 3] += count * count
            nnz[gene] += np.int64(count > 0.0)


def gene_moments(indptr: Any, indices: Any, data: Any, n_genes: int, *, target_sum: float) -> GeneMoments:
    """Moments of every gene over the rows of a CSR matrix of counts, row after row.

    The log-normalised value is ``log1p(count * (target_sum / total))`` in float64, with no upper limit.

    Parameters
    ----------
    indptr : (n + 1,) integer
    indices : (nnz,) integer
    data : (nnz,) integer or float
    n_genes : int
    target_sum : float

    Returns
    -------
    GeneMoments
        Rows with bad counts (see `check_rows`) are left out.

    Raises
    ------
    TypeError, ValueError
        The arrays are not the three of a CSR matrix, or the target sum is not positive.
    """
    indptr, indices, data = csr_arrays(indptr, indices, data)
    if not (0.0 < target_sum < np.inf):
        raise ValueError(f"target_sum is {target_sum}, expected a positive number")
    totals, flags = check_arrays(indptr, indices, data, n_genes)
    sums, nnz = np.zeros((n_genes, 4)), np.zeros(n_genes, np.int64)
    _add_moments(indptr, indices, data, totals, flags, float(target_sum), sums, nnz)
    n_cells = int(np.count_nonzero(flags < RowFlag.NEGATIVE))
    return GeneMoments(n_cells, sums[:, 0].copy(), sums[:, 1].copy(), nnz, sums[:, 2].copy(), sums[:, 3].copy())
