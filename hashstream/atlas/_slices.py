"""Slices of the arrays of a sparse matrix, which several threads read while they follow each other.

A slice rarely ends where a stored chunk ends. What its last chunk holds beyond it is left for the slice that follows,
so that no chunk is decoded twice.
"""

from __future__ import annotations

from concurrent.futures import Future
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hashstream.atlas._stored_chunks import StoredChunks


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
    """A compressed one-dimensional array: of zarr, or an HDF5 dataset."""

    def __init__(self, array: Any) -> None:
        self.array = array
        self.stored = StoredChunks.of(array)
        self.chunk = chunk_elements(array)

    @property
    def decoding_bytes(self) -> int:
        """What a thread takes beside the slice to read one: a chunk as it is stored, half decoded, and decoded."""
        return 3 * self.chunk * int(self.array.dtype.itemsize) if self.array.chunks else 0


class Slice:
    """Elements `low` to `high` of an array, to be read once, by any thread.

    Parameters
    ----------
    after
        The slice that ends where this one begins, if there is one. Threads must begin to read it before this one,
        which waits for what it leaves.
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
        out = buffers.take(self._end - self._low, self._of.array.dtype)
        try:
            self._fill(out)
        finally:
            if not self._left.done():
                self._left.set_result(None)
        return out[: self._high - self._low]

    def _fill(self, out: NDArray[Any]) -> None:
        start = self._low + self._n_head
        if not self._decode(start, out):
            # A layout that is only zarr's or HDF5's to read; or something is wrong, and this says what.
            _read_into(self._of.array, start, self._end, out[self._n_head :])
        if self._after is not None:
            left = self._after._left.result()
            self._after = None
            if left is None:
                _read_into(self._of.array, self._low, start, out[: self._n_head])
            else:
                out[: self._n_head] = left[: self._n_head]
        self._leave(out)

    def _decode(self, start: int, out: NDArray[Any]) -> bool:
        """Decode the stored chunks from element `start` on, and say whether that could be done."""
        stored, chunk = self._of.stored, self._of.chunk
        if start == self._end:
            return True
        if stored is None:
            return False
        try:
            # The last one first: another thread may wait for what is beyond the slice.
            for number in reversed(range(start // chunk, -(-self._end // chunk))):
                first, last = max(start, number * chunk), min(self._end, (number + 1) * chunk)
                stored.decode(number, out[first - self._low : last - self._low], first - number * chunk)
                if first <= self._high:
                    self._leave(out)
        except Exception:  # whatever codecs and files raise
            return False
        return True

    def _leave(self, out: NDArray[Any]) -> None:
        if not self._left.done():
            self._left.set_result(out[self._high - self._low :].copy())


def chunk_elements(array: Any) -> int:
    """Elements of a stored chunk of a one-dimensional array (an inner chunk where it is sharded); 1 without chunks."""
    return int(array.chunks[0]) if array.chunks else 1


def _read_into(array: Any, start: int, stop: int, out: NDArray[Any]) -> None:
    """Read a slice of a zarr array or HDF5 dataset straight into `out`."""
    if start == stop:
        return
    if hasattr(array, "read_direct"):
        array.read_direct(out, np.s_[start:stop])
    else:
        from zarr.core.buffer.cpu import NDBuffer

        array.get_basic_selection(slice(start, stop), out=NDBuffer.from_numpy_array(out))
