"""Sums over the cells of groups, for every gene, chunk by chunk: what tests of groups against each other need."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hashstream.kernels._arrays import csr_arrays
from hashstream.kernels._intrinsics import prefetch
from hashstream.kernels._jit import bare
from hashstream.kernels._log1p import log1p_
from hashstream.kernels.rows import TABLE, RowFlag, check_arrays

GROUP_SUM_SCALE = 1 << 24  # sums are integers in units of 2**-24: exact, and room for a thousand million cells
_AHEAD = 48  # values between asking for the sums of a gene and changing them


@dataclass(frozen=True, eq=False)
class GroupSums:
    """Sums over the cells of each group, exact, so that they do not depend on the order of the cells.

    Attributes
    ----------
    n_cells : (n_groups,) int64
        Cells of each group, empty ones included.
    sums : (n_groups, n_genes, 3) int64
        Of the log-normalised values and of their squares, in units of 2**-24, and the cells with a count above 0.
    """

    n_cells: NDArray[np.int64]
    sums: NDArray[np.int64]

    @classmethod
    def zeros(cls, n_groups: int, n_genes: int) -> GroupSums:
        """The sums of no cells."""
        return cls(np.zeros(n_groups, np.int64), np.zeros((n_groups, n_genes, 3), np.int64))

    def add(self, other: GroupSums) -> None:
        """Adds the sums of other cells, in place."""
        np.add(self.n_cells, other.n_cells, out=self.n_cells)
        np.add(self.sums, other.sums, out=self.sums)


@bare
def _add_groups(  # type: ignore[no-untyped-def]
    indptr, indices, data, totals, flags, groups, order, gene_map, target_sum, first_bad, table, n_cells, n_genes, sums
):
    """Adds rows in some order to the sums of their groups (flat); `table` (TABLE, 2) is for in between."""
    for i in range(len(order)):
        row = order[i]
        group = groups[row]
        if group < 0 or flags[row] >= first_bad:
            continue
        n_cells[group] += 1
        if flags[row] != 0:
            continue
        scale = target_sum / totals[row]
        for count in range(1, TABLE):
            y = log1p_(np.float64(count) * scale)
            table[count, 0] = np.int64(np.rint(y * GROUP_SUM_SCALE))
            table[count, 1] = np.int64(np.rint(y * y * GROUP_SUM_SCALE))
        first, stop = np.int64(group) * n_genes, indptr[row + 1]
        for k in range(indptr[row], stop):
            if k + _AHEAD < stop:
                prefetch(sums, 3 * (first + gene_map[np.uint64(indices[k + _AHEAD])]))
            gene = gene_map[np.uint64(indices[k])]
            if gene < 0:
                continue
            at = np.uint64(3 * (first + gene))
            if data[k] < TABLE:
                small = np.uint64(data[k])
                sums[at] += table[small, 0]
                sums[at + np.uint64(1)] += table[small, 1]
                sums[at + np.uint64(2)] += np.int64(small > 0)
            else:
                y = log1p_(np.float64(data[k]) * scale)
                sums[at] += np.int64(np.rint(y * GROUP_SUM_SCALE))
                sums[at + np.uint64(1)] += np.int64(np.rint(y * y * GROUP_SUM_SCALE))
                sums[at + np.uint64(2)] += 1


def group_sums(
    indptr: Any, indices: Any, data: Any, groups: Any, gene_map: Any, out: GroupSums, *, target_sum: float
) -> NDArray[np.uint8]:
    """Adds the rows of a CSR matrix of counts to the sums of their groups, in place.

    The log-normalised value is ``log1p(count * (target_sum / total))`` in float64, the total taken over all genes. It
    and its square are rounded to a multiple of 2**-24 each before they are added.

    Parameters
    ----------
    indptr : (n + 1,) integer
    indices : (nnz,) integer
    data : (nnz,) integer or float
    groups : (n,) int32
        Group of each row; rows below 0 are left out.
    gene_map : (n_file_genes,) int32
        Gene of the sums that each column is, or -1.
    out : GroupSums
    target_sum : float

    Returns
    -------
    (n,) uint8
        `RowFlag` of each row. Rows with bad counts are not added.

    Raises
    ------
    TypeError, ValueError
        The arrays are not the three of a CSR matrix, groups are not as many as rows, a group or gene is not among those
        of the sums, or the target sum is not positive.
    """
    indptr, indices, data = csr_arrays(indptr, indices, data)
    groups, gene_map = np.asarray(groups), np.asarray(gene_map)
    n_groups, n_genes, _ = out.sums.shape
    for name, values, limit in (("groups", groups, n_groups), ("gene_map", gene_map, n_genes)):
        if values.dtype != np.int32 or values.ndim != 1:
            raise TypeError(f"{name} has dtype {values.dtype} and shape {values.shape}, expected (n,) int32")
        if len(values) and int(values.max()) >= limit:
            raise ValueError(f"{name} holds {int(values.max())}, expected numbers below {limit}")
    if len(groups) != len(indptr) - 1:
        raise ValueError(f"{len(groups)} groups for {len(indptr) - 1} rows, expected as many")
    if not (0.0 < target_sum < np.inf):
        raise ValueError(f"target_sum is {target_sum}, expected a positive number")
    totals, flags = check_arrays(indptr, indices, data, len(gene_map))
    # Group after group, whose sums of all genes stay in the cache meanwhile.
    order = np.argsort(groups, kind="stable")
    table = np.zeros((TABLE, 2), np.int64)
    _add_groups(
        indptr, indices, data, totals, flags, groups, order, gene_map, float(target_sum), RowFlag.NEGATIVE.value, table,
        out.n_cells, n_genes, out.sums.reshape(-1),
    )  # fmt: skip
    return flags
