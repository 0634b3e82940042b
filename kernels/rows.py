"""Rows of counts: what is wrong with them, and their log-normalised values of the chosen genes in a fixed order."""

from __future__ import annotations

from enum import IntEnum
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hashstream.kernels._arrays import csr_arrays
from hashstream.kernels._intrinsics import prefetch, trailing_zeros
from hashstream.kernels._jit import bare
from hashstream.kernels._log1p import log1p_

TABLE = 16  # counts below this are looked up in a table that is made once a cell
_LINE = 64  # bytes of a cache line
EXACT_TOTAL = 9007199254740992.0  # 2**53: up to here a sum of integers does not depend on its order


class RowFlag(IntEnum):
    """What is wrong with a row of counts: the first that holds of, in this order, INDEX_RANGE, INDEX_ORDER,
    NOT_FINITE, NEGATIVE, NOT_INTEGER, EMPTY. Rows from `NEGATIVE` on cannot be encoded."""

    OK = 0
    EMPTY = 1  # the counts sum to 0
    NEGATIVE = 2
    NOT_INTEGER = 3
    NOT_FINITE = 4  # NaN or infinity, or counts that sum to more than 2**53
    INDEX_RANGE = 5  # a column that is negative or not below the number of genes
    INDEX_ORDER = 6  # columns that do not strictly increase: unsorted or duplicated


@bare
def _odd_counts(values):  # type: ignore[no-untyped-def]
    """Whether any value is not an integer from 0 to 2**31."""
    odd = False
    for i in range(len(values)):
        value = values[i]
        odd |= (value < 0) | (value != np.floor(value)) | (value > 2147483648.0)
    return odd


@bare
def _sum_counts(data, start, stop):  # type: ignore[no-untyped-def]
    """Total of ``data[start:stop]``, and whether any is negative or not an integer."""
    values = data[start:stop]
    if not _odd_counts(values):
        # Integers sum in any order, thus in vector registers.
        whole = np.int64(0)
        for i in range(len(values)):
            whole += np.int64(values[i])
        return np.float64(whole), False, False
    total = 0.0
    negative = False
    fraction = False
    for i in range(len(values)):
        value = values[i]
        total += np.float64(value)
        negative |= value < 0
        fraction |= value != np.floor(value)
    return total, negative, fraction


@bare
def _sum_unsigned(data, start, stop):  # type: ignore[no-untyped-def]
    """Total of ``data[start:stop]``, unsigned integers, which cannot be negative or fractional."""
    values = data[start:stop]
    total = np.uint64(0)
    for i in range(len(values)):
        total += np.uint64(values[i])
    return np.float64(total)


@bare
def _rising(indices, start, stop):  # type: ignore[no-untyped-def]
    """Whether ``indices[start:stop]`` strictly increase."""
    left = indices[start : stop - 1]
    right = indices[start + 1 : stop]
    falls = False
    for i in range(len(left)):
        falls |= right[i] <= left[i]
    return not falls


@bare
def _in_range(indices, start, stop, n_genes):  # type: ignore[no-untyped-def]
    inside = True
    for i in range(start, stop):
        inside &= 0 <= indices[i] < n_genes
    return inside


@bare
def check_into(indptr, indices, data, unsigned, n_genes, totals, flags):  # type: ignore[no-untyped-def]
    """`totals` and `flags` of the rows; the total of a row that cannot be encoded is 0."""
    for row in range(len(totals)):
        start = indptr[row]
        stop = indptr[row + 1]
        totals[row] = 0.0
        flags[row] = RowFlag.EMPTY.value
        if start == stop:
            continue
        if not _rising(indices, start, stop):
            inside = _in_range(indices, start, stop, n_genes)
            flags[row] = RowFlag.INDEX_ORDER.value if inside else RowFlag.INDEX_RANGE.value
            continue
        # The first and the last bound all that lie between.
        if indices[start] < 0 or np.int64(indices[stop - 1]) >= n_genes:
            flags[row] = RowFlag.INDEX_RANGE.value
            continue
        if unsigned:
            total, negative, fraction = _sum_unsigned(data, start, stop), False, False
        else:
            total, negative, fraction = _sum_counts(data, start, stop)
        if not (abs(total) <= EXACT_TOTAL):
            flags[row] = RowFlag.NOT_FINITE.value
        elif negative:
            flags[row] = RowFlag.NEGATIVE.value
        elif fraction:
            flags[row] = RowFlag.NOT_INTEGER.value
        elif total > 0.0:
            flags[row] = RowFlag.OK.value
            totals[row] = total


def check_arrays(
    indptr: NDArray[Any], indices: NDArray[Any], data: NDArray[Any], n_genes: int
) -> tuple[NDArray[np.float64], NDArray[np.uint8]]:
    """Totals and flags of rows whose arrays `csr_arrays` has seen."""
    n_rows = len(indptr) - 1
    totals, flags = np.empty(n_rows, np.float64), np.empty(n_rows, np.uint8)
    check_into(indptr, indices, data, data.dtype.kind == "u", n_genes, totals, flags)
    return totals, flags


def check_rows(indptr: Any, indices: Any, data: Any, n_genes: int) -> NDArray[np.uint8]:
    """What is wrong with each row of a CSR matrix of counts.

    Parameters
    ----------
    indptr : (n + 1,) integer
        Row pointers from 0 to the number of stored values.
    indices : (nnz,) integer
        Columns.
    data : (nnz,) integer or float
        Counts.
    n_genes : int
        Number of columns.

    Returns
    -------
    (n,) uint8
        `RowFlag` of each row.

    Raises
    ------
    TypeError, ValueError
        The arrays are not the three of a CSR matrix.
    """
    return row_totals(indptr, indices, data, n_genes)[1]


