"""What every public kernel does first: check its arrays, bring them to the few types that are compiled, share rows."""

from __future__ import annotations

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

T = TypeVar("T")

_FLOAT32_EXACT = 1 << 24  # every integer up to here is a float32


def csr_arrays(indptr: Any, indices: Any, data: Any) -> tuple[NDArray[Any], NDArray[Any], NDArray[Any]]:
    """The three arrays of CSR rows, contiguous and in the types that the kernels are compiled for.

    Returns
    -------
    indptr : (n + 1,) int64
    indices : (nnz,) uint16 or int32
        A value that int32 cannot hold becomes -1, which the row check reports as out of range.
    data : (nnz,) uint8, uint16, float32 or float64
        The smallest of these that holds the values exactly (float64 for integers above 2**53 rounds).

    Raises
    ------
    TypeError
        An array has a dtype of the wrong kind.
    ValueError
        The shapes do not fit, or `indptr` does not rise from 0 to the number of stored values.
    """
    indptr, indices, data = np.asarray(indptr), np.asarray(indices), np.asarray(data)
    for name, array in (("indptr", indptr), ("indices", indices), ("data", data)):
        if array.ndim != 1:
            raise ValueError(f"{name} has {array.ndim} dimensions, expected 1")
    for name, array in (("indptr", indptr), ("indices", indices)):
        if array.dtype.kind not in "iu":
            raise TypeError(f"{name} has dtype {array.dtype}, expected an integer dtype")
    if data.dtype.kind not in "iufb" or data.dtype.itemsize > 8:
        raise TypeError(f"data has dtype {data.dtype}, expected integers or floats of at most 64 bits")
    if len(indices) != len(data):
        raise ValueError(f"indices has {len(indices)} values and data {len(data)}, expected as many")
    if len(indptr) == 0 or indptr[0] != 0 or indptr[-1] != len(indices):
        ends = f"{indptr[0]} to {indptr[-1]}" if len(indptr) else "no value at all"
        raise ValueError(f"indptr goes from {ends}, expected 0 to {len(indices)}, the number of stored values")
    indptr = np.ascontiguousarray(indptr, dtype=np.int64)
    if np.any(indptr[1:] < indptr[:-1]):
        row = int(np.flatnonzero(indptr[1:] < indptr[:-1])[0])
        raise ValueError(f"indptr falls at row {row}: {indptr[row]} to {indptr[row + 1]}, expected it never to fall")
    return indptr, _as_indices(indices), _as_counts(data)


def _as_indices(indices: NDArray[Any]) -> NDArray[Any]:
    if indices.dtype == np.uint16:
        return np.ascontiguousarray(indices, dtype=np.uint16)
    if indices.dtype.itemsize < 4 or indices.dtype == np.int32:
        return np.ascontiguousarray(indices, dtype=np.int32)
    if len(indices) and (int(indices.max()) > np.iinfo(np.int32).max or int(indices.min()) < 0):
        indices = np.where((indices >= 0) & (indices <= np.iinfo(np.int32).max), indices, -1)
    return np.ascontiguousarray(indices, dtype=np.int32)


def _as_counts(data: NDArray[Any]) -> NDArray[Any]:
    if data.dtype.kind == "b":
        return np.ascontiguousarray(data, dtype=np.uint8)
    if data.dtype.kind == "f":
        return np.ascontiguousarray(data, dtype=np.float64 if data.dtype.itemsize == 8 else np.float32)
    if data.dtype.kind == "u" and data.dtype.itemsize <= 2:
        return np.ascontiguousarray(data, dtype=np.dtype(f"u{data.dtype.itemsize}"))
    low, high = (int(data.min()), int(data.max())) if len(data) else (0, 0)
    if low >= 0 and high <= np.iinfo(np.uint16).max:
        return np.ascontiguousarray(data, dtype=np.uint16)
    exact = low >= -_FLOAT32_EXACT and high <= _FLOAT32_EXACT
    return np.ascontiguousarray(data, dtype=np.float32 if exact else np.float64)


def codes_array(codes: Any, name: str = "codes", n_words: int | None = None) -> NDArray[np.uint64]:
    """`codes` as a contiguous (n, n_words) uint64 array.

    Raises
    ------
    TypeError
        The dtype is not uint64.
    ValueError
        The array does not have two dimensions, has no words, or not `n_words` of them.
    """
    codes = np.asarray(codes)
    if codes.dtype != np.uint64:
        raise TypeError(f"{name} has dtype {codes.dtype}, expected uint64")
    if codes.ndim != 2 or codes.shape[1] == 0:
        raise ValueError(f"{name} has shape {codes.shape}, expected (rows, words) with at least one word")
    if n_words is not None and codes.shape[1] != n_words:
        raise ValueError(f"{name} has {codes.shape[1]} words a row, expected {n_words}")
    return np.ascontiguousarray(codes, dtype=np.uint64)


def float_matrix(values: Any, name: str, dtype: type = np.float32) -> NDArray[Any]:
    """`values` as a contiguous two-dimensional array of `dtype`, refusing what is not real numbers.

    Raises
    ------
    TypeError
        The dtype is not of real numbers.
    ValueError
        The array does not have two dimensions.
    """
    values = np.asarray(values)
    if values.dtype.kind not in "fiub":
        raise TypeError(f"{name} has dtype {values.dtype}, expected real numbers")
    if values.ndim != 2:
        raise ValueError(f"{name} has {values.ndim} dimensions, expected 2")
    return np.ascontiguousarray(values, dtype=dtype)


def share_rows(
    work: Callable[[int, int], T], n_rows: int, n_threads: int, *, multiple: int = 1, blocks_each: int = 1
) -> list[T]:
    """The results of ``work(start, stop)`` on contiguous blocks of rows, in the order of the rows.

    There are `blocks_each` blocks a thread, which a thread takes as it is done with others: several, so that one thread
    that is held up does not hold up all. They begin at multiples of `multiple`. No rows give one call with (0, 0).

    Raises
    ------
    ValueError
        `n_threads` is below 1.
    """
    if n_threads < 1:
        raise ValueError(f"n_threads is {n_threads}, expected at least 1")
    step = -(-n_rows // (n_threads * blocks_each))
    step = max(multiple, -(-step // multiple) * multiple)
    blocks = [(start, min(start + step, n_rows)) for start in range(0, n_rows, step)] or [(0, 0)]
    if len(blocks) == 1:
        return [work(*blocks[0])]
    return list(_pool(n_threads).map(lambda block: work(*block), blocks))


@cache
def _pool(n_threads: int) -> ThreadPoolExecutor:
    """Threads that stay: starting them anew for each chunk takes longer than a small chunk."""
    return ThreadPoolExecutor(n_threads, thread_name_prefix="hashstream-kernel")


if hasattr(os, "register_at_fork"):
    # A forked process has none of the threads of its parent.
    os.register_at_fork(after_in_child=_pool.cache_clear)
