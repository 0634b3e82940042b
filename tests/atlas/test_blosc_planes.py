"""Column indices out of Blosc buffers: as Blosc decodes them, without decoding what is zero."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numcodecs
import numpy as np
import pytest
import zarr
from numcodecs import blosc

from hashstream.atlas._blosc_planes import low_halves
from hashstream.atlas._shards import codecs
from hashstream.atlas._slices import SlicedArray
from hashstream.atlas._stored_chunks import StoredChunks
from hashstream.atlas.simulate import simulate

N = 1 << 16
INDICES = np.sort(np.random.default_rng(0).integers(0, 60_000, (N // 512, 512)), axis=1).ravel()


def encoded(values: np.ndarray[Any, Any], dtype: str, **options: Any) -> np.ndarray[Any, np.dtype[np.uint8]]:
    how = {"cname": "lz4", "clevel": 5, "shuffle": numcodecs.Blosc.SHUFFLE, **options}
    return np.frombuffer(bytearray(numcodecs.Blosc(**how).encode(values.astype(dtype))), np.uint8).copy()


def room(use: str, n_bytes: int) -> np.ndarray[Any, np.dtype[np.uint8]]:
    return np.full(n_bytes, 77, np.uint8)


@pytest.mark.parametrize("dtype", ["i4", "u4", "i8", "u8"])
@pytest.mark.parametrize("block", [0, 1 << 12, 1 << 14])
@pytest.mark.parametrize(("start", "stop"), [(0, N), (5, N), (N // 2 + 3, N), (0, 7), (N // 4, 3 * N // 4), (N - 1, N)])
def test_any_part_of_a_chunk(dtype: str, block: int, start: int, stop: int) -> None:
    for values in (INDICES, np.minimum(INDICES, 255), INDICES % 1000, np.full(N, 65_535), np.zeros(N)):
        out = np.full(stop - start, 7, np.uint16)
        source = encoded(values, dtype, blocksize=block)
        assert low_halves(source, np.dtype(dtype).itemsize, out, start, room)
        assert np.array_equal(out, values[start:stop])


@pytest.mark.parametrize(
    "options",
    [{"cname": "zstd"}, {"cname": "blosclz"}, {"cname": "lz4hc", "clevel": 9}, {"shuffle": 0}, {"shuffle": 2}, {}],
)
@pytest.mark.parametrize("dtype", ["i4", "i8"])
def test_other_buffers_are_left_alone(options: dict[str, Any], dtype: str) -> None:
    values = INDICES if options else np.r_[INDICES[:-1], -1]  # no column: the last block has other high bytes
    if not options:
        options = {"blocksize": 1 << 12}
    source, out = encoded(values, dtype, **options), np.full(N, 7, np.uint16)
    before = source.copy()
    taken = low_halves(source, np.dtype(dtype).itemsize, out, 0, room)
    if taken:  # LZ4 in its slow form is in the same format
        assert options["cname"] == "lz4hc"
        assert np.array_equal(out, values)
    else:
        assert np.array_equal(source, before)


def test_chunks_that_are_not_whole_blocks_or_not_compressed() -> None:
    for values in (INDICES[: N - 5], INDICES[:100], np.random.default_rng(1).integers(0, 2**31, 1000)):
        source = encoded(values, "i4", blocksize=1 << 12)
        assert not low_halves(source, 4, np.empty(len(values), np.uint16), 0, room)


def test_damaged_buffers_raise_or_are_left_alone() -> None:
    rng, n_raised, whole = np.random.default_rng(2), 0, encoded(INDICES, "i8", blocksize=1 << 14)
    for _ in range(300):
        source = whole.copy()
        at = int(rng.integers(0, 2_000)) if rng.random() < 0.5 else int(rng.integers(0, len(source)))
        source[at] ^= 1 << int(rng.integers(0, 8))
        if int(source[12:16].view("<u4")[0]) != len(source) or int(source[4:8].view("<u4")[0]) != 8 * N:
            continue  # its caller has looked at these
        try:
            low_halves(source, 8, np.empty(N, np.uint16), 0, room)
        except (RuntimeError, ValueError):
            n_raised += 1
    assert n_raised > 0


@pytest.mark.parametrize("dtype", ["i4", "i8"])
def test_atlases_are_read_this_way(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, dtype: str) -> None:
    simulate(tmp_path / "atlas.zarr", n_cells=2_000, n_genes=5_000, n_types=3)
    stored = zarr.open_array(tmp_path / "atlas.zarr" / "X" / "indices", mode="r")
    if dtype == "i8":  # what an atlas of more than 2^31 values has
        wide = zarr.create_array(
            tmp_path / "wide", shape=stored.shape, dtype="i8", chunks=stored.chunks, compressors=codecs(np.dtype("i8"))
        )
        wide[:] = stored[:]
        stored = zarr.open_array(tmp_path / "wide", mode="r")
    expected = stored[:]
    assert StoredChunks.of(stored) is not None
    # Neither Blosc nor zarr decodes a chunk.
    monkeypatch.setattr(blosc, "decompress", lambda *_: 1 / 0)
    monkeypatch.setattr("hashstream.atlas._slices._read_into", lambda *_: 1 / 0)
    found = SlicedArray(stored, two_bytes=True).read(10, len(expected))
    assert found.dtype == np.uint16
    assert np.array_equal(found, expected[10:])
