"""What the stored chunks of a dense matrix take in memory, beside the rows that are read from them."""

from __future__ import annotations

import math
from typing import Any

import zarr

_AT_A_TIME = 8  # chunks of a row that zarr decodes at a time


def chunk_bytes(array: Any) -> int:
    """A stored chunk of a zarr array or an HDF5 dataset, as it is and decoded; 0 where rows are read without it."""
    if array.chunks is None:
        return 0
    decoded = math.prod(array.chunks) * int(array.dtype.itemsize)
    if isinstance(array, zarr.Array):
        return 2 * decoded  # what is stored is no larger
    if not any((array.compression, array.shuffle, array.fletcher32, array.scaleoffset is not None)):
        return 0
    n_chunks = math.prod(-(-n // size) for n, size in zip(array.shape, array.chunks, strict=True))
    return decoded + -(-int(array.id.get_storage_size()) // max(n_chunks, 1))


def row_decoding_bytes(array: Any, n_threads: int) -> int:
    """What some threads take that read rows: chunks that zarr decodes at a time; of HDF5, which has one lock, one."""
    if not isinstance(array, zarr.Array):
        return chunk_bytes(array)
    return n_threads * min(-(-int(array.shape[1]) // array.chunks[1]), _AT_A_TIME) * chunk_bytes(array)
