"""The nearest cells of a query, exactly: reference codes with their counts, walked in the order of Hamming distance.

A reference is its distinct codes, how many cells have each, and for some categories (types, batches) how many of these
cells are in them, as sparse rows. All cells that are as near as the k-th nearest belong to the answer, so that it does
not depend on the order of the cells.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from hashstream.kernels._arrays import codes_array, float_matrix, share_rows
from hashstream.kernels._intrinsics import below_mask, trailing_zeros
from hashstream.kernels._jit import jit
from hashstream.kernels.hamming import _block_distances
from hashstream.kernels.pack import pack_bits

BLOCK = 2048  # codes whose distances to a query are kept at a time
QUERIES = 16  # queries that share the codes of a block while these are in the first-level cache
_FAR = np.uint16(0xFFFF)  # further than any code


@dataclass(frozen=True, eq=False)
class CountedCodes:
    """Codes of reference cells, and how many cells of each category have each code.

    Attributes
    ----------
    codes : (n, n_words) uint64
        Rows may repeat.
    counts : (n,) int64
        Cells with the code, at least 1.
    starts : (n + 1,) int64
        Where the entries of each code begin; the last is their number.
    categories : (n_entries,) int32
    amounts : (n_entries,) int64
        Cells of the category.
    n_categories : int

    Raises
    ------
    TypeError, ValueError
        Arrays of the wrong kind or shape, counts below 1, or categories that are not there.
    """

    codes: NDArray[np.uint64]
    counts: NDArray[np.int64]
    starts: NDArray[np.int64]
    categories: NDArray[np.int32]
    amounts: NDArray[np.int64]
    n_categories: int

    def __post_init__(self) -> None:
        put = object.__setattr__
        put(self, "codes", codes_array(self.codes))
        for name, dtype in (
            ("counts", np.int64),
            ("starts", np.int64),
            ("categories", np.int32),
            ("amounts", np.int64),
        ):
            array = np.asarray(getattr(self, name))
            if array.ndim != 1 or array.dtype.kind not in "iu":
                raise ValueError(f"{name} has shape {array.shape} and dtype {array.dtype}, expected a row of integers")
            put(self, name, np.ascontiguousarray(array, dtype=dtype))
        n, n_entries = len(self.codes), len(self.categories)
        if self.codes.shape[1] * 64 >= int(_FAR):
            raise ValueError(f"codes have {self.codes.shape[1]} words, expected at most 1,023")
        if len(self.counts) != n or len(self.starts) != n + 1 or len(self.amounts) != n_entries:
            raise ValueError(
                f"{n} codes with {len(self.counts)} counts and {len(self.starts)} starts, {n_entries} categories with "
                f"{len(self.amounts)} amounts; expected one of each, and one start more than codes"
            )
        if self.starts[0] != 0 or self.starts[-1] != n_entries or np.any(self.starts[1:] < self.starts[:-1]):
            raise ValueError(f"starts must rise from 0 to {n_entries}, the number of entries")
        if n and int(self.counts.min()) < 1:
            raise ValueError(
                f"code {int(self.counts.argmin())} has {int(self.counts.min())} cells, expected at least 1"
            )
        if n_entries and not 0 <= int(self.categories.min()) <= int(self.categories.max()) < self.n_categories:
            raise ValueError(
                f"categories go from {int(self.categories.min())} to {int(self.categories.max())}, expected 0 to "
                f"{self.n_categories - 1}"
            )

    @property
    def n_codes(self) -> int:
        return len(self.codes)


class NearestCells(NamedTuple):
    """The cells nearest to each of n queries.

    Attributes
    ----------
    radius : (n,) int32 or float64
        Distance of the furthest of them: bits that differ, or the asymmetric distance.
    n_cells : (n,) int64
        How many there are: at least k, or all of the reference.
    composition : (n, n_categories) int64
        How many of them are in each category.
    """

    radius: NDArray[Any]
    n_cells: NDArray[np.int64]
    composition: NDArray[np.int64]


@jit
def _find_radii(queries, codes, counts, k, radii, n_cells, n_codes, nearest):  # type: ignore[no-untyped-def]
    """The radius that holds k cells, for a few queries; `nearest` gets the smallest distance in each block of codes.

    The radius starts at its largest and is drawn in as cells come to be known, so that fewer and fewer codes are
    within it and need to be looked at one by one.
    """
    n_bits = 64 * codes.shape[1]
    cells_at = np.zeros((len(queries), n_bits + 1), np.int64)
    codes_at = np.zeros((len(queries), n_bits + 1), np.int64)
    distances, flat = np.full(BLOCK, _FAR), codes.ravel()
    radii[:] = n_bits
    n_cells[:] = 0
    for block in range(nearest.shape[1]):
        start = block * BLOCK
        n = min(BLOCK, len(codes) - start)
        distances[n:] = _FAR
        for q in range(len(queries)):
            smallest = _block_distances(queries, q, flat, start, n, distances)
            nearest[q, block] = smallest
            radius = radii[q]
            if smallest > radius:
                continue
            for at in range(0, n, 64):
                mask = below_mask(distances, at, np.uint16(radius))
                while mask:
                    code = at + trailing_zeros(mask)
                    mask &= mask - np.uint64(1)
                    cells_at[q, distances[code]] += counts[start + code]
                    codes_at[q, distances[code]] += 1
                    n_cells[q] += counts[start + code]
            while radius > 0 and n_cells[q] - cells_at[q, radius] >= k:
                n_cells[q] -= cells_at[q, radius]
                radius -= 1
            radii[q] = radius
    for q in range(len(queries)):
        while radii[q] > 0 and cells_at[q, radii[q]] == 0:  # fewer cells than k: the furthest of all
            radii[q] -= 1
        n_codes[q] = codes_at[q, : radii[q] + 1].sum()


@jit
def _add_compositions(queries, codes, starts, categories, amounts, radii, nearest, out):  # type: ignore[no-untyped-def]
    """Adds up the entries of the codes within each query's radius."""
    distances, flat = np.full(BLOCK, _FAR), codes.ravel()
    for block in range(nearest.shape[1]):
        start = block * BLOCK
        n = min(BLOCK, len(codes) - start)
        distances[n:] = _FAR
        for q in range(len(queries)):
            if nearest[q, block] > radii[q]:
                continue
            _block_distances(queries, q, flat, start, n, distances)
            for at in range(0, n, 64):
                mask = below_mask(distances, at, np.uint16(radii[q]))
                while mask:
                    code = start + at + trailing_zeros(mask)
                    mask &= mask - np.uint64(1)
                    for entry in range(starts[code], starts[code + 1]):
                        out[q, categories[entry]] += amounts[entry]


