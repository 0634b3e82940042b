"""Shard files of the zarr v3 ``sharding_indexed`` codec, written chunk by chunk.

A shard is its compressed chunks one after another, then a table of their offsets and sizes (uint64, little-endian) and
the CRC-32C of that table (https://zarr-specs.readthedocs.io/en/latest/v3/codecs/sharding-indexed/).

Chunks are Blosc (lz4, byte shuffle) in a Zstandard frame. The frame is there for its checksum: Blosc has none, and a
flipped bit would decode to other numbers without a word. Zstandard at its lowest level stores the Blosc bytes as they
are, with 32 bits of xxHash behind. The ``crc32c`` codec would be the natural choice, but the zarrs pipeline decodes the
chunks of a shard partially, and then strips a CRC without checking it, whichever side of Blosc it is on.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

import numcodecs
import numpy as np
from numpy.typing import NDArray
from zarr.abc.codec import BytesBytesCodec
from zarr.codecs import BloscCodec, ZstdCodec

from hashstream.errors import InputError

FULL = 2**64 - 1  # the index's mark of a chunk that is not there


class ShardFiles:
    """The shard files of one array: compressed chunks one after another, each file closed by its index."""

    def __init__(self, folder: Path, shard_chunks: int) -> None:
        self.folder = folder
        self._shard_chunks = shard_chunks
        self._shard = 0
        self._index: list[tuple[int, int]] = []
        self._file: BinaryIO | None = None
        (folder / "c").mkdir(parents=True, exist_ok=True)

    @classmethod
    def restored(cls, parent: Path, shard_chunks: int, state: dict[str, Any]) -> ShardFiles:
        """Continue as `state` says; whatever came after it is cut off."""
        files = cls(parent / state["folder"], shard_chunks)
        files._shard = state["shard"]
        files._index = [(offset, size) for offset, size in state["index"]]
        for path in (files.folder / "c").iterdir():
            if int(path.name) > files._shard or (int(path.name) == files._shard and not files._index):
                path.unlink()
        if files._index:
            path = files._path(files._shard)
            files._check_blocks(path)
            files._file = path.open("r+b")
            files._file.truncate(sum(files._index[-1]))
            files._file.seek(0, os.SEEK_END)
        return files

    def _check_blocks(self, path: Path) -> None:
        """Raise InputError unless a shard that is not ended holds the chunks of the index; all of them are read."""
        try:
            with path.open("rb") as file:
                for offset, size in self._index:
                    file.seek(offset)
                    block = file.read(size)
                    if len(block) != size:
                        raise ValueError(f"ends after {offset + len(block)} of {sum(self._index[-1])} bytes")
                    _zstd().decode(block)
        except (OSError, ValueError, RuntimeError) as error:
            raise InputError(
                f"{path}: what a killed write had kept is damaged ({error}); start again without --resume"
            ) from error

    @property
    def n_blocks(self) -> int:
        return self._shard * self._shard_chunks + len(self._index)

    def state(self) -> dict[str, Any]:
        return {"folder": self.folder.name, "shard": self._shard, "index": self._index}

    def _path(self, shard: int) -> Path:
        return self.folder / "c" / str(shard)

    def add(self, block: bytes) -> None:
        if self._file is None:
            self._file = self._path(self._shard).open("wb")
        offset = sum(self._index[-1]) if self._index else 0
        self._file.write(block)
        self._index.append((offset, len(block)))
        if len(self._index) == self._shard_chunks:
            self._end_shard()

    def _end_shard(self) -> None:
        assert self._file is not None
        table = np.full((self._shard_chunks, 2), FULL, "<u8")
        table[: len(self._index)] = self._index
        raw = table.tobytes()
        self._file.write(raw + crc32c(raw).to_bytes(4, "little"))
        self.sync()
        self.close_file()
        self._shard += 1
        self._index = []

    def close(self) -> None:
        """End the last shard, which may be short."""
        if self._index:
            self._end_shard()

    def close_file(self) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None

    def sync(self) -> None:
        if self._file is not None:
            self._file.flush()
            os.fsync(self._file.fileno())

    def blocks(self) -> Iterator[bytes]:
        """All chunks in order; the shards must be closed."""
        size = 16 * self._shard_chunks
        for shard in range(self._shard):
            with self._path(shard).open("rb") as file:
                file.seek(-(size + 4), os.SEEK_END)
                table = np.frombuffer(file.read(size), "<u8").reshape(-1, 2)
                for offset, n_bytes in table[table[:, 0] != FULL]:
                    file.seek(int(offset))
                    yield file.read(int(n_bytes))


def _crc_table() -> list[int]:
    """Remainders of each byte by the Castagnoli polynomial, bits reversed (RFC 3720, appendix B.4)."""
    table = []
    for value in range(256):
        for _ in range(8):
            value = (value >> 1) ^ (0x82F63B78 if value & 1 else 0)
        table.append(value)
    return table


_CRC_TABLE = _crc_table()


def crc32c(data: bytes) -> int:
    """CRC-32C of `data`; a shard's index has two kilobytes, so plain Python does."""
    value = 0xFFFFFFFF
    for byte in data:
        value = (value >> 8) ^ _CRC_TABLE[(value ^ byte) & 0xFF]
    return value ^ 0xFFFFFFFF


CHECKSUM_LEVEL = -131_072  # the lowest that the codec's specification allows

BLOSC_LEVEL = 5


def codecs(dtype: np.dtype[Any]) -> list[BytesBytesCodec]:
    """What `compressed` does, as the array's metadata say it."""
    return [
        BloscCodec(typesize=dtype.itemsize, cname="lz4", clevel=BLOSC_LEVEL, shuffle="shuffle"),
        ZstdCodec(level=CHECKSUM_LEVEL, checksum=True),
    ]


def _blosc() -> numcodecs.Blosc:
    return numcodecs.Blosc(cname="lz4", clevel=BLOSC_LEVEL, shuffle=numcodecs.Blosc.SHUFFLE)


def _zstd() -> numcodecs.Zstd:
    return numcodecs.Zstd(level=CHECKSUM_LEVEL, checksum=True)


def compressed(values: NDArray[Any]) -> bytes:
    """A chunk's bytes; to be called in a worker thread, where numcodecs compresses with one thread (see `write`)."""
    return bytes(_zstd().encode(_blosc().encode(values)))


def decompressed(block: bytes, dtype: np.dtype[Any]) -> NDArray[Any]:
    return np.frombuffer(_blosc().decode(_zstd().decode(block)), dtype)
