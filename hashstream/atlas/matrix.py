"""Row access to count matrices on disk: CSR or dense, in zarr or HDF5, through one small interface.

The arrays are read as they are stored, without AnnData on top: slices are contiguous and nothing is copied twice.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from hashstream.atlas._dense import row_decoding_bytes
from hashstream.atlas._slices import Buffers, Slice, SlicedArray, chunk_elements
from hashstream.atlas.chunk import CsrChunk
from hashstream.atlas.layout import check_counts_dtype, check_sparse_arrays, stated_shape
from hashstream.atlas.missing import check_chunks, check_dense_chunks, check_pointer_chunks
from hashstream.errors import HashStreamError, InputError, StoredByGenesError

MAX_CHUNK_ROWS = 1 << 16
_TWO_BYTES = 65_535  # columns that indices of two bytes can tell from none; `kernels.columns`
_MOST_POINTERS = 1 << 19  # that are kept beyond those asked for


class RowMatrix(Protocol):
    """A count matrix that can be read by ranges of rows."""

    where: str
    shape: tuple[int, int]
    dtype: np.dtype[Any]

    @property
    def nnz(self) -> int | None:
        """Stored values, or None where only reading everything would tell (dense)."""

    @property
    def max_row_bytes(self) -> int:
        """Bytes that one row of full width takes while it is read: what the smallest chunk needs."""

    def sort_rows(self) -> None:
        """From now on have the columns of each row ascend, however they are stored."""

    def chunk_edges(self, start: int, stop: int, max_bytes: int) -> list[int]:
        """Rows at which to cut rows `start` to `stop` so that each piece takes at most about `max_bytes`."""

    def decoding_bytes(self, n_threads: int) -> int:
        """Bytes that some threads take beside the chunks that they read."""

    def rows_to_read(self, start: int, stop: int, after: RowsToRead | None = None) -> RowsToRead:
        """Rows `start` to `stop`, to be read later and by any thread.

        Parameters
        ----------
        after
            What was made for the rows before these, if it was; threads must begin to read it first.
        """

    def read_rows(self, start: int, stop: int) -> CsrChunk:
        """Rows `start` to `stop`."""


class RowsToRead(Protocol):
    """Rows of a matrix that are yet to be read."""

    def read(self, buffers: Buffers) -> CsrChunk:
        """The rows, once; the chunk may lie in `buffers`, and lasts until they are given to another."""


@contextmanager
def _reading(where: str, start: int, stop: int) -> Iterator[None]:
    """Whatever a storage library raises becomes an InputError that names file, array and rows."""
    try:
        yield
    except HashStreamError:
        raise
    except MemoryError as error:
        raise InputError(
            f"{where}: rows {start} to {stop} do not fit in memory; use fewer rows a chunk (--chunk-rows)."
        ) from error
    except Exception as error:
        raise InputError(
            f"{where}: rows {start} to {stop} cannot be read ({type(error).__name__}: {error}). "
            "The file is damaged or incomplete: copy it again, or rebuild it from its source with `hashstream ingest`."
        ) from error


class CsrMatrix:
    """A CSR matrix whose three arrays are zarr arrays or HDF5 datasets.

    Parameters
    ----------
    data, indices, indptr
        One-dimensional arrays that support ``len`` and slicing.
    shape : (n_cells, n_genes)
    where : str
        File and array, for messages.

    Raises
    ------
    InputError
        If lengths, shape and pointers contradict each other.
    """

    def __init__(self, data: Any, indices: Any, indptr: Any, *, shape: tuple[int, int], where: str) -> None:
        check_sparse_arrays(where, data=data, indices=indices, indptr=indptr)
        self._data, self._indices, self._indptr = data, indices, indptr
        self.shape = (int(shape[0]), int(shape[1]))
        self.where = where
        self.dtype = np.dtype(data.dtype)
        self._sliced = SlicedArray(indices, two_bytes=self.shape[1] <= _TWO_BYTES), SlicedArray(data)
        self._sort = False
        # The row pointers that chunks were last planned with: reading them again for each chunk would cost as much as
        # a small chunk itself.
        self._planned: tuple[int, NDArray[np.int64]] = (0, np.empty(0, dtype=np.int64))
        self._check_layout()

    def _check_layout(self) -> None:
        n_rows, n_stored = self.shape[0], self._data.shape[0]
        if self._indices.shape[0] != n_stored:
            raise InputError(
                f"{self.where}: data holds {n_stored} values but indices {self._indices.shape[0]}; they must agree. "
                "The file is damaged: rebuild it from its source."
            )
        if self._indptr.shape[0] != n_rows + 1:
            raise InputError(
                f"{self.where}: indptr has {self._indptr.shape[0]} entries, expected {n_rows + 1} for {n_rows} rows. "
                "The file is damaged: rebuild it from its source."
            )
        for name, array in (("data", self._data), ("indices", self._indices)):
            with _reading(f"{self.where}/{name}", 0, n_rows):
                check_chunks(f"{self.where}/{name}", array)
        with _reading(f"{self.where}/indptr", 0, n_rows):
            check_pointer_chunks(f"{self.where}/indptr", self._indptr, self._indices, self.shape[1])
        with _reading(f"{self.where}/indptr", 0, n_rows):
            first, last = int(self._indptr[:1][0]), int(self._indptr[n_rows : n_rows + 1][0])
        if first != 0 or last != n_stored:
            raise InputError(
                f"{self.where}: indptr runs from {first} to {last}, expected 0 to {n_stored} (the number of stored "
                "values). The file is damaged: rebuild it from its source."
            )

    @property
    def nnz(self) -> int:
        return int(self._data.shape[0])

    def sort_rows(self) -> None:
        self._sort = True

    @property
    def sorts(self) -> bool:
        """Whether rows are sorted as they are read."""
        return self._sort

    @property
    def _value_bytes(self) -> int:
        stored = sum(array.dtype.itemsize for array in self._sliced)
        return 3 * stored if self._sort else stored  # with the copies that are sorted

    @property
    def max_row_bytes(self) -> int:
        return self.shape[1] * self._value_bytes

    def chunk_edges(self, start: int, stop: int, max_bytes: int) -> list[int]:
        pointers = self.row_pointers(start, stop)
        self._planned = (start, pointers)
        step = max(max_bytes // self._value_bytes, 1)
        stored = chunk_elements(self._data)
        if step > 2 * stored:
            # A whole number of stored chunks, so that as few as possible are cut by a piece's end.
            step -= step % stored
        edges = [0]
        while edges[-1] < len(pointers) - 1:
            here = edges[-1]
            target = pointers[here] + step
            # A piece begins a little before a stored chunk: it ends at the end that is nearest to what it should hold.
            aligned = (target + stored // 2) // stored * stored if step > 2 * stored else target
            last = int(np.searchsorted(pointers, aligned, side="right")) - 1
            edges.append(min(max(last, here + 1), here + MAX_CHUNK_ROWS, len(pointers) - 1))
        return [start + edge for edge in edges]

    def row_pointers(self, start: int, stop: int) -> NDArray[np.int64]:
        """Row pointers of rows `start` to `stop`: (stop - start + 1,) int64, absolute."""
        first, planned = self._planned
        wanted = range(start, stop)
        if first <= start and stop < first + len(planned):
            return planned[start - first : stop - first + 1]
        start, stop = self._whole_chunks(start, stop)
        with _reading(f"{self.where}/indptr", start, stop):
            pointers = np.asarray(self._indptr[start : stop + 1]).astype(np.int64, copy=False)
        bad = np.flatnonzero(np.diff(pointers) < 0)
        if len(bad) or pointers[0] < 0 or pointers[-1] > self.nnz:
            row = start + int(bad[0]) if len(bad) else start
            raise InputError(
                f"{self.where}/indptr: row pointers must rise from 0 to {self.nnz}; row {row} breaks the order. "
                "The file is damaged: rebuild it from its source."
            )
        self._planned = (start, pointers)
        return pointers[wanted.start - start : wanted.stop - start + 1]

    def _whole_chunks(self, start: int, stop: int) -> tuple[int, int]:
        """Rows whose pointers are decoded anyway if those of `start` to `stop` are, unless they are very many."""
        chunk = chunk_elements(self._indptr)
        low, high = start // chunk * chunk, min(-(-(stop + 1) // chunk) * chunk - 1, self.shape[0])
        return (low, high) if high - low <= max(_MOST_POINTERS, stop - start) else (start, stop)

    def decoding_bytes(self, n_threads: int) -> int:
        return n_threads * max(array.decoding_bytes for array in self._sliced)

    def rows_to_read(self, start: int, stop: int, after: RowsToRead | None = None) -> CsrRows:
        return CsrRows(self, self._sliced, start, stop, after if isinstance(after, CsrRows) else None)

    def read_rows(self, start: int, stop: int) -> CsrChunk:
        return self.rows_to_read(start, stop).read(Buffers())


class CsrRows:
    """Rows `start` to `stop` of a CSR matrix; see `RowsToRead`."""

    def __init__(
        self, matrix: CsrMatrix, arrays: tuple[SlicedArray, SlicedArray], start: int, stop: int, after: CsrRows | None
    ) -> None:
        self._matrix, self.start, self.stop = matrix, start, stop
        pointers = matrix.row_pointers(start, stop)
        low, high = int(pointers[0]), int(pointers[-1])
        self._indptr = pointers - low
        before: tuple[Slice | None, Slice | None] = (None, None)
        if after is not None and after._matrix is matrix:
            before = after._slices
        self._slices: tuple[Slice, Slice] = (
            Slice(arrays[0], low, high, before[0]),
            Slice(arrays[1], low, high, before[1]),
        )

    def read(self, buffers: Buffers) -> CsrChunk:
        try:
            with _reading(self._matrix.where, self.start, self.stop):
                indices, data = (one.read(buffers) for one in self._slices)
        finally:
            for one in self._slices:
                one.abandon()
        chunk = CsrChunk(self.start, self._indptr, indices, data, self._matrix.shape[1])
        return chunk.with_sorted_rows() if self._matrix.sorts else chunk


class DenseMatrix:
    """A dense matrix (zarr array or HDF5 dataset, cells x genes), read as CSR: zeros are left out, NaN is kept."""

    def __init__(self, array: Any, *, where: str) -> None:
        if len(array.shape) != 2:
            raise InputError(f"{where}: expected a matrix of cells x genes, found {len(array.shape)} dimension(s).")
        check_counts_dtype(where, array.dtype)
        self._array = array
        self.shape = (int(array.shape[0]), int(array.shape[1]))
        self.where = where
        self.dtype = np.dtype(array.dtype)
        with _reading(where, 0, self.shape[0]):
            check_dense_chunks(where, array)

    @property
    def nnz(self) -> None:
        return None

    @property
    def max_row_bytes(self) -> int:
        # The dense slab, its mask, and the worst case of the CSR form.
        return self.shape[1] * (2 * self.dtype.itemsize + 1 + 4)

    def chunk_edges(self, start: int, stop: int, max_bytes: int) -> list[int]:
        rows = min(max(max_bytes // self.max_row_bytes, 1), MAX_CHUNK_ROWS)
        stored = int((self._array.chunks or (1,))[0])
        rows -= rows % stored if rows > stored else 0
        return [*range(start, stop, rows), stop]

    def sort_rows(self) -> None:
        pass  # they always are

    def decoding_bytes(self, n_threads: int) -> int:
        return row_decoding_bytes(self._array, n_threads)  # slabs are in `max_row_bytes`

    def rows_to_read(self, start: int, stop: int, after: RowsToRead | None = None) -> DenseRows:
        return DenseRows(self, start, stop)

    def read_rows(self, start: int, stop: int) -> CsrChunk:
        with _reading(self.where, start, stop):
            block = np.asarray(self._array[start:stop])
        mask = block != 0
        indptr = np.zeros(len(block) + 1, dtype=np.int64)
        np.cumsum(np.count_nonzero(mask, axis=1), out=indptr[1:])
        index_dtype = np.uint16 if self.shape[1] <= 1 << 16 else np.int32
        genes = np.broadcast_to(np.arange(self.shape[1], dtype=index_dtype), block.shape)
        return CsrChunk(start=start, indptr=indptr, indices=genes[mask], data=block[mask], n_genes=self.shape[1])


@dataclass(frozen=True)
class DenseRows:
    """Rows `start` to `stop` of a dense matrix; see `RowsToRead`."""

    matrix: DenseMatrix
    start: int
    stop: int

    def read(self, buffers: Buffers) -> CsrChunk:
        return self.matrix.read_rows(self.start, self.stop)


def _attribute(node: Any, key: str, default: Any) -> Any:
    value = dict(node.attrs).get(key, default)
    return value.decode() if isinstance(value, bytes) else value


def open_matrix(node: Any, *, where: str, is_group: Callable[[Any], bool]) -> RowMatrix:
    """The row-readable matrix stored at `node`, an element that AnnData wrote.

    Raises
    ------
    InputError
        If the element is neither CSR nor dense (CSC must be ingested first), or its arrays are inconsistent.
    """
    if not is_group(node):
        return DenseMatrix(node, where=where)
    encoding = str(_attribute(node, "encoding-type", "") or f"{_attribute(node, 'h5sparse_format', '')}_matrix")
    if encoding == "csc_matrix":
        raise StoredByGenesError(
            f"{where} is stored by genes (CSC), which cannot be streamed by cells. "
            "Convert it once: `hashstream ingest SOURCE ATLAS.zarr`, then use ATLAS.zarr."
        )
    if encoding != "csr_matrix":
        raise InputError(f"{where}: expected a CSR or dense matrix written by AnnData, found {encoding!r}.")
    missing = [name for name in ("data", "indices", "indptr") if name not in node]
    if missing:
        raise InputError(f"{where}: a CSR matrix without {', '.join(missing)}. The file is damaged or incomplete.")
    shape: Any = _attribute(node, "shape", None)
    if shape is None:
        shape = _attribute(node, "h5sparse_shape", None)
    size = stated_shape(shape, where)
    return CsrMatrix(node["data"], node["indices"], node["indptr"], shape=size, where=where)
