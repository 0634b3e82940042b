"""Slices of the arrays of a sparse matrix, which several threads read while they follow each other.

A slice rarely ends where a stored chunk ends. What its last chunk holds beyond it is left for the slice that follows,
so that no chunk is decoded twice.
"""

from __future__ import annotations

from concurrent.futures import Future, ThreadPoolExecutor
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hashstream.atlas._stored_chunks import StoredChunks, put_columns
from hashstream.runtime.provenance import available_threads

MOST_READERS = 8  # more than one consumer can follow


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


class SlicedArray:
    """A compressed one-dimensional array: of zarr, or an HDF5 dataset.

    Parameters
    ----------
    array
    two_bytes : bool
        Whether it holds column indices of at most 65,535 columns. These take two bytes then, in which they are a third
        to a sixth of what moves between memory and processor; what is no column becomes 65,535.

    Attributes
    ----------
    dtype : dtype
        Of what is read.
    """

    def __init__(self, array: Any, *, two_bytes: bool = False) -> None:
        self.array = array
        self.chunk = chunk_elements(array)
        self._stored = StoredChunks.of(array)
        narrow = two_bytes and self._stored is not None and array.dtype.itemsize > 2
        self.dtype = np.dtype(np.uint16 if narrow else array.dtype)

    @property
    def decoding_bytes(self) -> int:
        """What a thread takes beside the slice to read one: a chunk as it is stored, half decoded, and decoded."""
        return 3 * self.chunk * int(self.array.dtype.itemsize) if self.array.chunks else 0

    def read(self, low: int, high: int) -> NDArray[Any]:
        """Elements `low` to `high`, which several threads decode."""
        out = np.empty(high - low, self.dtype)
        pieces = self.pieces(low, high)
        with ThreadPoolExecutor(max(1, min(reader_threads(), len(pieces)))) as pool:
            for reading in [pool.submit(self.read_piece, a, b, out[a - low : b - low]) for a, b in pieces]:
                reading.result()
        return out

    def pieces(self, low: int, high: int) -> list[tuple[int, int]]:
        """Elements `low` to `high` as what is read at a time: a stored chunk, or all where a library reads them."""
        if self._stored is None or low == high:
            return [(low, high)] if low < high else []
        return [*pairwise([low, *range((low // self.chunk + 1) * self.chunk, high, self.chunk), high])]

    def read_piece(self, low: int, high: int, out: NDArray[Any]) -> None:
        """Elements `low` to `high`, one of the `pieces`, into `out`."""
        if self._stored is not None:
            try:
                self._stored.decode(low // self.chunk, out, low % self.chunk)
            except Exception:  # whatever codecs and files raise: the library of the format says what is wrong
                pass
            else:
                return
        _read_into(self.array, low, high, out)


class Slice:
    """Elements `low` to `high` of an array, to be read once, by any thread.

    Parameters
    ----------
    after
        The slice that ends where this one begins, if there is one. Threads must begin to read it before this one,
        which waits for what it leaves: whoever does not come to read a slice must `abandon` it.
    """

    def __init__(self, of: SlicedArray, low: int, high: int, after: Slice | None) -> None:
        self._of, self._low, self._high = of, low, high
        # There is room for what else the stored chunk of the last element holds.
        self._end = min(-(-high // of.chunk) * of.chunk, int(of.array.shape[0]))
        left = after._end - after._high if after is not None and after._high == low else 0
        self._n_head = min(left, self._end - low)
        self._after = after if self._n_head else None
        self._left: Future[NDArray[Any] | None] = Future()

    def read(self, buffers: Buffers) -> NDArray[Any]:
        """The elements, in memory of `buffers`."""
        try:
            out = buffers.take(self._end - self._low, self._of.dtype)
            self._fill(out)
        finally:
            self.abandon()
        return out[: self._high - self._low]

    def abandon(self) -> None:
        """Leave nothing to the slice that follows, if it was not left already."""
        if not self._left.done():
            self._left.set_result(None)

    def _fill(self, out: NDArray[Any]) -> None:
        start = self._low + self._n_head
        # The last piece first: another thread may wait for what is beyond the slice.
        for first, last in reversed(self._of.pieces(start, self._end)):
            self._of.read_piece(first, last, out[first - self._low : last - self._low])
            if first <= self._high:
                self._leave(out)
        if self._after is not None:
            left = self._after._left.result()
            self._after = None
            if left is None:
                _read_into(self._of.array, self._low, start, out[: self._n_head])
            else:
                out[: self._n_head] = left[: self._n_head]
        self._leave(out)

    def _leave(self, out: NDArray[Any]) -> None:
        if not self._left.done():
            self._left.set_result(out[self._high - self._low :].copy())


def reader_threads() -> int:
    """Threads that read for one consumer: one a core, at most `MOST_READERS`."""
    return min(available_threads(), MOST_READERS)


def chunk_elements(array: Any) -> int:
    """Elements of a stored chunk of a one-dimensional array (an inner chunk where it is sharded); 1 without chunks."""
    return int(array.chunks[0]) if array.chunks else 1


def _read_into(array: Any, start: int, stop: int, out: NDArray[Any]) -> None:
    """Read a slice of a zarr array or HDF5 dataset into `out`: straight, unless it is of another type."""
    if out.dtype != array.dtype:
        values = np.empty(stop - start, array.dtype)
        _read_into(array, start, stop, values)
        put_columns(values, out)
    elif hasattr(array, "read_direct"):
        array.read_direct(out, np.s_[start:stop])
    else:
        from zarr.core.buffer.cpu import NDBuffer

        array.get_basic_selection(slice(start, stop), out=NDBuffer.from_numpy_array(out))
