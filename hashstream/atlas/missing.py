"""Notice files that a zarr store has lost: zarr itself reads zeros in their place."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import zarr
from zarr.storage import LocalStore

from hashstream.atlas.remote import RemoteStore
from hashstream.errors import InputError

PEEK_DENSE = 2**20
MOST_DENSE_CHUNKS = 1 << 22
MOST_CHUNKS = 1 << 23
SURELY_SOME = 40  # expected non-zeros of a chunk that cannot well have none


def check_chunks(where: str, array: Any) -> None:
    """Raise InputError if chunks of an array are missing in which no chunk can be all zeros, or all empty names.

    zarr gives zeros for a chunk that is not there. In a sparse matrix that can only be a lost file. Listing the chunks
    of a store on the network could take longer than reading them: there, reading a missing one raises.
    """
    if isinstance(getattr(array, "store", None), RemoteStore):
        array.store.require(array.path)
        return
    if hasattr(array, "nchunks_initialized"):
        wanted = array.nchunks
        if wanted > MOST_CHUNKS:  # all of their names would be held
            raise InputError(
                f"{where}: its shape {array.shape} makes {wanted:,} chunks of {array.chunks}, expected at most "
                f"{MOST_CHUNKS:,}; the store is damaged: copy it again"
            )
        there = array.nchunks_initialized
        if there < wanted:
            raise InputError(
                f"{where}: {wanted - there} of {wanted} chunks are missing; the store is damaged: copy it again"
            )


def check_dense_chunks(where: str, array: Any) -> None:
    """Raise InputError if chunks of a dense zarr matrix are missing that cannot well be all zeros.

    zarr leaves out chunks of zeros, so that a missing file may be right. It is not if the same genes in other cells
    have so many counts that this chunk should have some too, or if no chunk is there at all.
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
    keys = (f"{array.path}/{array.metadata.encode_chunk_key((i, j))}" for i in bands[0] for j in bands[1])
    if isinstance(array.store, RemoteStore):
        found = array.store.are_there(array.path, keys)
    else:
        found = ((Path(array.store.root) / key).exists() for key in keys)
    there = np.fromiter(found, dtype=bool, count=n_chunks).reshape(len(bands[0]), len(bands[1]))
    if there.size and not there.any():
        raise InputError(f"{where}: none of {there.size} chunks is there; the store is damaged: copy it again")
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
                "genes; the store is damaged: copy it again"
            )