@jit
def _byte_costs(weights, costs):  # type: ignore[no-untyped-def]
    """For each byte of a code and each pattern of differing bits the sum of their weights, lowest bit first."""
    for byte in range(len(costs)):
        costs[byte, 0] = 0.0
        for bit in range(8):
            b = 8 * byte + bit
            weight = weights[b] if b < len(weights) else 0.0
            for pattern in range(1 << bit):
                costs[byte, (1 << bit) + pattern] = costs[byte, pattern] + weight


@jit
def _rank_candidates(  # type: ignore[no-untyped-def]
    queries, q, weights, codes, counts, starts, categories, amounts, k, radius, n_codes, nearest, out
):
    """The k nearest by weighted distance among the codes within the radius: their largest distance, and their cells."""
    n_words = codes.shape[1]
    costs = np.empty((8 * n_words, 256))
    _byte_costs(weights, costs)
    candidates, found = np.empty(n_codes, np.int64), 0
    weighted = np.empty(n_codes)
    distances, flat = np.full(BLOCK, _FAR), codes.ravel()
    for block in range(len(nearest)):
        if nearest[block] > radius:
            continue
        start = block * BLOCK
        n = min(BLOCK, len(codes) - start)
        distances[n:] = _FAR
        _block_distances(queries, q, flat, start, n, distances)
        for at in range(0, n, 64):
            mask = below_mask(distances, at, np.uint16(radius))
            while mask:
                code = start + at + trailing_zeros(mask)
                mask &= mask - np.uint64(1)
                total = 0.0
                for word in range(n_words):
                    differing = codes[code, word] ^ queries[q, word]
                    for byte in range(8):
                        total += costs[8 * word + byte, (differing >> np.uint64(8 * byte)) & np.uint64(255)]
                candidates[found], weighted[found] = code, total
                found += 1
    n_cells, furthest, last = 0, 0.0, 0
    order = np.argsort(weighted)
    while last < found and (n_cells < k or weighted[order[last]] == furthest):
        code = candidates[order[last]]
        furthest = weighted[order[last]]
        n_cells += counts[code]
        for entry in range(starts[code], starts[code + 1]):
            out[categories[entry]] += amounts[entry]
        last += 1
    return furthest, n_cells


