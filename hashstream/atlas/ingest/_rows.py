"""Compiled steps from what a source holds to rows as the atlas wants them: checked, mapped, sorted."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from hashstream.atlas.chunk import CsrChunk
from hashstream.kernels._jit import jit

OK, NEGATIVE, FRACTION, NOT_FINITE, DUPLICATE, NO_SUCH_GENE, TOO_LARGE = range(7)

FAULTS = {
    NEGATIVE: "a negative value",
    FRACTION: "a value that is not a whole number",
    NOT_FINITE: "NaN or infinity",
    DUPLICATE: "two values for one gene",
    NO_SUCH_GENE: "a gene index outside the matrix",
    TOO_LARGE: "a value above 4,294,967,295",
}


@jit
def value_fault(value: Any) -> int:
    """Why `value` is no count; 0 if it is one."""
    number = np.float64(value)
    if not np.isfinite(number):
        return NOT_FINITE
    if number < 0.0:
        return NEGATIVE
    if number != np.floor(number):
        return FRACTION
    if number > 4294967295.0:
        return TOO_LARGE
    return OK


@jit
def first_fault(values: NDArray[Any]) -> int:
    """The first fault among `values`, (n,); 0 if all are counts."""
    for value in values:
        fault = value_fault(value)
        if fault != OK:
            return fault
    return OK


@jit
def clean_rows(
    indptr: NDArray[np.int64],
    indices: NDArray[Any],
    data: NDArray[Any],
    gene_map: NDArray[np.int32],
    out_indptr: NDArray[np.int64],
    out_indices: NDArray[np.int32],
    out_data: NDArray[np.uint32],
) -> tuple[int, int]:
    """Check, map to the atlas's genes and sort each row; stored zeros are dropped.

    Parameters
    ----------
    indptr : (n_rows + 1,) int64
    indices, data : (nnz,)
    gene_map : (n_source_genes,) int32
        Column in the atlas of each gene of the source; -1 leaves it out.
    out_indptr : (n_rows + 1,) int64, output
    out_indices, out_data : (nnz,) int32 and uint32, output

    Returns
    -------
    fault, row : int
        A fault (0: none) and the row of the block where it is.
    """
    at = 0
    out_indptr[0] = 0
    for row in range(len(indptr) - 1):
        first = at
        rising = True
        for j in range(indptr[row], indptr[row + 1]):
            value = data[j]
            fault = value_fault(value)
            if fault != OK:
                return fault, row
            source = np.int64(indices[j])
            if source < 0 or source >= len(gene_map):
                return NO_SUCH_GENE, row
            gene = gene_map[source]
            if gene < 0 or value == 0:
                continue
            if at > first and gene <= out_indices[at - 1]:
                rising = False
            out_indices[at] = gene
            out_data[at] = np.uint32(value)
            at += 1
        if not rising:
            order = np.argsort(out_indices[first:at])
            genes = out_indices[first:at][order]
            values = out_data[first:at][order]
            for j in range(at - first):
                if j > 0 and genes[j] == genes[j - 1]:
                    return DUPLICATE, row
                out_indices[first + j] = genes[j]
                out_data[first + j] = values[j]
        out_indptr[row + 1] = at
    return OK, -1


@jit
def _count_by_row(rows: NDArray[Any], first_row: int, indptr: NDArray[np.int64]) -> None:
    for row in rows:
        indptr[np.int64(row) - first_row + 1] += 1
    for i in range(1, len(indptr)):
        indptr[i] += indptr[i - 1]


@jit
def _place_by_row(
    rows: NDArray[Any],
    columns: NDArray[Any],
    values: NDArray[Any],
    first_row: int,
    cursor: NDArray[np.int64],
    indices: NDArray[Any],
    data: NDArray[Any],
) -> None:
    for j in range(len(rows)):
        row = np.int64(rows[j]) - first_row
        indices[cursor[row]] = columns[j]
        data[cursor[row]] = values[j]
        cursor[row] += 1


def rows_from_triplets(
    rows: NDArray[Any], columns: NDArray[Any], values: NDArray[Any], first_row: int, n_rows: int, n_genes: int
) -> CsrChunk:
    """Rows `first_row` to ``first_row + n_rows`` from (row, column, value) in any order; stable within a row."""
    indptr = np.zeros(n_rows + 1, np.int64)
    _count_by_row(rows, first_row, indptr)
    indices, data = np.empty(len(rows), columns.dtype), np.empty(len(rows), values.dtype)
    _place_by_row(rows, columns, values, first_row, indptr[:-1].copy(), indices, data)
    return CsrChunk(first_row, indptr, indices, data, n_genes)


@jit
def _count_dense(slab: NDArray[Any], cells_first: bool, indptr: NDArray[np.int64]) -> None:
    for i in range(slab.shape[0]):
        for j in range(slab.shape[1]):
            if slab[i, j] != 0:
                indptr[(i if cells_first else j) + 1] += 1
    for i in range(1, len(indptr)):
        indptr[i] += indptr[i - 1]


@jit
def _fill_dense(
    slab: NDArray[Any],
    cells_first: bool,
    cursor: NDArray[np.int64],
    indices: NDArray[np.int32],
    data: NDArray[Any],
) -> None:
    for i in range(slab.shape[0]):
        for j in range(slab.shape[1]):
            if slab[i, j] != 0:
                cell, gene = (i, j) if cells_first else (j, i)
                indices[cursor[cell]] = gene
                data[cursor[cell]] = slab[i, j]
                cursor[cell] += 1


def rows_from_dense(slab: NDArray[Any], first_row: int, *, cells_first: bool) -> CsrChunk:
    """The non-zeros (and NaN) of a dense slab of (cells, genes), or of (genes, cells), as rows."""
    n_rows, n_genes = slab.shape if cells_first else slab.shape[::-1]
    indptr = np.zeros(n_rows + 1, np.int64)
    _count_dense(slab, cells_first, indptr)
    nnz = int(indptr[-1])
    indices, data = np.empty(nnz, np.int32), np.empty(nnz, slab.dtype)
    _fill_dense(slab, cells_first, indptr[:-1].copy(), indices, data)
    return CsrChunk(first_row, indptr, indices, data, n_genes)
