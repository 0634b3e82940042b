"""A file that HDF5 can write to: like any other, and quiet where the disk is full."""

from __future__ import annotations

import errno
import os
from pathlib import Path
from typing import Any

import anndata
import h5py
import numpy as np
import pytest

from hashstream.errors import HashStreamError
from hashstream.runtime.steady_file import SteadyFile
from hashstream.stages.encode import encode
from hashstream.stages.export import export


def full_after(monkeypatch: pytest.MonkeyPatch, room: int) -> None:
    """Lets the system take so many bytes more."""
    left, write = [room], os.pwrite

    def pwrite(fd: int, data: Any, offset: int) -> int:
        if left[0] <= 0:
            raise OSError(errno.ENOSPC, "No space left on device")
        done = write(fd, data[: left[0]], offset)
        left[0] -= done
        return done

    monkeypatch.setattr(os, "pwrite", pwrite)


def test_it_is_a_file(tmp_path: Path) -> None:
    with SteadyFile(tmp_path / "f") as file:
        assert file.write(b"abcdef") == 6
        assert file.seek(2) == 2
        buffer = bytearray(6)
        assert file.readinto(buffer) == 6
        assert bytes(buffer) == b"cdef\0\0"
        assert file.seek(-1, os.SEEK_END) == 5
        assert file.write(b"xyz") == 3
        assert file.tell() == 8
        assert file.seek(-4, os.SEEK_CUR) == 4
        assert file.read(2) == b"ex"
        assert file.truncate(7) == 7
        file.raise_error()
    assert (tmp_path / "f").read_bytes() == b"abcdexy"


def test_hdf5_writes_what_it_does_elsewhere(tmp_path: Path) -> None:
    values = np.random.default_rng(0).random((3000, 7))
    names = np.array([f"name {i}" for i in range(3000)], dtype=object)

    def fill(file: h5py.File) -> None:
        file.create_dataset("chunked", data=values, chunks=(100, 7), compression="gzip")
        file.create_dataset("names", data=names, dtype=h5py.string_dtype())

    with SteadyFile(tmp_path / "a.h5") as file, h5py.File(file, "w") as root:
        fill(root)
    with h5py.File(tmp_path / "b.h5", "w") as root:
        fill(root)
    with h5py.File(tmp_path / "a.h5") as a, h5py.File(tmp_path / "b.h5") as b:
        for root in (a, b):
            np.testing.assert_array_equal(root["chunked"][()], values)
            assert root["names"].asstr()[()].tolist() == names.tolist()


@pytest.mark.parametrize("room", [0, 10, 5_000, 100_000])
def test_hdf5_does_not_see_a_full_disk(
    tmp_path: Path, room: int, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    full_after(monkeypatch, room)
    with SteadyFile(tmp_path / "f.h5") as file:
        with h5py.File(file, "w") as root:
            array = root.create_dataset("x", shape=(200_000,), dtype=np.int64, chunks=(1000,))
            array[:] = np.arange(200_000)
            del array
        with pytest.raises(OSError, match="No space left on device"):
            file.raise_error()
    assert capfd.readouterr().err == ""


@pytest.mark.parametrize("room", [1_000, 60_000, 200_000])
def test_a_full_disk_leaves_what_was_exported_before(
    small_h5ad: Path, tmp_path: Path, room: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    encode(small_h5ad, tmp_path / "run")
    export(tmp_path / "run", tmp_path / "out.h5ad")
    before = (tmp_path / "out.h5ad").read_bytes()
    assert len(before) > room
    with monkeypatch.context() as patch:
        full_after(patch, room)
        with pytest.raises(HashStreamError, match="no space left on the disk; what was there is as it was"):
            export(tmp_path / "run", tmp_path / "out.h5ad", force=True)
    assert (tmp_path / "out.h5ad").read_bytes() == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out.h5ad", "run"]
    export(tmp_path / "run", tmp_path / "out.h5ad", force=True)
    assert anndata.read_h5ad(tmp_path / "out.h5ad").n_obs == 600
