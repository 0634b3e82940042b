"""Where the stored chunks of a one-dimensional array lie, and what was done to them: zarr in files, and HDF5.

A layout that is not known here is left to its library.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from numpy.typing import NDArray
from zarr.codecs import BloscCodec, BytesCodec, Crc32cCodec, GzipCodec, ShardingCodec, ZstdCodec
from zarr.storage import LocalStore

from hashstream.atlas._shards import FULL, crc32c

if TYPE_CHECKING:
    import h5py

_STEPS_V3 = {BloscCodec: "blosc", ZstdCodec: "zstd", GzipCodec: "gzip"}
_STEPS_V2 = ("blosc", "zstd", "gzip", "zlib")
_STEPS_HDF5 = {1: "gzip", 2: "shuffle"}  # H5Z_FILTER_DEFLATE, H5Z_FILTER_SHUFFLE
_SLACK = 4096  # what headers may take of a chunk that compression does not make smaller
_KEPT_SHARDS = 2
_MOST_SHARD_CHUNKS = 1 << 15  # the table of a shard with more would take long to check

#: Gives room for so many bytes.
Room = Callable[[int], NDArray[np.uint8]]


class NotAsStored(Exception):
    """A chunk is not there, or does not hold what its array says."""


class ChunkFiles(Protocol):
    """The stored bytes of chunks."""

    def read(self, number: int, room: Room) -> NDArray[np.uint8]:
        """Those of chunk `number`. Several threads may read at the same time.

        Raises
        ------
        NotAsStored, OSError
            They are not there.
        """


@dataclass(frozen=True)
class Layout:
    """How an array is stored.

    Attributes
    ----------
    n_elements : int
        Elements of a chunk; the last one of the array is stored whole, too.
    steps : list of str
        What turns stored bytes into elements, in this order: blosc, zstd, gzip, zlib, shuffle.
    files : ChunkFiles
    """

    n_elements: int
    steps: list[str]
    files: ChunkFiles


def layout_of(array: Any) -> Layout | None:
    """That of a zarr array or an HDF5 dataset; None if it is another than those known here."""
    if len(array.shape) != 1 or array.dtype.kind not in "iuf" or array.dtype != array.dtype.newbyteorder("<"):
        return None
    if type(array).__module__.startswith("h5py."):  # not loaded for a zarr array
        return _layout_hdf5(array)
    if not isinstance(getattr(array, "store", None), LocalStore):
        return None
    return _layout_v2(array) if array.metadata.zarr_format == 2 else _layout_v3(array)


def _layout_hdf5(dataset: h5py.Dataset) -> Layout | None:
    if dataset.chunks is None:
        return None
    created = dataset.id.get_create_plist()
    filters = [created.get_filter(i)[0] for i in range(created.get_nfilters())]
    if not filters or any(one not in _STEPS_HDF5 for one in filters):
        return None  # without a filter HDF5 reads as fast as it can be done
    return Layout(dataset.chunks[0], [_STEPS_HDF5[one] for one in reversed(filters)], _Hdf5Chunks(dataset))


def _layout_v2(array: Any) -> Layout | None:
    compressor = array.metadata.compressor
    if array.metadata.filters or (compressor is not None and compressor.codec_id not in _STEPS_V2):
        return None
    steps = [] if compressor is None else [compressor.codec_id]
    return Layout(array.metadata.chunks[0], steps, _ZarrFiles(array, array.metadata.chunks[0], None))


def _layout_v3(array: Any) -> Layout | None:
    grid = array.metadata.to_dict()["chunk_grid"]
    if grid["name"] != "regular":
        return None
    (n_elements,), codecs, shard_chunks = grid["configuration"]["chunk_shape"], array.metadata.codecs, None
    if len(codecs) == 1 and isinstance(codecs[0], ShardingCodec):
        sharding = codecs[0]
        first, *others = sharding.index_codecs
        if not _is_little(first) or [type(codec) for codec in others] != [Crc32cCodec]:
            return None
        if _word(sharding.index_location) != "end":
            return None
        shard_chunks = n_elements // sharding.chunk_shape[0]
        if shard_chunks > _MOST_SHARD_CHUNKS:
            return None
        (n_elements,), codecs = sharding.chunk_shape, sharding.codecs
    if not codecs or not _is_little(codecs[0]) or any(type(codec) not in _STEPS_V3 for codec in codecs[1:]):
        return None
    steps = [_STEPS_V3[type(codec)] for codec in reversed(codecs[1:])]
    return Layout(n_elements, steps, _ZarrFiles(array, n_elements, shard_chunks))


def _is_little(codec: Any) -> bool:
    """Whether elements are stored as they are in memory."""
    if not isinstance(codec, BytesCodec):
        return False
    return codec.endian is None or _word(codec.endian) == "little"


def _word(option: Any) -> str:
    """An option of a codec, which zarr before 3.2 has as an enum."""
    return str(getattr(option, "value", option))


class _ZarrFiles:
    """A file for each chunk, or for each shard of `shard_chunks`.

    A shard ends with a table of where its chunks are, and its checksum
    (https://zarr-specs.readthedocs.io/en/latest/v3/codecs/sharding-indexed/).
    """

    def __init__(self, array: Any, n_elements: int, shard_chunks: int | None) -> None:
        self._root = Path(array.store.root) / array.path
        self._key = array.metadata.encode_chunk_key
        self._most_bytes = 2 * n_elements * array.dtype.itemsize + _SLACK
        self._shard_chunks = shard_chunks
        self._shards: dict[int, tuple[str, list[tuple[int, int]]]] = {}

    def read(self, number: int, room: Room) -> NDArray[np.uint8]:
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
            if offset + n_bytes > n_there or n_bytes > self._most_bytes:
                raise NotAsStored(f"chunk {number} is at {offset} to {offset + n_bytes} of a file of {n_there} bytes")
            file.seek(offset)
            raw = room(n_bytes)
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


class _Hdf5Chunks:
    """Chunks of an HDF5 dataset. The library gives bytes one at a time, but decoding them is left to the caller."""

    def __init__(self, dataset: h5py.Dataset) -> None:
        self._dataset = dataset
        self._n_elements = dataset.chunks[0]

    def read(self, number: int, room: Room) -> NDArray[np.uint8]:
        skipped, raw = self._dataset.id.read_direct_chunk((number * self._n_elements,))
        if skipped:
            raise NotAsStored(f"chunk {number} was stored without some of its filters")
        return np.frombuffer(raw, np.uint8)
