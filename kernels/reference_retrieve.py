"""What the kernels of `retrieve`, `largest` and `sorted_counts` mean: plain NumPy, the same names and signatures."""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hashstream.kernels.reference import hamming_distances, pack_bits
from hashstream.kernels.retrieve import CountedCodes, NearestCells


def _take(reference: CountedCodes, codes: NDArray[np.intp]) -> tuple[int, NDArray[np.int64]]:
    """Cells of some codes, and their composition."""
    composition = np.zeros(reference.n_categories, np.int64)
    for code in codes:
        for entry in range(reference.starts[code], reference.starts[code + 1]):
            composition[reference.categories[entry]] += reference.amounts[entry]
    return int(reference.counts[codes].sum()), composition


def _nearest(distances: NDArray[Any], counts: NDArray[np.int64], k: int) -> Any:
    """The distance of the k-th nearest cell, or of the furthest where there are fewer."""
    of_cells = np.sort(np.repeat(distances, counts))
    return of_cells[min(k, len(of_cells)) - 1]


def nearest_cells(queries: Any, reference: CountedCodes, k: int, *, n_threads: int = 1) -> NearestCells:
    """The distance of every cell, sorted; all codes up to the k-th of them."""
    n = len(queries)
    found = NearestCells(np.zeros(n, np.int32), np.zeros(n, np.int64), np.zeros((n, reference.n_categories), np.int64))
    if reference.n_codes:
        for q, distances in enumerate(hamming_distances(queries, reference.codes)):
            found.radius[q] = _nearest(distances, reference.counts, k)
            found.n_cells[q], found.composition[q] = _take(reference, np.flatnonzero(distances <= found.radius[q]))
    return found


def asymmetric_distances(margins: Any, codes: NDArray[np.uint64]) -> NDArray[np.float64]:
    """Sum of the absolute margins of the bits that differ, byte by byte: (n_queries, n) float64."""
    weights = np.zeros((len(margins), 64 * codes.shape[1]))
    weights[:, : margins.shape[1]] = np.abs(np.asarray(margins, dtype=np.float32))
    queries = pack_bits(np.asarray(margins, dtype=np.float32))
    total = np.zeros((len(margins), len(codes)))
    for byte in range(8 * codes.shape[1]):
        part = np.zeros_like(total)
        for b in range(8 * byte, 8 * byte + 8):
            word, bit = b // 64, np.uint64(b % 64)
            differs = ((queries[:, None, word] ^ codes[None, :, word]) >> bit) & np.uint64(1)
            part = part + np.where(differs, weights[:, None, b], 0.0)
        total = total + part
    return total


def nearest_cells_asymmetric(
    margins: Any, reference: CountedCodes, k: int, *, n_candidates: int, n_threads: int = 1
) -> NearestCells:
    """Of the candidates in Hamming distance all up to the k-th in asymmetric distance."""
    n = len(margins)
    found = NearestCells(np.zeros(n), np.zeros(n, np.int64), np.zeros((n, reference.n_categories), np.int64))
    if reference.n_codes == 0:
        return found
    queries = pack_bits(np.asarray(margins, dtype=np.float32))
    candidates_of = nearest_cells(queries, reference, n_candidates).radius
    weighted = asymmetric_distances(margins, reference.codes)
    for q, distances in enumerate(hamming_distances(queries, reference.codes)):
        candidates = np.flatnonzero(distances <= candidates_of[q])
        found.radius[q] = _nearest(weighted[q, candidates], reference.counts[candidates], k)
        chosen = candidates[weighted[q, candidates] <= found.radius[q]]
        found.n_cells[q], found.composition[q] = _take(reference, chosen)
    return found


def count_keys(keys: Any) -> tuple[NDArray[np.uint64], NDArray[np.int64]]:
    """Rows counted one by one, sorted with the last word first."""
    return _sorted(Counter(tuple(map(int, key)) for key in keys), keys.shape[1])


def merge_counts(keys: Any, counts: Any, other_keys: Any, other_counts: Any) -> Any:
    """Both tables counted into one."""
    total: Counter[tuple[int, ...]] = Counter()
    for table in (zip(keys, counts, strict=True), zip(other_keys, other_counts, strict=True)):
        for key, count in table:
            total[tuple(map(int, key))] += int(count)
    return _sorted(total, keys.shape[1])


def _sorted(total: Counter[tuple[int, ...]], n_words: int) -> tuple[NDArray[np.uint64], NDArray[np.int64]]:
    keys = sorted(total, key=lambda key: key[::-1])
    return (
        np.array(keys, dtype=np.uint64).reshape(len(keys), n_words),
        np.array([total[key] for key in keys], dtype=np.int64),
    )


def first_out_of_order(keys: Any) -> int:
    """The first key whose words, last first, are not above those of the key before."""
    reversed_keys = [tuple(map(int, key))[::-1] for key in keys]
    return next((row for row in range(1, len(keys)) if reversed_keys[row] <= reversed_keys[row - 1]), -1)


def largest_columns(values: Any, k: int, *, n_threads: int = 1) -> NDArray[np.int32]:
    """See `hashstream.kernels.largest.largest_columns`."""
    values = np.asarray(values, dtype=np.float32)
    return np.argsort(-values, axis=1, kind="stable")[:, :k].astype(np.int32)