def nearest_cells(queries: Any, reference: CountedCodes, k: int, *, n_threads: int = 1) -> NearestCells:
    """The k nearest reference cells of each query in Hamming distance, and all that are as near as the k-th.

    Parameters
    ----------
    queries : (n_queries, n_words) uint64
    reference : CountedCodes
    k : int
        Cells; where the reference has fewer, all of them.
    n_threads : int
        Threads that share the queries; the result is the same for any number.

    Returns
    -------
    NearestCells
        The radius is in bits, int32; 0 for a reference without cells.

    Raises
    ------
    TypeError, ValueError
        Arrays of the wrong kind or shape, or k below 1.
    """
    queries = codes_array(queries, "queries", n_words=reference.codes.shape[1])
    _check_k(k)
    found = _empty(len(queries), reference, np.int32)
    each = _sparse_rows(reference)

    def work(start: int, stop: int) -> None:
        for first, some in _groups(queries, start, stop):
            rows = slice(first, first + len(some))
            nearest = _nearest_by_block(len(some), reference)
            n_codes = np.empty(len(some), np.int64)
            _find_radii(
                some, reference.codes, reference.counts, k, found.radius[rows], found.n_cells[rows], n_codes, nearest
            )
            _add_compositions(some, reference.codes, *each, found.radius[rows], nearest, found.composition[rows])

    if reference.n_codes:
        share_rows(work, len(queries), n_threads)
    return found


def nearest_cells_asymmetric(
    margins: Any, reference: CountedCodes, k: int, *, n_candidates: int, n_threads: int = 1
) -> NearestCells:
    """The k nearest reference cells by asymmetric distance among those that are nearest in Hamming distance.

    The query is not binarised: a bit that differs costs the absolute value of the query's projection, that is, its
    distance from the threshold at which the bit would turn. This is the lower bound by which Gordo et al. (Asymmetric
    distances for binary embeddings, TPAMI 2014) compare a vector with a code, added up instead of squared (see Dong,
    Charikar & Li, Asymmetric distance estimation with sketches, SIGIR 2008).

    Parameters
    ----------
    margins : (n_queries, n_bits) float
        Projections of the queries: bit b of their code is ``margins[:, b] > 0``.
    reference : CountedCodes
    k : int
        Cells; those that are as near as the k-th belong to them.
    n_candidates : int
        Cells nearest in Hamming distance, those as near as the last included, that are ranked. At least k.
    n_threads : int

    Returns
    -------
    NearestCells
        The radius is the asymmetric distance, float64.

    Raises
    ------
    TypeError, ValueError
        Arrays of the wrong kind or shape, margins that are not finite, k below 1, fewer candidates than k.
    """
    margins = float_matrix(margins, "margins")
    _check_k(k)
    if n_candidates < k:
        raise ValueError(f"n_candidates is {n_candidates}, expected at least k = {k}")
    if not np.isfinite(margins).all():
        raise ValueError(f"row {int(np.flatnonzero(~np.isfinite(margins).all(axis=1))[0])} of margins is not finite")
    queries = codes_array(pack_bits(margins), "margins", n_words=reference.codes.shape[1])
    weights = np.abs(margins).astype(np.float64)
    found = _empty(len(queries), reference, np.float64)
    each = _sparse_rows(reference)

    def work(start: int, stop: int) -> None:
        for first, some in _groups(queries, start, stop):
            nearest = _nearest_by_block(len(some), reference)
            radii = np.empty(len(some), np.int32)
            within, n_codes = np.empty((2, len(some)), np.int64)
            _find_radii(some, reference.codes, reference.counts, n_candidates, radii, within, n_codes, nearest)
            for q in range(len(some)):
                row = first + q
                found.radius[row], found.n_cells[row] = _rank_candidates(
                    some, q, weights[row], reference.codes, reference.counts, *each, k, radii[q], n_codes[q],
                    nearest[q], found.composition[row],
                )  # fmt: skip

    if reference.n_codes:
        share_rows(work, len(queries), n_threads)
    return found


def _check_k(k: int) -> None:
    if k < 1:
        raise ValueError(f"k is {k}, expected at least 1")


def _empty(n_queries: int, reference: CountedCodes, radius_dtype: Any) -> NearestCells:
    return NearestCells(
        np.zeros(n_queries, radius_dtype),
        np.zeros(n_queries, np.int64),
        np.zeros((n_queries, reference.n_categories), np.int64),
    )


def _sparse_rows(reference: CountedCodes) -> tuple[NDArray[np.int64], NDArray[np.int32], NDArray[np.int64]]:
    return reference.starts, reference.categories, reference.amounts


def _groups(queries: NDArray[np.uint64], start: int, stop: int) -> list[tuple[int, NDArray[np.uint64]]]:
    return [(first, queries[first : min(first + QUERIES, stop)]) for first in range(start, stop, QUERIES)]


def _nearest_by_block(n_queries: int, reference: CountedCodes) -> NDArray[np.uint16]:
    return np.empty((n_queries, -(-reference.n_codes // BLOCK)), np.uint16)
