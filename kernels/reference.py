"""What each kernel means, in plain NumPy: slow, short, and with the same names and signatures.

The tests hold every kernel to these, bit for bit where floats are involved: each product, sum and quotient below is one
IEEE operation, in the order in which the kernels do it.
"""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hashstream.kernels import _exp
from hashstream.kernels.buckets import FIXED_POINT_LIMIT, FIXED_POINT_SCALE, BucketArrays
from hashstream.kernels.encode import EncodedRows, EncoderWeights
from hashstream.kernels.group_sums import GROUP_SUM_SCALE, GroupSums
from hashstream.kernels.moments import GeneMoments
from hashstream.kernels.rows import RowFlag

_LN2 = 0.6931471805599453
_SQRT_HALF_BITS = np.int64(0x3FE6A09E667F3BCD)
_MANTISSA = np.int64((1 << 52) - 1)


def log1p_(x: Any) -> Any:
    """log(1 + x) of float64 x >= 0 by the kernels' own sequence of operations."""
    x = np.asarray(x, dtype=np.float64)
    u = 1.0 + x
    above = u.view(np.int64) - _SQRT_HALF_BITS
    k = above >> 52
    m = ((above & _MANTISSA) + _SQRT_HALF_BITS).view(np.float64)
    f = np.where(k == 0, x, m - 1.0)
    s = f / (2.0 + f)
    z = s * s
    p = z * (1.0 / 15.0) + (1.0 / 13.0)
    for divisor in (11.0, 9.0, 7.0, 5.0, 3.0):
        p = p * z + (1.0 / divisor)
    p = p * z
    t = s + s
    return k.astype(np.float64) * _LN2 + (t + t * p)


def check_rows(indptr: Any, indices: Any, data: Any, n_genes: int) -> NDArray[np.uint8]:
    """The first thing that is wrong with each row."""
    flags = np.zeros(len(indptr) - 1, np.uint8)
    for row in range(len(flags)):
        columns = np.asarray(indices[indptr[row] : indptr[row + 1]]).astype(object)
        counts = np.asarray(data[indptr[row] : indptr[row + 1]], dtype=np.float64)
        if any(not 0 <= column < n_genes for column in columns):
            flags[row] = RowFlag.INDEX_RANGE
        elif any(right <= left for left, right in pairwise(columns)):
            flags[row] = RowFlag.INDEX_ORDER
        elif not np.isfinite(counts).all() or abs(counts.sum()) > 2.0**53:
            flags[row] = RowFlag.NOT_FINITE
        elif (counts < 0).any():
            flags[row] = RowFlag.NEGATIVE
        elif (counts != np.floor(counts)).any():
            flags[row] = RowFlag.NOT_INTEGER
        elif counts.sum() == 0:
            flags[row] = RowFlag.EMPTY
    return flags


def row_totals(indptr: Any, indices: Any, data: Any, n_genes: int) -> tuple[NDArray[np.float64], NDArray[np.uint8]]:
    """Sums of the counts of rows that are right, 0 of others, and `check_rows`."""
    flags = check_rows(indptr, indices, data, n_genes)
    return _totals(indptr, data, flags), flags


def _totals(indptr: Any, data: Any, flags: NDArray[np.uint8]) -> NDArray[np.float64]:
    totals = np.zeros(len(flags))
    for row in np.flatnonzero(flags == RowFlag.OK):
        totals[row] = np.asarray(data[indptr[row] : indptr[row + 1]], dtype=np.float64).sum()
    return totals


def _affine(
    rows: NDArray[np.intp], values: NDArray[np.float32], weight: NDArray[np.float32], bias: NDArray[np.float32]
) -> NDArray[np.float32]:
    """bias + sum of values[k] * weight[rows[k]], one float32 operation after the other."""
    acc = bias.copy()
    for row, value in zip(rows, values, strict=True):
        acc = acc + value * weight[row]
    return acc


def affine_rows(inputs: Any, weight: Any, bias: Any) -> NDArray[np.float32]:
    """bias + inputs @ weight, one row and one float32 operation after the other."""
    inputs, weight, bias = (np.asarray(values, dtype=np.float32) for values in (inputs, weight, bias))
    everything = np.arange(len(weight))
    return np.array([_affine(everything, row, weight, bias) for row in inputs]).reshape(len(inputs), len(bias))


