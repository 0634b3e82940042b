"""The stored chunks of a one-dimensional array, each decoded by itself, in the thread that wants it.

A codec pipeline has threads of its own, beside those that work on the values, and HDF5 decodes one chunk at a time,
however many cores there are. Here the thread that works on a chunk decodes it, keeps the memory of its steps, and has
the last step write where the values are wanted. A chunk in which something is wrong is left to the library of the
format, which says what.
"""

from __future__ import annotations

import struct
import threading
import zlib
from typing import Any

import numpy as np
from numcodecs import blosc, zstd
from numpy.typing import NDArray

from hashstream.atlas._blosc_planes import low_halves
from hashstream.atlas._chunk_files import Layout, NotAsStored, layout_of

_HEADER = 16  # bytes of Blosc's, and more than Zstandard needs to say how much it holds
_ZSTD_MAGIC = 0xFD2FB528
_GZIP_OR_ZLIB = 32 + zlib.MAX_WBITS
_MOST_CHUNK_BYTES = 64 << 20  # of a larger one each thread would keep as much


class StoredChunks:
    """The chunks of an array whose layout is known.

    Attributes
    ----------
    n_elements : int
        Elements of a chunk; the last one of the array is stored whole, too.
    """

    def __init__(self, layout: Layout, dtype: np.dtype[Any]) -> None:
        self.n_elements = layout.n_elements
        self._dtype, self._steps, self._files = dtype, layout.steps, layout.files

    @classmethod
    def of(cls, array: Any) -> StoredChunks | None:
        """The chunks of a zarr array or an HDF5 dataset; None if its layout is another, or its chunks are too large."""
        layout = layout_of(array)
        if layout is None or not 0 < layout.n_elements * array.dtype.itemsize <= _MOST_CHUNK_BYTES:
            return None
        return cls(layout, array.dtype)

    def decode(self, number: int, out: NDArray[Any], skipped: int = 0) -> None:
        """Chunk `number` of the array into `out`, without its first `skipped` elements and those beyond `out`.

        `out` is of the array's type or, for column indices, of two bytes (`put_columns`).

        Threads may decode chunks of one array at the same time.

        Raises
        ------
        NotAsStored, OSError, RuntimeError, ValueError, zlib.error
            The chunk cannot be decoded.
        """
        own, n_bytes = _own(), self.n_elements * self._dtype.itemsize
        source = self._files.read(number, own.room)
        as_wanted = len(out) == self.n_elements and out.dtype == self._dtype
        narrow = out.dtype.itemsize < self._dtype.itemsize
        whole = out
        for i, step in enumerate(self._steps):
            size = _decoded_bytes(step, source, n_bytes)
            last = i == len(self._steps) - 1
            if size != n_bytes if last else not 0 < size <= n_bytes + _HEADER:
                raise NotAsStored(f"chunk {number} holds {size} bytes, expected {n_bytes}")
            if last and narrow and step == "blosc" and low_halves(source, self._dtype.itemsize, out, skipped, own.take):
                return
            if last and not as_wanted:
                whole = own.take("chunk", n_bytes).view(self._dtype)
            to = whole.view(np.uint8) if last else own.take(f"step {i}", size)
            if step == "blosc":
                blosc.decompress(source, to)
            elif step == "zstd":
                zstd.decompress(source, to)
            elif step == "shuffle":
                to.reshape(-1, self._dtype.itemsize)[:] = source.reshape(self._dtype.itemsize, -1).T
            else:
                _inflate(source, to)
            source = to
        if not self._steps:
            if len(source) != n_bytes:
                raise NotAsStored(f"chunk {number} holds {len(source)} bytes, expected {n_bytes}")
            whole = source.view(self._dtype)
        if whole is not out:
            put_columns(whole[skipped : skipped + len(out)], out)


def put_columns(values: NDArray[Any], out: NDArray[Any]) -> None:
    """Copy values into `out`, which may have two bytes for column indices that have more."""
    if out.dtype == values.dtype:
        out[:] = values
        return
    from hashstream.kernels.columns import narrow_columns  # not loaded by whoever reads no wide indices

    narrow_columns(values, out)


def _decoded_bytes(step: str, source: NDArray[np.uint8], n_bytes: int) -> int:
    """What a step will give: what a Blosc buffer or a Zstandard frame says, -1 if it does not; else a chunk."""
    if step not in ("blosc", "zstd"):
        return n_bytes
    head = source[:_HEADER].tobytes()
    if len(head) < _HEADER:
        return -1
    if step == "blosc":
        # https://www.blosc.org/c-blosc2/format/chunk_format.html: nbytes, blocksize and cbytes from byte 4 on
        size, _, stored = struct.unpack_from("<III", head, 4)
        return int(size) if stored == len(source) else -1
    # RFC 8878, section 3.1.1.1: the descriptor says how long window, dictionary and content size are
    magic, descriptor = struct.unpack_from("<IB", head)
    single, size_bytes = descriptor >> 5 & 1, (0, 2, 4, 8)[descriptor >> 6]
    size_bytes = size_bytes or single
    at = 5 + (1 - single) + (0, 1, 2, 4)[descriptor & 3]
    if magic != _ZSTD_MAGIC or not size_bytes or at + size_bytes > len(head):
        return -1
    return int.from_bytes(head[at : at + size_bytes], "little") + (256 if size_bytes == 2 else 0)


def _inflate(source: NDArray[np.uint8], to: NDArray[np.uint8]) -> None:
    """Decompress gzip or zlib; what does not fit `to` exactly is no chunk."""
    inflater = zlib.decompressobj(_GZIP_OR_ZLIB)
    found = inflater.decompress(source.data, len(to) + 1)
    if len(found) != len(to) or not inflater.eof:
        raise NotAsStored(f"a compressed chunk holds {len(found)} bytes or more, expected {len(to)}")
    to[:] = np.frombuffer(found, np.uint8)


class _Memory:
    """What a thread decodes with: one piece for each use, as large as it was ever wanted."""

    def __init__(self) -> None:
        self._pieces: dict[str, NDArray[np.uint8]] = {}

    def take(self, use: str, n_bytes: int) -> NDArray[np.uint8]:
        piece = self._pieces.get(use)
        if piece is None or len(piece) < n_bytes:
            piece = self._pieces[use] = np.empty(n_bytes, np.uint8)
        return piece[:n_bytes]

    def room(self, n_bytes: int) -> NDArray[np.uint8]:
        """For stored bytes."""
        return self.take("stored", n_bytes)


_OF_THREADS = threading.local()


def forget() -> None:
    """Give up what this thread has decoded with, as it will not decode any more."""
    _OF_THREADS.__dict__.clear()


def _own() -> _Memory:
    """This thread's."""
    if not hasattr(_OF_THREADS, "memory"):
        _OF_THREADS.memory = _Memory()
    memory: _Memory = _OF_THREADS.memory
    return memory
