"""Row access to count matrices on disk: CSR or dense, in zarr or HDF5, through one small interface.

The arrays are read as they are stored, without AnnData on top: slices are contiguous and nothing is copied twice.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import contextmanager
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray
from zarr.storage import LocalStore

from hashstream.atlas.chunk import CsrChunk
from hashstream.atlas.layout import check_counts_dtype, check_sparse_arrays, stated_shape
from hashstream.atlas.missing import check_chunks, check_dense_chunks
from hashstream.errors import HashStreamError, InputError

MAX_CHUNK_ROWS = 1 << 16


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

    def chunk_edges(self, start: int, stop: int, max_bytes: int) -> list[int]:
        """Rows at which to cut rows `start` to `stop` so that each piece takes at most about `max_bytes`."""

    def read_rows(self, start: int, stop: int, buffers: Buffers | None = None) -> CsrChunk:
        """Rows `start` to `stop`; the chunk may lie in `buffers`, and lasts until they are given to another."""


@contextmanager
def _reading(where: str, start: int, stop: int) -> Iterator[None]:
    """Whatever a storage library raises becomes an InputError that names file, array and rows."""
    try:
        yield
    except HashStreamError:
        raise
    except MemoryError as error:
        raise InputError(f"{where}: rows {start} to {stop} do not fit in memory; use fewer rows a chunk.") from error
    except Exception as error:
        raise InputError(
            f"{where}: rows {start} to {stop} cannot be read ({type(error).__name__}: {error}). "
            "The file is damaged or incomplete: copy it again, or rebuild it from its source with `hashstream ingest`."
        ) from error


class Buffers:
    """Memory for one chunk, used again for the next: mapping fresh pages each time costs as much as reading."""

    def __init__(self) -> None:
        self._memory: list[NDArray[np.uint8]] = []
        self._taken = 0

    def reset(self) -> None:
        """Whatever was taken may be overwritten from now on."""
        self._taken = 0

    def take(self, n: int, dtype: np.dtype[Any]) -> NDArray[Any]:
        """An array of `n` elements with arbitrary content."""
        n_bytes = n * dtype.itemsize
        if self._taken == len(self._memory):
            self._memory.append(np.empty(0, dtype=np.uint8))
        if len(self._memory[self._taken]) < n_bytes:
            self._memory[self._taken] = np.empty(n_bytes, dtype=np.uint8)
        memory = self._memory[self._taken]
        self._taken += 1
        return memory[:n_bytes].view(dtype)


class _SequentialReader:
    """Reads slices of a compressed one-dimensional array that mostly follow each other.

    A slice rarely ends where a stored chunk ends. What the last chunk holds beyond the slice is kept and given to the
    next one, so that no chunk is decoded twice.
    """

    def __init__(self, array: Any) -> None:
        self._array = array
        self._chunk = _chunk_elements(array)
        self._kept_from, self._n_kept = -1, 0
        self._kept: NDArray[Any] = np.empty(0, dtype=array.dtype)

    def room(self, low: int, high: int, buffers: Buffers) -> NDArray[Any]:
        """Memory for elements `low` to `high` and what else the stored chunk of the last one holds."""
        end = min(-(-high // self._chunk) * self._chunk, self._array.shape[0])
        return buffers.take(end - low, self._array.dtype)

    def read(self, low: int, high: int, out: NDArray[Any]) -> NDArray[Any]:
        """Elements `low` to `high`, in their `room`."""
        end, head = low + len(out), 0
        if low == self._kept_from:
            head = min(self._n_kept, len(out))
            out[:head] = self._kept[:head]
        if head < len(out):
            _read_into(self._array, low + head, end, out[head:])
        self._kept_from, self._n_kept = high, end - high
        if self._n_kept > len(self._kept):
            self._kept = np.empty(self._n_kept, dtype=out.dtype)
        self._kept[: self._n_kept] = out[high - low :]
        return out[: high - low]


def _chunk_elements(array: Any) -> int:
    """Elements of a stored chunk of a one-dimensional array (an inner chunk where it is sharded)."""
    return int(array.chunks[0]) if array.chunks else max(int(array.shape[0]), 1)


def _is_local(array: Any) -> bool:
    """Whether an array is of a zarr store of this machine."""
    return isinstance(getattr(array, "store", None), LocalStore)


def _read_into(array: Any, start: int, stop: int, out: NDArray[Any]) -> None:
    """Read a slice of a zarr array or HDF5 dataset straight into `out`."""
    if hasattr(array, "read_direct"):
        array.read_direct(out, np.s_[start:stop])
    else:
        from zarr.core.buffer.cpu import NDBuffer

        array.get_basic_selection(slice(start, stop), out=NDBuffer.from_numpy_array(out))


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
        self._readers = (_SequentialReader(indices), _SequentialReader(data))
        # HDF5 does one thing at a time, and an object store reads with as many requests as it may for either array.
        self._beside = (
            ThreadPoolExecutor(1, "hashstream-reader-data") if _is_local(data) and _is_local(indices) else None
        )
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
        for name, array in (("data", self._data), ("indices", self._indices), ("indptr", self._indptr)):
            with _reading(f"{self.where}/{name}", 0, n_rows):
                check_chunks(f"{self.where}/{name}", array)
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

    @property
    def _value_bytes(self) -> int:
        return int(self._data.dtype.itemsize + self._indices.dtype.itemsize)

    @property
    def max_row_bytes(self) -> int:
        return self.shape[1] * self._value_bytes

    def chunk_edges(self, start: int, stop: int, max_bytes: int) -> list[int]:
        pointers = self.row_pointers(start, stop)
        self._planned = (start, pointers)
        step = max(max_bytes // self._value_bytes, 1)
        stored = _chunk_elements(self._data)
        if step > 2 * stored:
            # A whole number of stored chunks, so that as few as possible are cut by a piece's end.
            step -= step % stored
        edges = [0]
        while edges[-1] < len(pointers) - 1:
            here = edges[-1]
            target = pointers[here] + step
            aligned = target - target % stored if step > 2 * stored else target
            last = int(np.searchsorted(pointers, aligned, side="right")) - 1
            edges.append(min(max(last, here + 1), here + MAX_CHUNK_ROWS, len(pointers) - 1))
        return [start + edge for edge in edges]

    def row_pointers(self, start: int, stop: int) -> NDArray[np.int64]:
        """Row pointers of rows `start` to `stop`: (stop - start + 1,) int64, absolute."""
        first, planned = self._planned
        if first <= start and stop < first + len(planned):
            return planned[start - first : stop - first + 1]
        with _reading(f"{self.where}/indptr", start, stop):
            pointers = np.asarray(self._indptr[start : stop + 1]).astype(np.int64, copy=False)
        bad = np.flatnonzero(np.diff(pointers) < 0)
        if len(bad) or pointers[0] < 0 or pointers[-1] > self.nnz:
            row = start + int(bad[0]) if len(bad) else start
            raise InputError(
                f"{self.where}/indptr: row pointers must rise from 0 to {self.nnz}; row {row} breaks the order. "
                "The file is damaged: rebuild it from its source."
            )
        return pointers

    def read_rows(self, start: int, stop: int, buffers: Buffers | None = None) -> CsrChunk:
        pointers = self.row_pointers(start, stop)
        low, high = int(pointers[0]), int(pointers[-1])
        buffers = buffers or Buffers()
        first, second = ((reader, reader.room(low, high, buffers)) for reader in self._readers)
        with _reading(self.where, start, stop):
            # The few stored chunks of one array do not keep all cores busy.
            reading = self._beside.submit(second[0].read, low, high, second[1]) if self._beside else None
            try:
                indices = first[0].read(low, high, first[1])
            finally:
                if reading is not None:
                    wait([reading])
            data = second[0].read(low, high, second[1]) if reading is None else reading.result()
        return CsrChunk(start=start, indptr=pointers - low, indices=indices, data=data, n_genes=self.shape[1])


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

    def read_rows(self, start: int, stop: int, buffers: Buffers | None = None) -> CsrChunk:
        with _reading(self.where, start, stop):
            block = np.asarray(self._array[start:stop])
        mask = block != 0
        indptr = np.zeros(len(block) + 1, dtype=np.int64)
        np.cumsum(np.count_nonzero(mask, axis=1), out=indptr[1:])
        index_dtype = np.uint16 if self.shape[1] <= 1 << 16 else np.int32
        genes = np.broadcast_to(np.arange(self.shape[1], dtype=index_dtype), block.shape)
        return CsrChunk(start=start, indptr=indptr, indices=genes[mask], data=block[mask], n_genes=self.shape[1])


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
        raise InputError(
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
