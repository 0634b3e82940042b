"""Column indices out of a Blosc buffer, without the bytes that are zero in all of them.

Byte shuffle puts the first bytes of all elements of a block next to each other, then the second ones, and so on, and
LZ4 compresses each such plane by itself. Where indices are stored in four or eight bytes because SciPy has them so, but
there are at most 65,535 columns, all planes from the third on are zeros. What zeros look like compressed is known, so
these planes are compared instead of decompressed, and the first two are put together where two-byte indices are wanted.

Format: https://github.com/Blosc/c-blosc/blob/main/README_CHUNK_FORMAT.rst
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache

import numpy as np
from numcodecs import lz4
from numpy.typing import NDArray

_VERSION, _LZ4_SPLIT_SHUFFLED = 2, 0b0010_0001
_HEADER, _SIZE = 16, 4
_LEAST_SPLIT = 128  # elements of a block; smaller ones are not split into planes


def low_halves(
    source: NDArray[np.uint8],
    itemsize: int,
    out: NDArray[np.uint16],
    skipped: int,
    room: Callable[[str, int], NDArray[np.uint8]],
) -> bool:
    """Write the elements of a Blosc buffer from `skipped` on into `out`, if this is of the kind known here.

    Parameters
    ----------
    source
        A whole buffer, whose header was checked. It is written over.
    itemsize
        Bytes of an element, 4 or 8.
    out
        For at most as many elements as the buffer has from there on.
    room
        Gives memory of some size for some use.

    Returns
    -------
    bool
        False where the buffer is laid out otherwise, or an element is negative or above 65,535: nothing was done.

    Raises
    ------
    RuntimeError, ValueError
        The buffer contradicts itself, or a plane cannot be decompressed.
    """
    n_bytes, block_bytes, _ = (int(one) for one in source[4:_HEADER].view("<u4"))
    known = source[0] == _VERSION and source[2] == _LZ4_SPLIT_SHUFFLED and source[3] == itemsize
    if not known or block_bytes < _LEAST_SPLIT * itemsize or block_bytes % itemsize or n_bytes % block_bytes:
        return False
    n = block_bytes // itemsize
    zeros, as_stored = _zeros(n)
    raw = source.data
    blocks = range(skipped // n, -(-(skipped + len(out)) // n))
    starts = np.frombuffer(raw[_HEADER : _HEADER + _SIZE * (n_bytes // block_bytes)], "<u4")[blocks.start : blocks.stop]
    found = [_planes(raw, int(start), itemsize) for start in starts]
    for planes in found:
        if len(planes) < itemsize or any(bytes(raw[a + _SIZE : b]) != as_stored for a, b in planes[2:]):
            return False

    def plane(begin: int, end: int, use: str) -> NDArray[np.uint8]:
        stored = source[begin + _SIZE : end]
        if len(stored) == n:  # did not become smaller
            return stored
        if bytes(stored) == as_stored:
            return zeros
        # numcodecs wants to be told, in the same place, how long the plane is, not how long it is compressed.
        source[begin : begin + _SIZE] = np.frombuffer(n.to_bytes(_SIZE, "little"), np.uint8)
        whole = room(use, n)
        lz4.decompress(raw[begin:end], whole)
        return whole

    from hashstream.kernels.columns import join_bytes  # not loaded by whoever reads no wide indices

    for number, (low, high) in zip(blocks, (planes[:2] for planes in found), strict=True):
        first = number * n
        part = slice(max(skipped - first, 0), min(skipped + len(out) - first, n))
        to = out[first + part.start - skipped : first + part.stop - skipped]
        join_bytes(plane(*low, "low")[part], plane(*high, "high")[part], to)
    return True


def _planes(raw: memoryview, start: int, n: int) -> list[tuple[int, int]]:
    """Where the planes of a block begin, with their sizes, and end; fewer than `n` where one would end outside."""
    found: list[tuple[int, int]] = []
    for _ in range(n):
        end = start + _SIZE + int.from_bytes(raw[start : start + _SIZE], "little")
        if not start + _SIZE < end <= len(raw):
            break
        found.append((start, end))
        start = end
    return found


@lru_cache(4)
def _zeros(n: int) -> tuple[NDArray[np.uint8], bytes]:
    """So many zeros, and what LZ4 makes of them."""
    zeros = np.zeros(n, np.uint8)
    return zeros, bytes(lz4.compress(zeros))[_SIZE:]
