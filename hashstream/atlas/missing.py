"""Notice files that a zarr store has lost: zarr itself reads zeros in their place."""

from __future__ import annotations

import math
import os
from collections.abc import Iterable, Iterator
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import zarr
from numpy.typing import NDArray
from zarr.storage import LocalStore

from hashstream.atlas.remote import RemoteStore
from hashstream.errors import InputError, SettingsError

#: Set to ``zeros``, it lets dense matrices in whose missing chunks look lost.
VARIABLE = "HASHSTREAM_MISSING_CHUNKS"
PEEK_DENSE = 2**20
MOST_DENSE_CHUNKS = 1 << 22
MOST_CHUNKS = 1 << 23
SURELY_SOME = 40  # expected non-zeros of a chunk that cannot well have none
_PEEK_ROW = 1 << 20
_DEEPEST = 40  # folders below an array, more than it has dimensions


def check_chunks(where: str, array: Any) -> None:
    """Raise InputError if chunks of an array are missing in which no chunk can be all zeros, or all empty names.

    zarr gives zeros for a chunk that is not there. In the values of a sparse matrix that can only be a lost file.
    Listing the chunks of a store on the network could take longer than reading them: there, reading a missing one
    raises.
    """
    if isinstance(getattr(array, "store", None), RemoteStore):
        array.store.require(array.path)
        return
    if not isinstance(array, zarr.Array):
        return
    bands = [range(-(-n // part)) for n, part in zip(array.shape, array.shards or array.chunks, strict=True)]
    n_chunks = math.prod(len(band) for band in bands)
    _check_number(where, array, n_chunks)
    n_lost = n_chunks - int(np.count_nonzero(_are_there(array, product(*bands), n_chunks)))
    if n_lost:
        raise InputError(f"{where}: {n_lost} of {n_chunks} chunks are missing; the store is damaged: copy it again")


def check_pointer_chunks(where: str, indptr: Any, indices: Any, n_columns: int) -> None:
    """Raise InputError if chunks of the row pointers of a sparse matrix are missing that held more than zeros.

    Pointers rise from 0, so that those of the first rows are zeros where these rows have no values, and zarr stores no
    chunk of zeros. So a chunk may be missing if no pointer before it is above 0, and if the values up to the first
    pointer behind it can belong to one row: those of a lost chunk belong to many, whose columns begin anew.

    Parameters
    ----------
    where : str
        The array of pointers, for messages.
    indptr : (n_rows + 1,) array of zarr or HDF5
    indices : (n_values,) array of zarr or HDF5
    n_columns : int
        Most values that a row can have.
    """
    store = getattr(indptr, "store", None)
    if not isinstance(indptr, zarr.Array) or not isinstance(store, LocalStore | RemoteStore):
        check_chunks(where, indptr)
        return
    size = int((indptr.shards or indptr.chunks)[0])
    n_pointers, n_chunks = int(indptr.shape[0]), -(-int(indptr.shape[0]) // size)
    _check_number(where, indptr, n_chunks)
    if isinstance(store, RemoteStore) and n_chunks and _are_there(indptr, [(0,)], 1).all():
        store.require(indptr.path)  # so no other can be missing: a writer leaves out all chunks of zeros, or none
        return
    there = _are_there(indptr, ((i,) for i in range(n_chunks)), n_chunks)
    if there.all():
        return
    last = int(np.flatnonzero(~there)[-1])
    stored_before = np.flatnonzero(there[:last])
    ends = [(int(chunk) + 1) * size - 1 for chunk in (*stored_before[-1:], last)]
    zeros = all(_pointer(indptr, min(end, n_pointers - 1)) == 0 for end in ends)
    following = ends[-1] + 1
    n_values = _pointer(indptr, following) if following < n_pointers else int(indices.shape[0])
    one_row = 0 <= n_values <= (n_columns if following < n_pointers else 0)
    some = np.asarray(indices[: min(n_values, _PEEK_ROW)] if one_row else []).astype(np.int64)
    if not zeros or not one_row or np.any(np.diff(some) <= 0):
        raise InputError(
            f"{where}: {int((~there).sum())} of {n_chunks} chunks are missing, in which rows with values begin; the "
            "store is damaged: copy it again"
        )


def _pointer(indptr: Any, at: int) -> int:
    return int(indptr[at])


def check_dense_chunks(where: str, array: Any) -> None:
    """Raise InputError if chunks of a dense zarr matrix are missing that cannot well be all zeros.

    zarr leaves out chunks of zeros, so that a missing file may be right. It is hardly so if the same genes in other
    cells have so many counts that this chunk should have some too, or if no chunk is there at all. Where it is right
    all the same, the environment says so: ``HASHSTREAM_MISSING_CHUNKS=zeros``.

    Raises
    ------
    SettingsError
        If the variable has another value.
    """
    if not isinstance(array, zarr.Array) or not isinstance(array.store, LocalStore | RemoteStore):
        return
    size = array.shards or array.chunks
    bands = [range(-(-n // part)) for n, part in zip(array.shape, size, strict=True)]
    n_chunks = len(bands[0]) * len(bands[1])
    if n_chunks > MOST_DENSE_CHUNKS:
        raise InputError(
            f"{where}: its shape {array.shape} makes {n_chunks:,} chunks of {size}, expected at most "
            f"{MOST_DENSE_CHUNKS:,}; the store is damaged, or its chunks are too small: rewrite it with `hashstream "
            "ingest`"
        )
    if _missing_are_zeros():
        return
    places = ((i, j) for i in bands[0] for j in bands[1])
    there = _are_there(array, places, n_chunks).reshape(len(bands[0]), len(bands[1]))
    if there.size and not there.any():
        raise InputError(f"{where}: none of {there.size} chunks is there. {_either('the matrix is all zeros')}")
    for j in np.flatnonzero(there.any(axis=0) & ~there.all(axis=0)):
        i = int(np.flatnonzero(there[:, j])[0])
        lost = int(np.flatnonzero(~there[:, j])[0])
        genes = slice(j * size[1], (j + 1) * size[1])
        some = np.asarray(array[i * size[0] : i * size[0] + max(1, min(size[0], PEEK_DENSE // size[1])), genes])
        n_cells = min(array.shape[0] - lost * size[0], size[0])
        if np.count_nonzero(some) / len(some) * n_cells >= SURELY_SOME:
            raise InputError(
                f"{where}: {int((~there).sum())} of {there.size} chunks are missing, among them that of cells "
                f"{lost * size[0]:,} to {lost * size[0] + n_cells:,}, where other cells have counts in the same "
                f"genes. {_either('these cells have no counts there')}"
            )


def _either(right: str) -> str:
    """Why chunks of a dense matrix may be missing, and what to do about it."""
    return (
        f"Either files of the store are lost: copy it again; or {right}, since zarr stores no chunk of zeros: then run "
        f"the command again with {VARIABLE}=zeros in the environment."
    )


def _missing_are_zeros() -> bool:
    """Whether the environment says that missing chunks of dense matrices are zeros."""
    value = os.environ.get(VARIABLE, "")
    if value not in ("", "zeros"):
        raise SettingsError(f'{VARIABLE} is {value!r}; expected "zeros", or that it is not set.')
    return value == "zeros"


def _check_number(where: str, array: Any, n_chunks: int) -> None:
    if n_chunks > MOST_CHUNKS:  # all of their names would be held
        raise InputError(
            f"{where}: its shape {array.shape} makes {n_chunks:,} chunks of {array.chunks}, expected at most "
            f"{MOST_CHUNKS:,}; the store is damaged: copy it again"
        )


def _are_there(array: Any, places: Iterable[tuple[int, ...]], n_chunks: int) -> NDArray[np.bool_]:
    """Whether the files (shards, where there are any) of chunks at `places` are there: (n_chunks,) bool."""
    keys = (array.metadata.encode_chunk_key(place) for place in places)
    if isinstance(array.store, RemoteStore):
        found: Iterable[bool] = array.store.are_there(array.path, (f"{array.path}/{key}" for key in keys))
    else:
        names = {*_files_below(Path(array.store.root) / array.path)}  # on network disks quicker than to ask for each
        found = (key in names for key in keys)
    return np.fromiter(found, dtype=bool, count=n_chunks)


def _files_below(folder: str | os.PathLike[str], above: str = "", depth: int = 0) -> Iterator[str]:
    """Paths of all files in a folder and those in it, from there on, with slashes. Links count as what they lead to."""
    if depth > _DEEPEST or not os.path.isdir(folder):
        return
    with os.scandir(folder) as entries:
        for entry in entries:
            if entry.is_dir():
                yield from _files_below(entry.path, f"{above}{entry.name}/", depth + 1)
            elif entry.is_file():
                yield above + entry.name
