"""Slices of stored arrays: whatever the layout and the cuts, what zarr or HDF5 reads; and what is damaged, noticed."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from pathlib import Path
from typing import Any

import h5py
import numcodecs
import numpy as np
import pytest
import zarr
from hypothesis import given, settings
from hypothesis import strategies as st
from zarr.codecs import BloscCodec, BytesCodec, Crc32cCodec, GzipCodec, ZstdCodec

from hashstream.atlas._chunk_files import NotAsStored
from hashstream.atlas._slices import Buffers, Slice, SlicedArray
from hashstream.atlas._stored_chunks import StoredChunks

N, CHUNK = 1_000, 64
VALUES = np.random.default_rng(0).poisson(2.0, N)
BLOSC, ZSTD = BloscCodec(cname="lz4", shuffle="shuffle"), ZstdCodec(level=1, checksum=True)
SHARDED = {"chunks": (CHUNK,), "shards": (4 * CHUNK,)}
KNOWN: dict[str, dict[str, Any]] = {
    "as ingest writes": {**SHARDED, "compressors": [BLOSC, ZSTD]},
    "sharded, not compressed": {**SHARDED, "compressors": None},
    "sharded, zstd": {**SHARDED, "compressors": [ZstdCodec(level=0)]},
    "zstd, as AnnData writes": {"chunks": (CHUNK,), "compressors": [ZstdCodec(level=0)]},
    "zstd twice": {"chunks": (CHUNK,), "compressors": [ZSTD, ZSTD]},
    "blosc zstd, bit shuffle": {
        "chunks": (CHUNK,), "compressors": [BloscCodec(cname="zstd", shuffle="bitshuffle")]},
    "not compressed": {"chunks": (CHUNK,), "compressors": None},
    "one chunk": {"chunks": (2 * N,), "compressors": [BLOSC]},
    "v2, blosc": {"zarr_format": 2, "chunks": (CHUNK,), "compressors": numcodecs.Blosc()},
    "v2, zstd": {"zarr_format": 2, "chunks": (CHUNK,), "compressors": numcodecs.Zstd()},
    "v2, not compressed": {"zarr_format": 2, "chunks": (CHUNK,), "compressors": None},
    "gzip": {"chunks": (CHUNK,), "compressors": [GzipCodec()]},
    "v2, gzip": {"zarr_format": 2, "chunks": (CHUNK,), "compressors": numcodecs.GZip()},
    "v2, zlib": {"zarr_format": 2, "chunks": (CHUNK,), "compressors": numcodecs.Zlib()},
}  # fmt: skip
OTHERS: dict[str, dict[str, Any]] = {
    "bz2": {"zarr_format": 2, "chunks": (CHUNK,), "compressors": numcodecs.BZ2()},
    "crc32c": {**SHARDED, "compressors": [BLOSC, Crc32cCodec()]},
    "big-endian": {"chunks": (CHUNK,), "serializer": BytesCodec(endian="big"), "compressors": [ZSTD]},
    "v2, filter": {
        "zarr_format": 2, "chunks": (CHUNK,), "filters": [numcodecs.Delta("u2")], "compressors": numcodecs.Zstd()},
}  # fmt: skip


HDF5: dict[str, dict[str, Any]] = {
    "HDF5, gzip": {"chunks": (CHUNK,), "compression": "gzip"},
    "HDF5, gzip and shuffle": {"chunks": (CHUNK,), "compression": "gzip", "shuffle": True},
    "HDF5, shuffle": {"chunks": (CHUNK,), "shuffle": True},
}
HDF5_OTHERS: dict[str, dict[str, Any]] = {
    "HDF5, lzf": {"chunks": (CHUNK,), "compression": "lzf"},
    "HDF5, checksum": {"chunks": (CHUNK,), "compression": "gzip", "fletcher32": True},
    "HDF5, chunks": {"chunks": (CHUNK,)},
    "HDF5, contiguous": {},
}


def stored(path: Path, layout: dict[str, Any], dtype: str = "u2") -> zarr.Array:
    # zarrs, where an earlier test has configured it, warns of what it leaves to zarr.
    with zarr.config.set({"codec_pipeline.path": "zarr.core.codec_pipeline.BatchedCodecPipeline"}):
        array = zarr.create_array(path, shape=(N,), dtype=dtype, **layout)
        array[:] = VALUES.astype(dtype)
        return zarr.open_array(path, mode="r")


def read(array: Any, cuts: list[int], n_threads: int = 1) -> list[np.ndarray]:
    """Slices between cuts, each with the one before it; begun in order, in several threads."""
    of, before, slices = SlicedArray(array), None, []
    for low, high in pairwise(cuts):
        slices.append(before := Slice(of, low, high, before))
    with ThreadPoolExecutor(n_threads) as pool:
        return list(pool.map(lambda one: one.read(Buffers()), slices))


@pytest.fixture(scope="module")
def arrays(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp("stored")
    found = {name: stored(folder / str(i), one) for i, (name, one) in enumerate({**KNOWN, **OTHERS}.items())}
    with h5py.File(folder / "a.h5", "w") as file:
        for name, layout in {**HDF5, **HDF5_OTHERS}.items():
            file.create_dataset(name, data=VALUES.astype("u2"), **layout)
    file = h5py.File(folder / "a.h5")
    return {**found, **{name: file[name] for name in file}}


@pytest.mark.parametrize("name", [*KNOWN, *OTHERS, *HDF5, *HDF5_OTHERS])
def test_the_layouts_that_are_decoded_here(arrays: dict[str, Any], name: str) -> None:
    assert (StoredChunks.of(arrays[name]) is not None) == (name in KNOWN or name in HDF5)


@pytest.mark.parametrize("dtype", ["u1", "u4", "i8", "f4", "f8"])
@pytest.mark.parametrize("name", ["as ingest writes", "v2, blosc"])
def test_every_number_type(tmp_path: Path, name: str, dtype: str) -> None:
    array = stored(tmp_path / "a", KNOWN[name], dtype)
    assert StoredChunks.of(array) is not None
    (got,) = read(array, [100, 777])
    assert got.dtype == np.dtype(dtype)
    assert np.array_equal(got, VALUES[100:777])


@settings(max_examples=100, deadline=None)
@given(
    name=st.sampled_from([*KNOWN, *OTHERS, *HDF5, *HDF5_OTHERS]),
    cuts=st.lists(st.integers(0, N), min_size=2, max_size=30).map(sorted),
    n_threads=st.integers(1, 4),
)
def test_slices_are_what_the_libraries_read(arrays: dict[str, Any], name: str, cuts: list[int], n_threads: int) -> None:
    got = read(arrays[name], cuts, n_threads)
    for part, (low, high) in zip(got, pairwise(cuts), strict=True):
        assert np.array_equal(part, VALUES[low:high])


@pytest.mark.parametrize("dtype", ["u2", "i4", "i8"])
@pytest.mark.parametrize("name", ["as ingest writes", "v2, blosc", *OTHERS])
def test_column_indices_take_two_bytes(tmp_path: Path, name: str, dtype: str) -> None:
    array = stored(tmp_path / "a", {**KNOWN, **OTHERS}[name], dtype)
    of = SlicedArray(array, two_bytes=True)
    assert of.dtype == np.dtype("u2" if name in KNOWN else dtype)  # other layouts are left as they are
    first = Slice(of, 10, CHUNK + 5, None)
    then = Slice(of, CHUNK + 5, N, first)
    for one, (low, high) in ((first, (10, CHUNK + 5)), (then, (CHUNK + 5, N))):
        got = one.read(Buffers())
        assert got.dtype == of.dtype
        assert np.array_equal(got, VALUES[low:high].astype(dtype))
    assert np.array_equal(of.read(3, 700), VALUES[3:700].astype(dtype))


def test_slices_that_do_not_follow_each_other(arrays: dict[str, Any]) -> None:
    of = SlicedArray(arrays["as ingest writes"])
    first = Slice(of, 10, 100, None)
    for low, high in ((99, 300), (101, 300), (0, 10)):
        # `first` is not read, and nothing waits for it.
        assert np.array_equal(Slice(of, low, high, first).read(Buffers()), VALUES[low:high])


def test_a_chunk_is_decoded_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    array = stored(tmp_path / "a", KNOWN["as ingest writes"])
    decoded = []
    decode = StoredChunks.decode

    def counted(self: StoredChunks, number: int, *arguments: Any) -> None:
        decoded.append(number)
        decode(self, number, *arguments)

    monkeypatch.setattr(StoredChunks, "decode", counted)
    read(array, [*range(0, N, 30), N])
    assert sorted(decoded) == list(range(-(-N // CHUNK)))


def flip(path: Path, at: int) -> None:
    raw = bytearray(path.read_bytes())
    raw[at] ^= 1
    path.write_bytes(raw)


def cut(path: Path, size: int) -> None:
    path.write_bytes(path.read_bytes()[:size])


@pytest.mark.parametrize("damage", ["flip", "cut", "lost", "table"])
def test_damage_ends_in_the_error_of_the_library(tmp_path: Path, damage: str) -> None:
    array = stored(tmp_path / "a", KNOWN["as ingest writes"])
    shard = tmp_path / "a" / "c" / "1"
    if damage == "flip":
        flip(shard, 40)
    elif damage == "cut":
        cut(shard, 100)
    elif damage == "table":
        flip(shard, shard.stat().st_size - 20)
    else:
        shard.unlink()
    chunks = StoredChunks.of(zarr.open_array(tmp_path / "a", mode="r"))
    assert chunks is not None
    with pytest.raises((NotAsStored, OSError, RuntimeError)):  # noqa: PT012 - one of them is damaged
        for number in range(4, 8):
            chunks.decode(number, np.empty(CHUNK, "u2"))
    if damage == "lost":  # which zarr reads as zeros: `check_chunks` is there for that
        return
    with pytest.raises(Exception, match=".") as raised:
        read(array, [0, 200, 400, 600, N], n_threads=2)
    assert not isinstance(raised.value, NotAsStored)


def test_a_slice_reads_for_itself_what_the_one_before_could_not_leave(tmp_path: Path) -> None:
    array = stored(tmp_path / "a", KNOWN["as ingest writes"])
    flip(tmp_path / "a" / "c" / "0", 40)
    of = SlicedArray(array)
    first = Slice(of, 0, 300, None)
    second = Slice(of, 300, 500, first)
    with pytest.raises(Exception, match="."):
        first.read(Buffers())
    assert np.array_equal(second.read(Buffers()), VALUES[300:500])


@pytest.mark.parametrize("size", [0, 10, 2**31])
def test_what_a_chunk_says_of_its_size_is_not_believed(tmp_path: Path, size: int) -> None:
    array = stored(tmp_path / "a", KNOWN["v2, blosc"])
    path = tmp_path / "a" / "3"
    raw = bytearray(path.read_bytes())
    raw[4:8] = size.to_bytes(4, "little")
    path.write_bytes(raw)
    chunks = StoredChunks.of(array)
    assert chunks is not None
    with pytest.raises(NotAsStored, match="chunk 3"):
        chunks.decode(3, np.empty(CHUNK, "u2"))
    cut(path, 20)
    with pytest.raises(NotAsStored, match="chunk 3"):
        chunks.decode(3, np.empty(CHUNK, "u2"))
    cut(path, 7)
    with pytest.raises(NotAsStored, match="chunk 3"):
        chunks.decode(3, np.empty(CHUNK, "u2"))


@pytest.mark.parametrize("shuffle", [False, True])
def test_hdf5_chunks_that_are_not_there_or_not_compressed(tmp_path: Path, shuffle: bool) -> None:
    with h5py.File(tmp_path / "a.h5", "w") as file:
        data = file.create_dataset("a", (N,), "u2", chunks=(CHUNK,), compression="gzip", shuffle=shuffle)
        data[: 5 * CHUNK] = VALUES[: 5 * CHUNK]
        # Stored as it is, with a mask that says so.
        plain = VALUES[5 * CHUNK : 6 * CHUNK].astype("u2").tobytes()
        data.id.write_direct_chunk((5 * CHUNK,), plain, filter_mask=0b11 if shuffle else 0b1)
    with h5py.File(tmp_path / "a.h5") as file:
        (got,) = read(file["a"], [0, N])
        assert np.array_equal(got[: 6 * CHUNK], VALUES[: 6 * CHUNK])
        assert not got[6 * CHUNK :].any()


def test_a_damaged_hdf5_chunk_ends_in_the_error_of_the_library(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "a.h5", "w") as file:
        data = file.create_dataset("a", data=VALUES.astype("u2"), chunks=(CHUNK,), compression="gzip")
        at = data.id.get_chunk_info(3).byte_offset
    flip(tmp_path / "a.h5", at + 30)
    with h5py.File(tmp_path / "a.h5") as file, pytest.raises(OSError, match="filter returned failure"):
        read(file["a"], [0, 100, 400, N], n_threads=2)


@pytest.mark.parametrize("name", ["as ingest writes", "HDF5, gzip", "HDF5, lzf", "crc32c"])
@pytest.mark.parametrize(("low", "high"), [(0, N), (0, 0), (64, 128), (65, 70), (100, 777), (N, N)])
def test_a_slice_that_several_threads_decode(arrays: dict[str, Any], name: str, low: int, high: int) -> None:
    assert np.array_equal(SlicedArray(arrays[name]).read(low, high), VALUES[low:high])
