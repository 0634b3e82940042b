"""The stored chunks of a one-dimensional zarr array in files of this machine, each decoded by itself.

A codec pipeline asks the system for fresh memory at every step of every chunk, which costs as much as decoding. Here
each thread keeps the memory of its steps, and the last step writes where the values are wanted. Bytes come from the
file of a chunk or of its shard (https://zarr-specs.readthedocs.io/en/latest/v3/codecs/sharding-indexed/), and Blosc and
Zstandard decode them. Every other layout is zarr's to read, and so is a chunk in which something is wrong: zarr then
says what.
"""

from __future__ import annotations

import os
import struct
import threading
from pathlib import Path
from typing import Any

import numpy as np
from numcodecs import blosc, zstd
from numpy.typing import NDArray
from zarr.codecs import BloscCodec, BytesCodec, Crc32cCodec, ShardingCodec, ZstdCodec
from zarr.core.metadata.v3 import RegularChunkGrid
from zarr.storage import LocalStore

from hashstream.atlas._shards import FULL, crc32c

_STEPS = {BloscCodec: "blosc", ZstdCodec: "zstd"}
_STEPS_V2 = {"blosc": "blosc", "zstd": "zstd"}
_HEADER = 16  # bytes of Blosc's, and more than Zstandard needs to say how much it holds
_ZSTD_MAGIC = 0xFD2FB528
_SLACK = 4096  # what headers may take of a chunk that compression does not make smaller
_MOST_CHUNK_BYTES = 64 << 20  # of a larger one each thread would keep as much
_KEPT_SHARDS = 2


class NotAsStored(Exception):
    """A chunk is not there, or does not hold what its array says."""


class StoredChunks:
    """The chunks of an array whose layout `of` knows.

    Attributes
    ----------
    n_elements : int
        Elements of a chunk; the last one of the array is stored whole, too.
    """

    def __init__(self, array: Any, n_elements: int, shard_chunks: int | None, steps: list[str]) -> None:
        self.n_elements = n_elements
        self._root = Path(array.store.root) / array.path
        self._key = array.metadata.encode_chunk_key
        self._dtype = array.dtype
        self._shard_chunks = shard_chunks
        self._steps = steps
        self._shards: dict[int, tuple[str, list[tuple[int, int]]]] = {}

    @classmethod
    def of(cls, array: Any) -> StoredChunks | None:
        """The chunks of a zarr array; None if its layout is another."""
        if not isinstance(getattr(array, "store", None), LocalStore) or len(array.shape) != 1:
            return None
        if array.dtype.kind not in "iuf" or array.dtype != array.dtype.newbyteorder("<"):
            return None
        found = _layout_v2(array.metadata) if array.metadata.zarr_format == 2 else _layout_v3(array.metadata)
        if found is None or not 0 < found[0] * array.dtype.itemsize <= _MOST_CHUNK_BYTES:
            return None
        return cls(array, *found)

    def decode(self, number: int, out: NDArray[Any], skipped: int = 0) -> None:
        """Chunk `number` of the array into `out`, without its first `skipped` elements and those beyond `out`.

        Threads may decode chunks of one array at the same time.

        Raises
        ------
        NotAsStored, OSError, RuntimeError
            The chunk cannot be decoded.
        """
        own, n_bytes = _own(), self.n_elements * self._dtype.itemsize
        source = self._read(number, own)
        whole = out if len(out) == self.n_elements else own.take("chunk", n_bytes).view(self._dtype)
        for i, step in enumerate(self._steps):
            size = _decoded_bytes(step, source)
            last = i == len(self._steps) - 1
            if size != n_bytes if last else not 0 < size <= n_bytes + _HEADER:
                raise NotAsStored(f"chunk {number} holds {size} bytes, expected {n_bytes}")
            to = whole.view(np.uint8) if last else own.take(f"step {i}", size)
            (blosc if step == "blosc" else zstd).decompress(source, to)
            source = to
        if not self._steps:
            if len(source) != n_bytes:
                raise NotAsStored(f"chunk {number} holds {len(source)} bytes, expected {n_bytes}")
            whole = source.view(self._dtype)
        if whole is not out:
            out[:] = whole[skipped : skipped + len(out)]

    def _read(self, number: int, own: _Memory) -> NDArray[np.uint8]:
        """The stored bytes of a chunk."""
        if self._shard_chunks is None:
            path, offset, n_bytes = self._path(number), 0, None
        else:
            shard, within = divmod(number, self._shard_chunks)
            path, table = self._shards.get(shard) or self._open_shard(shard)
            offset, n_bytes = table[within]
            if offset == FULL:
                raise NotAsStored(f"chunk {number} is not in its shard")
        with open(path, "rb", buffering=0) as file:
            n_there = os.fstat(file.fileno()).st_size
            n_bytes = n_there if n_bytes is None else n_bytes
            if offset + n_bytes > n_there or n_bytes > 2 * self.n_elements * self._dtype.itemsize + _SLACK:
                raise NotAsStored(f"chunk {number} is at {offset} to {offset + n_bytes} of a file of {n_there} bytes")
            file.seek(offset)
            raw = own.take("raw", n_bytes)
            if file.readinto(raw.data) != n_bytes:
                raise NotAsStored(f"chunk {number} could not be read whole")
        return raw

    def _path(self, shard: int) -> str:
        return str(self._root / self._key((shard,)))

    def _open_shard(self, shard: int) -> tuple[str, list[tuple[int, int]]]:
        """File of a shard, and offset and size of each of its chunks; the last ones asked for are kept."""
        path, size = self._path(shard), 16 * (self._shard_chunks or 0)
        with open(path, "rb") as file:
            file.seek(-(size + 4), os.SEEK_END)
            raw = file.read()
        if crc32c(raw[:size]) != int.from_bytes(raw[size:], "little"):
            raise NotAsStored(f"the table of shard {shard} does not match its checksum")
        table = [*struct.iter_unpack("<QQ", raw[:size])]
        kept = [*self._shards.items()][1 - _KEPT_SHARDS :]
        self._shards = {**dict(kept), shard: (path, table)}
        return path, table


