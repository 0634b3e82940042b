"""Ways to damage the CSR matrix of an h5ad file; those of single rows damage row 100."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import h5py


def edit(source: Path, target: Path, change: Callable[[h5py.File], None]) -> Path:
    shutil.copy(source, target)
    with h5py.File(target, "r+") as file:
        change(file)
    return target


def unsorted(file: h5py.File) -> None:
    indices, low, high = file["X/indices"], int(file["X/indptr"][100]), int(file["X/indptr"][101])
    indices[low:high] = indices[low:high][::-1]


def repeated(file: h5py.File) -> None:
    low = int(file["X/indptr"][100])
    file["X/indices"][low + 1] = file["X/indices"][low]


def out_of_range(file: h5py.File) -> None:
    file["X/indices"][int(file["X/indptr"][101]) - 1] = 300


def falling_pointers(file: h5py.File) -> None:
    file["X/indptr"][100] = file["X/indptr"][102]


def short_pointers(file: h5py.File) -> None:
    values = file["X/indptr"][:-1]
    del file["X/indptr"]
    file["X/indptr"] = values


def short_data(file: h5py.File) -> None:
    values = file["X/data"][:-5]
    del file["X/data"]
    file["X/data"] = values
