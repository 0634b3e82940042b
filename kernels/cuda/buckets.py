"""Counting codes in a stream on the device: the table of the CPU kernel, row for row."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from hashstream.kernels.cuda._device import THREADS, WARP, blocks_for, codes_on_device, cupy_module, launch

#: Slots that a table has at least. Half of them are the codes that one batch of kernels takes.
_LEAST_SLOTS = 1 << 18


class DeviceBuckets(NamedTuple):
    """A table of buckets on the device; see `hashstream.kernels.BucketArrays`, whose attributes these are.

    The rows are those of the CPU's table, in the same order; only `slots` may differ.
    """

    slots: Any
    keys: Any
    counts: Any
    half_counts: Any
    sums: Any
    used: Any


def new_bucket_arrays(max_rows: int, n_words: int, n_dims: int, *, with_halves: bool = False) -> DeviceBuckets:
    """An empty table on the device; see `hashstream.kernels.new_bucket_arrays`.

    Raises
    ------
    ValueError
        `max_rows` or `n_words` is below 1, `n_dims` below 0, or `max_rows` above 2**30.
    ImportError, RuntimeError
        There is no CuPy or no device.
    """
    if not 1 <= max_rows <= 1 << 30:
        raise ValueError(f"max_rows is {max_rows}, expected 1 to {1 << 30}")
    if n_words < 1 or n_dims < 0:
        raise ValueError(f"n_words is {n_words} and n_dims {n_dims}, expected at least 1 and 0")
    cupy = cupy_module()
    capacity = max(_LEAST_SLOTS, 1 << (2 * max_rows - 1).bit_length())
    return DeviceBuckets(
        cupy.full(capacity, -1, np.int32),
        cupy.zeros((max_rows, n_words), np.uint64),
        cupy.zeros(max_rows, np.int64),
        cupy.zeros(max_rows if with_halves else 0, np.int64),
        cupy.zeros((max_rows, 2 if with_halves else 1, n_dims), np.int64),
        cupy.zeros(1, np.int64),
    )


def count_buckets(
    arrays: DeviceBuckets, codes: Any, embedding: Any, mask: Any, start: int = 0, *, first_row: int | None = None
) -> int:
    """Counts rows of codes, from row `start` on, into the table, which it changes.

    See `hashstream.kernels.count_buckets`; keys, counts and sums are the same integers in the same rows. The call
    waits for the device once a batch, to learn whether the table is full.

    Parameters
    ----------
    arrays : DeviceBuckets
    codes : (n, n_words) uint64
    embedding : (n, n_dims) float32, or None if the table has no dimensions
    mask : (n_words,) uint64
        Always the same for one table; see `hashstream.kernels.prefix_mask`.
    start : int
    first_row : int, optional
        Row in the whole atlas of the first code, for a table that counts halves.

    Returns
    -------
    int
        First row that was not counted: n when all were, else a row whose bucket finds the table full.

    Raises
    ------
    TypeError, ValueError
        Arrays that do not fit the table.
    ImportError, RuntimeError
        There is no CuPy or no device.
    """
    cupy = cupy_module()
    n_words = arrays.keys.shape[1]
    codes = codes_on_device(cupy, codes, n_words=n_words)
    mask = cupy.asarray(mask)
    if mask.dtype != np.uint64:
        raise TypeError(f"mask has dtype {mask.dtype}, expected uint64")
    if mask.shape != (n_words,):
        raise ValueError(f"mask has shape {mask.shape}, expected ({n_words},)")
    n = len(codes)
    if not 0 <= start <= n:
        raise ValueError(f"start is {start}, expected 0 to {n}, the number of rows")
    _, n_halves, n_dims = arrays.sums.shape
    if (first_row is not None) != (n_halves == 2):
        raise ValueError(f"first_row is {first_row}, but the table has {n_halves} part(s) a bucket, expected 2 with it")
    embedding = _checked_embedding(cupy, embedding, n, n_dims)
    batch = len(arrays.slots) // 2  # with the rows in use, never more than there are slots
    mask = cupy.ascontiguousarray(mask)
    for first in range(int(start), n, batch):
        rows = slice(first, min(first + batch, n))
        stop = _count_batch(cupy, arrays, codes[rows], embedding[rows], mask, (first_row or 0) + first)
        if first + stop < rows.stop:
            _place_keys(cupy, arrays, mask)
            return first + stop
    return n


def _checked_embedding(cupy: Any, embedding: Any, n: int, n_dims: int) -> Any:
    if n_dims == 0:
        return cupy.empty((n, 0), np.float32)
    if embedding is None:
        raise ValueError(f"embedding is None, but the table sums {n_dims} dimensions")
    embedding = cupy.asarray(embedding)
    if embedding.dtype.kind not in "fiub":
        raise TypeError(f"embedding has dtype {embedding.dtype}, expected real numbers")
    if embedding.shape != (n, n_dims):
        raise ValueError(f"embedding has shape {embedding.shape}, expected ({n}, {n_dims})")
    return cupy.ascontiguousarray(embedding, dtype=np.float32)


def _count_batch(cupy: Any, arrays: DeviceBuckets, codes: Any, embedding: Any, mask: Any, first_row: int) -> int:
    """Rows of a batch that were counted."""
    n, max_rows = len(codes), np.int64(len(arrays.keys))
    found, first = cupy.empty(n, np.int32), cupy.empty(n, np.int32)
    stop = cupy.full(1, n, np.int64)
    grid = (blocks_for(cupy, n, THREADS),)
    keyed = (codes, mask, np.int64(codes.shape[1]), np.int64(n))

    def run(name: str, *arguments: Any, grid: tuple[int] = grid) -> None:
        launch(cupy, "buckets.cu", name, grid, THREADS, arguments)

    run("insert_codes", arrays.slots, np.int64(len(arrays.slots)), arrays.keys, *keyed, found)
    run("mark_firsts", arrays.slots, found, np.int64(n), first)
    rank = cupy.cumsum(first, dtype=np.int32)
    run("claim_rows", arrays.slots, arrays.keys, arrays.used, max_rows, *keyed, found, first, rank, stop)
    _, n_halves, n_dims = arrays.sums.shape
    run(
        "add_rows", arrays.slots, arrays.counts, arrays.half_counts, arrays.sums, arrays.used, max_rows, embedding,
        np.int64(n_halves), np.int64(n_dims), np.int64(n), np.int64(first_row), found, rank, stop,
        grid=(blocks_for(cupy, n, THREADS // WARP),),
    )  # fmt: skip
    return int(stop[0])


def _place_keys(cupy: Any, arrays: DeviceBuckets, mask: Any) -> None:
    """Takes the slots of buckets that found no row back, by placing all that did anew."""
    used = int(arrays.used[0])
    arrays.slots.fill(-1)
    arguments = (
        arrays.slots, np.int64(len(arrays.slots)), arrays.keys, mask, np.int64(arrays.keys.shape[1]), np.int64(used)
    )  # fmt: skip
    launch(cupy, "buckets.cu", "place_keys", (blocks_for(cupy, used, THREADS),), THREADS, arguments)
