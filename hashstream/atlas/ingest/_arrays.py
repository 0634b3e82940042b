"""Matrices in arrays that can be sliced (HDF5 or zarr): CSR, CSC and dense."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hashstream.atlas._dense import chunk_bytes
from hashstream.atlas._slices import SlicedArray
from hashstream.atlas.chunk import CsrChunk
from hashstream.atlas.ingest._rows import rows_from_dense
from hashstream.atlas.ingest._source import Budget, native, reading
from hashstream.atlas.ingest._spill import RowBuckets
from hashstream.atlas.layout import check_sparse_arrays
from hashstream.atlas.missing import check_chunks, check_dense_chunks, check_pointer_chunks
from hashstream.errors import BudgetError, InputError
from hashstream.runtime.budget import MIB

PEEK = 100_000
POINTER_WINDOW = 2**20
MAX_BLOCK_VALUES = 2**22


def _check_sparse(where: str, n_major: int, n_minor: int, indptr: Any, indices: Any, data: Any) -> int:
    """Number of values, after checking that the three arrays fit together; they lie by `n_major` rows or columns."""
    check_sparse_arrays(where, data=data, indices=indices, indptr=indptr)
    with reading(where):
        n_pointers = int(indptr.shape[0])
        last = int(indptr[-1]) if n_pointers else -1
        first = int(indptr[0]) if n_pointers else -1
    nnz = int(data.shape[0])
    if n_pointers != n_major + 1 or first != 0 or last != nnz or int(indices.shape[0]) != nnz:
        raise InputError(
            f"{where}: {n_pointers:,} row pointers up to {last:,}, {indices.shape[0]:,} indices and {nnz:,} values; "
            f"expected {n_major + 1:,} pointers and as many indices and values as the last says; the file is damaged "
            "or cut off"
        )
    for name, array in (("indices", indices), ("data", data)):
        check_chunks(f"{where}/{name}", array)
    with reading(f"{where}/indptr"):
        check_pointer_chunks(f"{where}/indptr", indptr, indices, n_minor)
    return nnz


class CsrMatrix:
    """Rows of a CSR matrix, `values_per_block` non-zeros at a time."""

    def __init__(self, where: str, shape: tuple[int, int], indptr: Any, indices: Any, data: Any) -> None:
        self.where = where
        self.shape = self._n_rows, self._n_genes = shape
        self._indptr, self._indices, self._data = indptr, indices, data
        self._nnz = _check_sparse(where, self._n_rows, self._n_genes, indptr, indices, data)

    def peek(self) -> NDArray[Any]:
        with reading(f"{self.where}/data"):
            return native(self.where, self._data[:PEEK])

    def rows(self, start: int, budget: Budget) -> Iterator[CsrChunk]:
        per_value = self._indices.dtype.itemsize + self._data.dtype.itemsize
        most = max(1, min(MAX_BLOCK_VALUES, budget.block_bytes // per_value))
        sliced = SlicedArray(self._indices), SlicedArray(self._data)
        row = start
        while row < self._n_rows:
            with reading(f"{self.where}/indptr, rows {row:,} on"):
                pointers = np.asarray(self._indptr[row : row + POINTER_WINDOW + 1]).astype(np.int64)
            if np.any(np.diff(pointers) < 0) or pointers[0] < 0 or pointers[-1] > self._nnz:
                raise InputError(
                    f"{self.where}/indptr, rows {row:,} to {row + len(pointers) - 1:,}: row pointers that fall or lie "
                    "outside the data; the file is damaged"
                )
            at = 0
            while at < len(pointers) - 1:
                end = int(np.searchsorted(pointers, pointers[at] + most, side="right")) - 1
                end = min(max(end, at + 1), len(pointers) - 1)
                a, b = int(pointers[at]), int(pointers[end])
                with reading(f"{self.where}, rows {row + at:,} to {row + end:,}"):
                    indices, data = native(self.where, sliced[0].read(a, b)), native(self.where, sliced[1].read(a, b))
                yield CsrChunk(row + at, pointers[at : end + 1] - a, indices, data, self._n_genes)
                at = end
            row += len(pointers) - 1


class CscMatrix:
    """Rows of a CSC matrix, by external transposition."""

    def __init__(self, where: str, shape: tuple[int, int], indptr: Any, indices: Any, data: Any) -> None:
        self.where = where
        self.shape = self._n_rows, self._n_genes = shape
        self._indptr, self._indices, self._data = indptr, indices, data
        self._nnz = _check_sparse(where, self._n_genes, self._n_rows, indptr, indices, data)

    def peek(self) -> NDArray[Any]:
        with reading(f"{self.where}/data"):
            return native(self.where, self._data[:PEEK])

    def rows(self, start: int, budget: Budget) -> Iterator[CsrChunk]:
        with reading(f"{self.where}/indptr"):
            pointers = np.asarray(self._indptr[:]).astype(np.int64)
        if np.any(np.diff(pointers) < 0):
            raise InputError(f"{self.where}/indptr: column pointers that fall; the file is damaged")
        dtype = native(self.where, np.empty(0, self._data.dtype)).dtype
        buckets = RowBuckets(budget.folder, self._n_rows, self._n_genes, self._nnz, dtype, budget.block_bytes)
        # Sorting a slab holds about six arrays of its length.
        step = max(1, min(MAX_BLOCK_VALUES, budget.block_bytes // 24))
        sliced = SlicedArray(self._indices), SlicedArray(self._data)
        for a in range(0, self._nnz, step):
            b = min(self._nnz, a + step)
            with reading(f"{self.where}, values {a:,} to {b:,}"):
                rows, values = native(self.where, sliced[0].read(a, b)), native(self.where, sliced[1].read(a, b))
            if len(rows) and (int(rows.min()) < 0 or int(rows.max()) >= self._n_rows):
                raise InputError(
                    f"{self.where}/indices, values {a:,} to {b:,}: rows up to {int(rows.max()):,}, expected fewer than "
                    f"{self._n_rows:,}; the file is damaged"
                )
            first = int(np.searchsorted(pointers, a, side="right")) - 1
            last = int(np.searchsorted(pointers, b, side="left"))
            bounds = np.clip(pointers[first : last + 1], a, b)
            lengths = bounds[1:] - bounds[:-1]
            buckets.add(rows, np.repeat(np.arange(first, last, dtype=np.int32), lengths), values)
        yield from buckets.chunks(start)
        buckets.remove()


class DenseMatrix:
    """Rows of a dense array of (cells, genes), or of (genes, cells).

    Slabs of cells are read where a slab of whole storage chunks fits in memory; else tiles are read and their non-zeros
    go through the spill.
    """

    def __init__(self, where: str, array: Any, *, cells_first: bool = True) -> None:
        self.where = where
        self._array = array
        self._cells_first = cells_first
        self.shape = array.shape if cells_first else array.shape[::-1]
        self._n_rows, self._n_genes = self.shape
        check_dense_chunks(where, array)

    def peek(self) -> NDArray[Any]:
        n = max(1, PEEK // max(1, self._n_genes))
        with reading(self.where):
            return self._slab(0, min(n, self._n_rows)).ravel()

    def _slab(self, a: int, b: int) -> NDArray[Any]:
        with reading(f"{self.where}, cells {a:,} to {b:,}"):
            return native(self.where, self._array[a:b] if self._cells_first else self._array[:, a:b])

    def _chunks(self) -> tuple[int, int]:
        """Cells and genes of a storage chunk; (1, 1) if it is stored in one piece."""
        shape = getattr(self._array, "shards", None) or getattr(self._array, "chunks", None) or (1, 1)
        return (shape[0], shape[1]) if self._cells_first else (shape[1], shape[0])

    def rows(self, start: int, budget: Budget) -> Iterator[CsrChunk]:
        itemsize = self._array.dtype.itemsize
        chunk_cells, chunk_genes = self._chunks()
        # A chunk is decoded beside two of the eight blocks that there is room for.
        of_chunk = chunk_bytes(self._array)
        missing = -(-4 * of_chunk // 3) - budget.room_bytes
        if missing > 0:
            raise BudgetError(
                f"{self.where}: it is stored in chunks each of which takes {of_chunk / MIB:,.0f} MiB to decode; allow "
                f"{-(-missing // MIB):,} MiB more with --max-memory"
            )
        fitting = budget.block_bytes // (max(4, itemsize) * self._n_genes)
        if fitting < chunk_cells and fitting < self._n_rows:
            yield from self._through_spill(start, budget, chunk_cells, chunk_genes)
            return
        step = max(1, fitting // chunk_cells) * chunk_cells
        a = start
        while a < self._n_rows:
            b = min(self._n_rows, (a // step + 1) * step)
            yield rows_from_dense(self._slab(a, b), a, cells_first=self._cells_first)
            a = b

    def _through_spill(self, start: int, budget: Budget, chunk_cells: int, chunk_genes: int) -> Iterator[CsrChunk]:
        itemsize = self._array.dtype.itemsize
        some = self.peek()
        share = np.count_nonzero(some) / max(1, some.size)
        expected = int(1.5 * max(share, 0.02) * self._n_rows * self._n_genes)
        buckets = RowBuckets(budget.folder, self._n_rows, self._n_genes, expected, some.dtype, budget.block_bytes)
        # Tiles: as many genes as fit, in whole chunks, by whole chunks of cells if they fit.
        cells = min(self._n_rows, max(chunk_cells, budget.block_bytes // (4 * itemsize * chunk_genes)))
        cells = min(cells, max(1, budget.block_bytes // (4 * itemsize)))
        genes = max(1, budget.block_bytes // (4 * itemsize * cells))
        genes = min(self._n_genes, max(1, genes // chunk_genes) * chunk_genes if genes >= chunk_genes else genes)
        for a in range(0, self._n_rows, cells):
            b = min(self._n_rows, a + cells)
            for g in range(0, self._n_genes, genes):
                h = min(self._n_genes, g + genes)
                with reading(f"{self.where}, cells {a:,} to {b:,}, genes {g:,} to {h:,}"):
                    tile = native(self.where, self._array[a:b, g:h] if self._cells_first else self._array[g:h, a:b])
                block = rows_from_dense(tile, a, cells_first=self._cells_first)
                rows = np.repeat(np.arange(a, b, dtype=np.uint32), np.diff(block.indptr))
                buckets.add(rows, block.indices + np.int32(g), block.data)
        yield from buckets.chunks(start)
        buckets.remove()