def row_totals(indptr: Any, indices: Any, data: Any, n_genes: int) -> tuple[NDArray[np.float64], NDArray[np.uint8]]:
    """What the counts of each row sum to, and what is wrong with it; takes and raises what `check_rows` does.

    Returns
    -------
    totals : (n,) float64
        0 for a row that cannot be encoded.
    flags : (n,) uint8
        `RowFlag` of each row.
    """
    return check_arrays(*csr_arrays(indptr, indices, data), n_genes)


@bare
def _fill_table(scale, table):  # type: ignore[no-untyped-def]
    """``table[count] = log1p(count * scale)``; exactly 0 for count 0."""
    for count in range(TABLE):
        table[count] = np.float32(log1p_(np.float64(count) * scale))


@bare
def _compact(indices, used, at):  # type: ignore[no-untyped-def]
    """Positions of the entries whose column is used; `at` needs a place more. Gives their number.

    Without branches: every position is written, and the next overwrites it unless the place moves on. A bit a column
    stays in the first-level cache, where a byte would not.
    """
    m = np.uint64(0)
    for k in range(len(indices)):
        at[m] = k
        column = np.uint64(indices[k])
        m += (used[column >> np.uint64(6)] >> (column & np.uint64(63))) & np.uint64(1)
    return m


@bare
def _look_up(indices, data, at, n, gene_map, cap, table, genes, values):  # type: ignore[no-untyped-def]
    """Genes and values of the entries `at`, as if no count were above the table, and the least and the largest count.

    Without branches: in most rows that is all there is to do.
    """
    least, most = TABLE, 0
    for i in range(n):
        k = np.uint64(at[i])
        count = int(data[k])
        gene = gene_map[np.uint64(indices[k])]
        genes[i] = gene
        values[i] = min(table[np.uint64(min(count, TABLE - 1))], cap[np.uint64(gene)])
        least, most = min(least, count), max(most, count)
    return least, most


@bare
def _set_large(data, at, n, cap, scale, genes, values):  # type: ignore[no-untyped-def]
    """The values of counts that are not in the table."""
    for i in range(n):
        count = data[at[i]]
        if count >= TABLE:
            values[i] = min(np.float32(log1p_(np.float64(count) * scale)), cap[genes[i]])


@bare
def _drop_zeros(data, at, n, genes, values):  # type: ignore[no-untyped-def]
    """Closes the gaps of entries with a count of 0, and gives the number of the others."""
    m = 0
    for i in range(n):
        if data[at[i]] > 0:
            genes[m], values[m] = genes[i], values[i]
            m += 1
    return m


@bare
def _sort_row(genes, values, dense, present):  # type: ignore[no-untyped-def]
    """Puts the entries of a row in ascending order of their genes, by way of a row of all genes."""
    for k in range(len(genes)):
        gene = np.uint64(genes[k])
        dense[gene] = values[k]
        present[gene >> np.uint64(6)] |= np.uint64(1) << (gene & np.uint64(63))
    at = np.uint64(0)
    for word in range(len(present)):
        bits = present[word]
        present[word] = np.uint64(0)
        while bits != np.uint64(0):
            found = np.uint64(word * 64 + trailing_zeros(bits))
            bits &= bits - np.uint64(1)
            genes[at] = found
            values[at] = dense[found]
            at += np.uint64(1)


@bare
def longest_row(indptr):  # type: ignore[no-untyped-def]
    longest = np.int64(0)
    for row in range(len(indptr) - 1):
        longest = max(longest, indptr[row + 1] - indptr[row])
    return longest


@bare
def select_rows(  # type: ignore[no-untyped-def]
    indptr, indices, data, ahead, totals, flags, gene_map, used, cap, rising, target_sum, table, dense, present, at,
    genes, values, starts,
):  # fmt: skip
    """Log-normalised values of the chosen genes, row after row.

    Row r gets ``values[starts[r]:starts[r + 1]]`` of the hasher's `genes`, in ascending order of the gene. Bit ``c %
    64`` of ``used[c // 64]`` says whether column c is mapped. `table` (`TABLE`,), `dense` (n_genes,), `present`
    (n_genes bits, all 0) and `at` are for in between; `at` needs a place more than the longest row, `genes` and
    `values` one more than all selected values. Stored zeros are dropped, as if they were not stored. Meanwhile what is
    stored `ahead` of the rows is brought nearer.
    """
    first = np.int64(0)
    starts[0] = 0
    for row in range(len(totals)):
        for k in range(indptr[row] + ahead, indptr[row + 1] + ahead, _LINE // indices.itemsize):
            prefetch(indices, k)
        for k in range(indptr[row] + ahead, indptr[row + 1] + ahead, _LINE // data.itemsize):
            prefetch(data, k)
        if flags[row] == 0:
            scale = target_sum / totals[row]
            _fill_table(scale, table)
            columns = indices[indptr[row] : indptr[row + 1]]
            counts = data[indptr[row] : indptr[row + 1]]
            m = np.int64(_compact(columns, used, at))
            row_genes, row_values = genes[first:], values[first:]
            least, most = _look_up(columns, counts, at, m, gene_map, cap, table, row_genes, row_values)
            if most >= TABLE:
                _set_large(counts, at, m, cap, scale, row_genes, row_values)
            if least == 0:
                m = _drop_zeros(counts, at, m, row_genes, row_values)
            if not rising:
                _sort_row(row_genes[:m], row_values[:m], dense, present)
            first += m
        starts[row + 1] = first