def _exp_parts(a: NDArray[np.float32]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """``2**k`` and ``exp(r) - 1`` with ``exp(-a) = 2**k exp(r)``."""
    shifted = _exp.ROUNDER - a * _exp.LOG2_E
    k = shifted - _exp.ROUNDER
    s = ((shifted.view(np.int32) << 23) + np.ones_like(a).view(np.int32)).view(np.float32)
    r = (-a - k * _exp.LN2_HIGH) - k * _exp.LN2_LOW
    q = np.full_like(r, _exp.SERIES[0])
    for coefficient in _exp.SERIES[1:]:
        q = q * r + coefficient
    return s, q * (r * r) + r


def sigmoid(x: Any) -> NDArray[np.float32]:
    """1 / (1 + exp(-x)) of float32 x by the kernels' own sequence of operations."""
    x = np.asarray(x, dtype=np.float32)
    a = np.where(np.isnan(x), _exp.ZERO, np.abs(x))
    s, p = _exp_parts(np.minimum(a, _exp.LARGEST))
    e = np.where(a <= _exp.LARGEST, s * p + s, _exp.ZERO)
    return np.asarray(np.where(x < 0, e, _exp.ONE) / (_exp.ONE + e), dtype=np.float32)


def tanh(x: Any) -> NDArray[np.float32]:
    """tanh(x) of float32 x by the kernels' own sequence of operations."""
    x = np.asarray(x, dtype=np.float32)
    a = np.where(np.isnan(x), _exp.ZERO, np.abs(x))
    s, p = _exp_parts(np.minimum(a, _exp.LARGEST / 2) * 2)
    u = s * p + (s - _exp.ONE)
    t = (_exp.ZERO - u) / (_exp.TWO + u)
    return np.where(x < 0, -t, t)


def _activate(values: NDArray[np.float32], activation: str) -> NDArray[np.float32]:
    if activation == "relu":
        return np.where(values > 0, values, np.float32(0))
    if activation == "sigmoid":
        return sigmoid(values)
    return tanh(values) if activation == "tanh" else values


def encode_rows(
    indptr: Any, indices: Any, data: Any, gene_map: Any, weights: EncoderWeights, *, n_threads: int = 1
) -> EncodedRows:
    """Codes and embeddings, row by row."""
    flags = check_rows(indptr, indices, data, len(gene_map))
    totals = _totals(indptr, data, flags)
    embedding = np.zeros((len(flags), weights.n_dims), np.float32)
    codes = np.zeros((len(flags), -(-weights.n_bits // 64)), np.uint64)
    for row in np.flatnonzero(flags < RowFlag.NEGATIVE):
        part = slice(indptr[row], indptr[row + 1])
        counts = np.asarray(data[part], dtype=np.float64)
        genes = np.asarray(gene_map)[np.asarray(indices[part]).astype(np.int64)]
        used = (genes >= 0) & (counts > 0)
        counts, genes = counts[used], genes[used]
        y = np.zeros(0, np.float32)
        if len(counts):
            y = np.minimum(log1p_(counts * (weights.target_sum / totals[row])).astype(np.float32), weights.cap[genes])
        order = np.argsort(genes)
        x, inputs = y[order], genes[order]
        for weight, bias, activation in zip(weights.weights, weights.biases, weights.activations, strict=True):
            x = _activate(_affine(inputs, x, weight, bias), activation)
            inputs = np.arange(len(x))
        embedding[row] = x
        codes[row] = pack_bits(_affine(inputs, x, weights.bit_weight, weights.bit_bias)[None])[0]
    return EncodedRows(codes, embedding, totals, flags)


def pack_bits(values: Any) -> NDArray[np.uint64]:
    """Bit b of a row is ``values[:, b] > 0``."""
    values = np.asarray(values)
    codes = np.zeros((values.shape[0], -(-values.shape[1] // 64)), np.uint64)
    for b in range(values.shape[1]):
        codes[:, b // 64] |= (values[:, b] > 0).astype(np.uint64) << np.uint64(b % 64)
    return codes


def count_set_bits(codes: Any, groups: Any, n_groups: int, n_bits: int) -> NDArray[np.int64]:
    """See `hashstream.kernels.pack.count_set_bits`."""
    bits = unpack_bits(codes, n_bits).astype(np.int64)
    return np.array([bits[np.asarray(groups) == group].sum(axis=0) for group in range(n_groups)])


def unpack_bits(codes: Any, n_bits: int) -> NDArray[np.uint8]:
    """The first bits of codes as bytes 0 and 1."""
    values = np.zeros((len(codes), n_bits), np.uint8)
    for b in range(n_bits):
        values[:, b] = (codes[:, b // 64] >> np.uint64(b % 64)) & np.uint64(1)
    return values


def squared_distances(points: Any, others: Any, *, first_row: int = 0) -> NDArray[np.float64]:
    """See `hashstream.kernels.distances.squared_distances`."""
    points, others = np.asarray(points, dtype=np.float64), np.asarray(others)
    differences = points[others] - points[first_row : first_row + len(others), None]
    total = np.zeros(others.shape)
    for d in range(points.shape[1]):
        total += differences[:, :, d] * differences[:, :, d]
    return total


def prefix_mask(n_bits: int, n_words: int) -> NDArray[np.uint64]:
    """The words whose lowest bits are 1."""
    mask = np.zeros(n_words, np.uint64)
    for b in range(n_bits):
        mask[b // 64] |= np.uint64(1) << np.uint64(b % 64)
    return mask


def fixed_point(embedding: Any) -> NDArray[np.int64]:
    """Embeddings in units of 1 / FIXED_POINT_SCALE, rounded half to even; NaN is 0, far values saturate."""
    values = np.nan_to_num(np.asarray(embedding, dtype=np.float64), nan=0.0, posinf=np.inf, neginf=-np.inf)
    return np.rint(np.clip(values, -FIXED_POINT_LIMIT, FIXED_POINT_LIMIT) * FIXED_POINT_SCALE).astype(np.int64)


def half_of(row: int) -> int:
    """The half, 0 or 1, of the cell in a row of the atlas."""
    h = row
    for factor in (0xFF51AFD7ED558CCD, 0xC4CEB9FE1A85EC53):
        h = ((h ^ (h >> 33)) * factor) % 2**64
    return (h ^ (h >> 33)) & 1


def _add(arrays: BucketArrays, key: NDArray[np.uint64], count: int, half_count: int, total: NDArray[np.int64]) -> bool:
    """Adds to the row of a key, looked for in the keys alone: `slots` is the kernel's own business."""
    used = int(arrays.used[0])
    found = np.flatnonzero((arrays.keys[:used] == key).all(axis=1))
    row = int(found[0]) if len(found) else used
    if row == len(arrays.keys):
        return False
    arrays.keys[row] = key
    arrays.counts[row] += count
    arrays.half_counts[row : row + 1] += half_count
    arrays.sums[row] += total
    arrays.used[0] = max(used, row + 1)
    return True


def count_buckets(
    arrays: BucketArrays, codes: Any, embedding: Any, mask: Any, start: int = 0, *, first_row: int | None = None
) -> int:
    """Counts rows of codes into the table until one finds it full; `slots` stays as it is."""
    if embedding is None:
        embedding = np.zeros((len(codes), 0), np.float32)
    totals = fixed_point(embedding)
    for row in range(start, len(codes)):
        half = 0 if first_row is None else half_of(first_row + row)
        total = np.zeros(arrays.sums.shape[1:], np.int64)
        total[half] = totals[row]
        if not _add(arrays, codes[row] & mask, 1, 1 - half, total):
            return row
    return len(codes)


def lookup_buckets(arrays: BucketArrays, codes: Any, mask: Any) -> NDArray[np.int32]:
    """The table's row of each code, or -1."""
    rows = {key.tobytes(): row for row, key in enumerate(arrays.keys[: arrays.used[0]])}
    return np.array([rows.get((code & mask).tobytes(), -1) for code in codes], dtype=np.int32)


def merge_buckets(
    arrays: BucketArrays, keys: Any, counts: Any, half_counts: Any, sums: Any, mask: Any, start: int = 0
) -> int:
    """Adds another table's rows until one finds this table full."""
    for row in range(start, len(keys)):
        half_count = int(half_counts[row]) if len(half_counts) else 0
        if not _add(arrays, keys[row] & mask, int(counts[row]), half_count, sums[row]):
            return row
    return len(keys)


def shorten_buckets(arrays: BucketArrays, mask: Any) -> None:
    """Takes all rows out and adds them again by their masked keys."""
    used = int(arrays.used[0])
    keys, counts, half_counts, sums = (part[:used].copy() for part in arrays[1:5])
    for part in arrays[1:]:
        part[:] = 0
    merge_buckets(arrays, keys, counts, half_counts, sums, mask)


def hamming_distances(queries: Any, codes: Any) -> NDArray[np.uint16]:
    """Bits in which a query and a code differ."""
    return np.bitwise_count(queries[:, None, :] ^ codes[None, :, :]).sum(axis=2).astype(np.uint16)


def hamming_topk(
    queries: Any, codes: Any, k: int, *, n_threads: int = 1
) -> tuple[NDArray[np.int32], NDArray[np.int64]]:
    """All distances, sorted by distance and row."""
    distances = hamming_distances(queries, codes)
    rows = np.argsort(distances, axis=1, kind="stable")[:, :k]
    return np.take_along_axis(distances, rows, axis=1).astype(np.int32), rows.astype(np.int64)


def hamming_neighbours(
    codes: Any, points: Any, k: int, *, n_threads: int = 1, start: int = 0, stop: int | None = None
) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
    """All other rows, sorted by Hamming distance, squared distance of points and row."""
    n, n_dims = points.shape
    rows = range(start, n if stop is None else stop)
    k = max(0, min(k, n - 1))
    found = np.empty((len(rows), k), np.int32), np.empty((len(rows), k), np.int32)
    wide = np.zeros((n, -(-n_dims // 4) * 4))
    wide[:, :n_dims] = np.asarray(points, dtype=np.float32)
    for i, row in enumerate(rows):
        difference = wide - wide[row]
        s = np.zeros((n, 4))
        for at in range(0, wide.shape[1], 4):
            s = s + difference[:, at : at + 4] * difference[:, at : at + 4]
        squared = (s[:, 0] + s[:, 1]) + (s[:, 2] + s[:, 3])
        distances = hamming_distances(codes[row : row + 1], codes)[0]
        order = np.lexsort((np.arange(n), squared, distances))
        found[0][i] = order[order != row][:k]
        found[1][i] = distances[found[0][i]]
    return found


def gene_moments(indptr: Any, indices: Any, data: Any, n_genes: int, *, target_sum: float) -> GeneMoments:
    """Moments row by row."""
    flags = check_rows(indptr, indices, data, n_genes)
    totals = _totals(indptr, data, flags)
    sums, nnz = np.zeros((4, n_genes)), np.zeros(n_genes, np.int64)
    for row in np.flatnonzero(flags == RowFlag.OK):
        part = slice(indptr[row], indptr[row + 1])
        columns, counts = np.asarray(indices[part]).astype(np.int64), np.asarray(data[part], dtype=np.float64)
        y = log1p_(counts * (target_sum / totals[row]))
        for total, values in zip(sums, (y, y * y, counts, counts * counts), strict=True):
            total[columns] += values
        nnz[columns] += counts > 0
    return GeneMoments(int((flags < RowFlag.NEGATIVE).sum()), sums[0], sums[1], nnz, sums[2], sums[3])


def group_sums(
    indptr: Any, indices: Any, data: Any, groups: Any, gene_map: Any, out: GroupSums, *, target_sum: float
) -> NDArray[np.uint8]:
    """Sums row by row, of values and squares that are rounded to multiples of 2**-24."""
    flags = check_rows(indptr, indices, data, len(gene_map))
    totals = _totals(indptr, data, flags)
    for row in np.flatnonzero((flags < RowFlag.NEGATIVE) & (np.asarray(groups) >= 0)):
        group, part = groups[row], slice(indptr[row], indptr[row + 1])
        out.n_cells[group] += 1
        if flags[row] != RowFlag.OK:
            continue
        genes, counts = gene_map[np.asarray(indices[part]).astype(np.int64)], np.asarray(data[part], dtype=np.float64)
        genes, counts = genes[genes >= 0], counts[genes >= 0]
        y = log1p_(counts * (target_sum / totals[row]))
        rounded = (np.rint(values * GROUP_SUM_SCALE).astype(np.int64) for values in (y, y * y))
        out.sums[group, genes] += np.stack([*rounded, counts > 0], axis=1)
    return flags


def rows_times(indptr: Any, indices: Any, data: Any, block: Any, *, n_threads: int = 1) -> NDArray[np.float64]:
    """The matrix product, of the matrix with all its zeros."""
    return _dense(indptr, indices, data, len(block)) @ np.asarray(block, dtype=np.float64)


def gram_times(indptr: Any, indices: Any, data: Any, block: Any, *, n_threads: int = 1) -> NDArray[np.float64]:
    """The matrix product, of the Gram matrix of the matrix with all its zeros."""
    dense = _dense(indptr, indices, data, len(block))
    return (dense.T @ dense) @ np.asarray(block, dtype=np.float64)


def join_bytes(low: Any, high: Any, out: Any) -> None:
    """By arithmetic."""
    out[:] = np.asarray(low).astype(np.uint16) + 256 * np.asarray(high).astype(np.uint16)


def narrow_columns(values: Any, out: Any) -> None:
    """Column by column."""
    values = np.asarray(values)
    out[:] = np.where((values >= 0) & (values < 65_535), values, 65_535)


def residual_sums(
    indptr: Any, indices: Any, data: Any, totals: Any, share: Any, *, theta: float, clip: float
) -> NDArray[np.float64]:
    """Residuals of the matrix with all its zeros less those of a matrix of zeros, summed over cells."""
    mu = np.outer(totals, share)
    with np.errstate(invalid="ignore"):  # genes without counts
        found, none = (
            np.clip((counts - mu) / np.sqrt(mu + mu**2 / theta), -clip, clip)
            for counts in (_dense(indptr, indices, data, len(share)), 0.0)
        )
    return np.nan_to_num(np.stack([(found - none).sum(axis=0), (found**2 - none**2).sum(axis=0)], axis=1))


def _dense(indptr: Any, indices: Any, data: Any, n_columns: int) -> NDArray[np.float64]:
    dense = np.zeros((len(indptr) - 1, n_columns))
    for row in range(len(dense)):
        part = slice(indptr[row], indptr[row + 1])
        np.add.at(dense[row], np.asarray(indices[part]).astype(np.int64), np.asarray(data[part], dtype=np.float64))
    return dense


def ward_linkage(points: Any, weights: Any = None, *, n_threads: int = 1) -> NDArray[np.float64]:
    """Merges the nearest pair of all until one cluster is left."""
    means = [np.asarray(point, dtype=np.float64) for point in points]
    masses = [1.0] * len(means) if weights is None else [float(weight) for weight in weights]
    names, sizes = list(range(len(means))), [1] * len(means)
    linkage = np.empty((len(means) - 1, 4))
    for merge in range(len(linkage)):
        best = (np.inf, 0, 0)
        for a in range(len(means)):
            for b in range(a + 1, len(means)):
                factor = masses[a] * masses[b] / (masses[a] + masses[b])
                best = min(best, (factor * float(((means[a] - means[b]) ** 2).sum()), a, b))
        increase, a, b = best
        linkage[merge] = (
            min(names[a], names[b]), max(names[a], names[b]), np.sqrt(2.0 * increase), sizes[a] + sizes[b]
        )  # fmt: skip
        mass = masses[a] + masses[b]
        means[a] = (masses[a] * means[a] + masses[b] * means[b]) / mass
        masses[a], names[a], sizes[a] = mass, len(linkage) + 1 + merge, sizes[a] + sizes[b]
        for values in (means, masses, names, sizes):
            del values[b]
    return linkage
