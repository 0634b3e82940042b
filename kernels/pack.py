"""Bits of a code: bit b of a row is bit ``b % 64`` of its word ``b // 64``."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from hashstream.kernels._arrays import codes_array
from hashstream.kernels._jit import bare, jit

WORD_BITS = 64


def words_for_bits(n_bits: int) -> int:
    """Number of 64-bit words that hold `n_bits`."""
    return -(-n_bits // WORD_BITS)


@bare
def pack_rows(values, n_bits, codes):  # type: ignore[no-untyped-def]
    """Sets `codes` from the signs of the first `n_bits` columns of `values`."""
    for row in range(len(codes)):
        for word in range(codes.shape[1]):
            part = values[row, word * 64 : min(n_bits, word * 64 + 64)]
            bits = np.uint64(0)
            if len(part) == 64:  # a fixed length becomes vector instructions
                for b in range(64):
                    bits |= np.uint64(part[b] > 0) << np.uint64(b)
            else:
                for b in range(len(part)):
                    bits |= np.uint64(part[b] > 0) << np.uint64(b)
            codes[row, word] = bits


@bare
def _unpack_rows(codes, values):  # type: ignore[no-untyped-def]
    for row in range(len(values)):
        for b in range(values.shape[1]):
            values[row, b] = (codes[row, b >> 6] >> np.uint64(b & 63)) & np.uint64(1)


def pack_bits(values: Any) -> NDArray[np.uint64]:
    """Codes from signs.

    Parameters
    ----------
    values : (n, n_bits) float32 or bool
        Bit b of a code is ``values[:, b] > 0``. NaN gives 0.

    Returns
    -------
    (n, ceil(n_bits / 64)) uint64

    Raises
    ------
    TypeError
        `values` is neither float32 nor bool.
    ValueError
        `values` does not have two dimensions.
    """
    values = np.asarray(values)
    if values.dtype not in (np.dtype(np.float32), np.dtype(bool)):
        raise TypeError(f"values has dtype {values.dtype}, expected float32 or bool")
    if values.ndim != 2:
        raise ValueError(f"values has {values.ndim} dimensions, expected 2")
    values = np.ascontiguousarray(values)
    if values.dtype == bool:
        values = values.view(np.uint8)
    codes = np.zeros((values.shape[0], words_for_bits(values.shape[1])), np.uint64)
    pack_rows(values, values.shape[1], codes)
    return codes


def unpack_bits(codes: Any, n_bits: int) -> NDArray[np.uint8]:
    """The first `n_bits` bits of codes as bytes 0 and 1.

    Parameters
    ----------
    codes : (n, n_words) uint64
    n_bits : int

    Returns
    -------
    (n, n_bits) uint8

    Raises
    ------
    TypeError
        `codes` is not uint64.
    ValueError
        `codes` does not have two dimensions or has fewer than `n_bits` bits.
    """
    codes = codes_array(codes)
    if not 0 <= n_bits <= codes.shape[1] * WORD_BITS:
        raise ValueError(f"n_bits is {n_bits}, expected 0 to {codes.shape[1] * WORD_BITS}")
    values = np.empty((len(codes), n_bits), np.uint8)
    _unpack_rows(codes, values)
    return values


@jit
def _count_set(codes, groups, counts):  # type: ignore[no-untyped-def]
    for row in range(len(codes)):
        group = groups[row]
        if group < 0:
            continue
        for word in range(codes.shape[1]):
            bits = codes[row, word]
            part = counts[group, word * 64 : word * 64 + 64]
            for b in range(64):  # a fixed length becomes vector instructions
                part[b] += np.int64((bits >> np.uint64(b)) & np.uint64(1))


def count_set_bits(codes: Any, groups: Any, n_groups: int, n_bits: int) -> NDArray[np.int64]:
    """In how many codes of each group each bit is set.

    Parameters
    ----------
    codes : (n, n_words) uint64
    groups : (n,) integer
        The group of each code; those below 0 are left out.
    n_groups, n_bits : int

    Returns
    -------
    (n_groups, n_bits) int64

    Raises
    ------
    TypeError
        `codes` is not uint64, or `groups` are no integers.
    ValueError
        Shapes that do not fit, a group that is not below `n_groups`, or codes of fewer than `n_bits` bits.
    """
    codes, groups = codes_array(codes), np.asarray(groups)
    if groups.dtype.kind not in "iu":
        raise TypeError(f"groups has dtype {groups.dtype}, expected an integer dtype")
    if groups.shape != (len(codes),):
        raise ValueError(f"groups has shape {groups.shape}, expected ({len(codes)},), one for each code")
    if len(groups) and int(groups.max()) >= n_groups:
        raise ValueError(f"groups goes up to {int(groups.max())}, expected less than {n_groups}")
    if not 0 <= n_bits <= codes.shape[1] * WORD_BITS:
        raise ValueError(f"n_bits is {n_bits}, expected 0 to {codes.shape[1] * WORD_BITS}")
    counts = np.zeros((n_groups, codes.shape[1] * WORD_BITS), np.int64)
    _count_set(codes, np.ascontiguousarray(groups, dtype=np.int64), counts)
    return counts[:, :n_bits]


def prefix_mask(n_bits: int, n_words: int) -> NDArray[np.uint64]:
    """The words whose lowest `n_bits` bits are 1: a code and-ed with it is the bucket of that length.

    Returns
    -------
    (n_words,) uint64

    Raises
    ------
    ValueError
        `n_bits` is negative or more than the words hold.
    """
    if n_words < 1 or not 0 <= n_bits <= n_words * WORD_BITS:
        raise ValueError(f"n_bits is {n_bits} of {n_words} words, expected 0 to {n_words * WORD_BITS}")
    ones = [(1 << min(WORD_BITS, max(0, n_bits - WORD_BITS * word))) - 1 for word in range(n_words)]
    return np.array(ones, dtype=np.uint64)