def _layout_v3(metadata: Any) -> tuple[int, int | None, list[str]] | None:
    """Elements of a chunk, chunks of a shard, and what decodes a chunk; None for a layout that is not known here."""
    if not isinstance(metadata.chunk_grid, RegularChunkGrid):
        return None
    (stored,), codecs, shard_chunks = metadata.chunk_grid.chunk_shape, metadata.codecs, None
    if len(codecs) == 1 and isinstance(codecs[0], ShardingCodec):
        sharding = codecs[0]
        first, *others = sharding.index_codecs
        if not _is_little(first) or [type(codec) for codec in others] != [Crc32cCodec]:
            return None
        if sharding.index_location.value != "end":
            return None
        (chunk,), codecs = sharding.chunk_shape, sharding.codecs
        stored, shard_chunks = chunk, stored // chunk
    if not codecs or not _is_little(codecs[0]):
        return None
    steps = [_STEPS.get(type(codec)) for codec in reversed(codecs[1:])]
    return None if None in steps else (stored, shard_chunks, [step for step in steps if step])


def _layout_v2(metadata: Any) -> tuple[int, None, list[str]] | None:
    """As `_layout_v3`."""
    step = None if metadata.compressor is None else _STEPS_V2.get(metadata.compressor.codec_id)
    if metadata.filters or (step is None and metadata.compressor is not None):
        return None
    return metadata.chunks[0], None, [step] if step else []


def _is_little(codec: Any) -> bool:
    """Whether elements are stored as they are in memory."""
    return isinstance(codec, BytesCodec) and (codec.endian is None or codec.endian.value == "little")


def _decoded_bytes(step: str, source: NDArray[np.uint8]) -> int:
    """What a Blosc buffer or a Zstandard frame says that it holds; -1 if it does not say, or cannot be one."""
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


class _Memory:
    """What a thread decodes with: one piece for each use, as large as it was ever wanted."""

    def __init__(self) -> None:
        self._pieces: dict[str, NDArray[np.uint8]] = {}

    def take(self, use: str, n_bytes: int) -> NDArray[np.uint8]:
        piece = self._pieces.get(use)
        if piece is None or len(piece) < n_bytes:
            piece = self._pieces[use] = np.empty(n_bytes, np.uint8)
        return piece[:n_bytes]


_OF_THREADS = threading.local()


def _own() -> _Memory:
    """This thread's."""
    if not hasattr(_OF_THREADS, "memory"):
        _OF_THREADS.memory = _Memory()
    memory: _Memory = _OF_THREADS.memory
    return memory
