"""Compiled sampling of negative-binomial count rows.

A negative-binomial count of mean m and dispersion d is a sum of clusters: their number is Poisson of mean
w = log(1 + d m) / d, and each cluster's size is logarithmic with p = d m / (1 + d m) (Quenouille, Biometrics 5, 1949,
p. 162). Laid side by side, the genes' weights w are a line, and a cell's clusters are a Poisson process on it: one
walks along the line by exponential gaps, and meets the genes in rising order, the clusters of a gene one after another.
No sorting, no array of counts; the work is proportional to the clusters of the cell, not to the genes, and the genes
are independent and exactly negative-binomial. A cell with library factor s has gaps s times as short: its means grow
by s and its variance-to-mean ratios stay.

The gene at a position is found by a guide table (Chen and Asau, AIIE Trans. 6, 1974, p. 163), gaps by the ziggurat of
256 layers (Marsaglia and Tsang, J. Stat. Softw. 5(8), 2000). Random numbers are splitmix64 (Steele, Lea, Flood,
OOPSLA 2014): one 64-bit state, so that a block of rows depends on its own seed alone. One number makes one cluster:
8 bits are the layer, 24 the cluster's size, 32 the place in the layer.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from hashstream.kernels._jit import inline, jit

MAX_COUNT = 65_535

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)
_MIX_1 = np.uint64(0xBF58476D1CE4E5B9)
_MIX_2 = np.uint64(0x94D049BB133111EB)
_ODD = np.uint64(0xD1342543DE82EF95)
_S8, _S11, _S27, _S30, _S31, _S32 = (np.uint64(n) for n in (8, 11, 27, 30, 31, 32))
_LAYER_BITS, _SIZE_BITS = np.uint64(255), np.uint64(2**24 - 1)
_UNIT, _UNIT_24 = 2.0**-53, 2.0**-24
_LINE = 2.0**32  # the line's length in units of a position
_LAST = 2.0**32 - 1
_RATIO = np.arange(1024) / np.arange(1, 1025)  # k / (k + 1); beyond, the last is near enough

_TAIL, _AREA = 7.69711747013104972, 3.9496598225815571993e-3  # of the 256 layers of exp(-x), as published


def _ziggurat() -> tuple[NDArray[np.float64], NDArray[np.uint64], NDArray[np.float64]]:
    """Width of each layer in units of 2^-32, the part of it that lies under the curve, the curve at its edge."""
    edges = np.empty(257)
    edges[256], edges[255] = _AREA * math.exp(_TAIL), _TAIL
    for i in range(254, 0, -1):
        edges[i] = -math.log(_AREA / edges[i + 1] + math.exp(-edges[i + 1]))
    edges[0] = 0.0
    # Layer 0 is the base with the tail; layer i spans 0 to edges[i].
    width = np.concatenate([edges[256:], edges[1:256]])
    inner = np.concatenate([edges[255:256], edges[:255]])
    heights = np.exp(-np.concatenate([[0.0], edges[1:256]]))
    return width / _LINE, (inner / width * _LINE).astype(np.uint64), heights


_WIDTH, _UNDER, _HEIGHT = _ziggurat()


@inline
def _mix(state):  # type: ignore[no-untyped-def]
    z = (state ^ (state >> _S30)) * _MIX_1
    z = (z ^ (z >> _S27)) * _MIX_2
    return z ^ (z >> _S31)


@inline
def _uniform(bits):  # type: ignore[no-untyped-def]
    """A float64 in (0, 1) from 64 random bits."""
    return (np.float64(bits >> _S11) + 0.5) * _UNIT


@jit
def _rare_gap(bits, state):  # type: ignore[no-untyped-def]
    """An exponential gap where the place `bits` name is not surely under the curve; and the state to go on with."""
    while True:
        layer = np.int64(bits & _LAYER_BITS)
        place = bits >> _S32
        x = np.float64(place) * _WIDTH[layer]
        if place < _UNDER[layer]:
            return x, state
        u = _uniform(_mix(state))
        state += _GOLDEN
        if layer == 0:
            return _TAIL - math.log(u), state
        if _HEIGHT[layer] + u * (_HEIGHT[layer - 1] - _HEIGHT[layer]) < math.exp(-x):
            return x, state
        bits = _mix(state)
        state += _GOLDEN


@jit
def _larger_size(bits, single, p):  # type: ignore[no-untyped-def]
    """Size of a cluster whose 24 `bits` are not under the threshold `single` of size 1.

    By sequential search, on what the bits leave: P(k + 1) = P(k) p k / (k + 1).
    """
    chance = np.float64(single) * _UNIT_24
    left = (np.float64(bits) + 0.5) * _UNIT_24 - chance
    chance *= p * 0.5
    size = 2
    while left >= chance and chance > 1e-9:
        left -= chance
        chance *= p * _RATIO[min(size, 1023)]
        size += 1
    return size


@jit
def build_table(
    means: NDArray[np.floating],
    factors: NDArray[np.floating],
    library: float,
    dispersion: float,
    ends: NDArray[np.uint32],
    single: NDArray[np.uint32],
    sizes: NDArray[np.float32],
    guide: NDArray[np.integer],
) -> float:
    """Fill the sampling table of one type; gives the clusters of a cell with library factor 1, on average.

    Parameters
    ----------
    means, factors : (n_genes,) float
        Their product, scaled to the sum `library`, is the mean count of each gene.
    library : float
        Transcripts of a cell with library factor 1, on average.
    dispersion : float
        d of the module's text.
    ends : (n_genes,) uint32, output
        Where each gene's part of the line ends; the line is 2^32 long.
    single : (n_genes,) uint32, output
        Chance (of 2^24) that a cluster has size 1.
    sizes : (n_genes,) float32, output
        p of the logarithmic distribution of cluster sizes.
    guide : (a power of two,) integer, output
        The first gene that ends behind each of as many equal parts of the line begins.
    """
    n_genes = len(means)
    total = 0.0
    for g in range(n_genes):
        total += np.float64(means[g]) * np.float64(factors[g])
    scale = dispersion * library / total
    line = np.empty(n_genes, np.float64)
    at = 0.0
    for g in range(n_genes):
        dm = np.float64(means[g]) * np.float64(factors[g]) * scale
        dw = math.log(1.0 + dm) if dm > 1e-4 else dm * (1.0 - dm * (0.5 - dm / 3.0))
        p = dm / (1.0 + dm)
        single[g] = np.uint32(min(16777215.0, (p / dw if dm > 1e-9 else 1.0) * 16777216.0))
        sizes[g] = p
        at += dw
        line[g] = at
    unit = _LAST / at
    for g in range(n_genes):
        ends[g] = np.uint32(line[g] * unit)
    ends[n_genes - 1] = np.uint32(4294967295)
    step = 4294967296 // len(guide)
    g = 0
    for j in range(len(guide)):
        while np.int64(ends[g]) <= j * step:
            g += 1
        guide[j] = g
    return at / dispersion


@jit
def draw_cells(
    seed: np.uint64,
    type_cumulative: NDArray[np.float64],
    clusters: NDArray[np.float64],
    library_sd: float,
    types: NDArray[np.integer],
    expected: NDArray[np.float64],
) -> np.uint64:
    """Draw the type and the library factor of each cell; gives the state to go on with.

    Parameters
    ----------
    type_cumulative : (n_types,) float64
        Cumulative shares of the types.
    clusters : (n_types,) float64
        Mean clusters of a cell of each type at library factor 1.
    library_sd : float
        Standard deviation of the log of the library factor, of mean 1.
    types : (n_rows,) integer, output
    expected : (n_rows,) float64, output
        Mean clusters of a cell of this type and library factor.
    """
    state = np.uint64(seed)
    for i in range(len(types)):
        u = _uniform(_mix(state))
        state += _GOLDEN
        t = 0
        while t < len(type_cumulative) - 1 and u >= type_cumulative[t]:
            t += 1
        types[i] = t
        radius = math.sqrt(-2.0 * math.log(_uniform(_mix(state))))
        state += _GOLDEN
        angle = 2.0 * math.pi * _uniform(_mix(state))
        state += _GOLDEN
        expected[i] = clusters[t] * math.exp(library_sd * radius * math.cos(angle) - 0.5 * library_sd * library_sd)
    return state


@jit
def rooms(expected: NDArray[np.float64], n_genes: int, starts: NDArray[np.int64]) -> None:
    """Where the room of each row starts, (n_rows + 1,): more than it will take (Poisson, twelve deviations)."""
    starts[0] = 0
    for i in range(len(expected)):
        starts[i + 1] = starts[i] + min(n_genes, np.int64(expected[i] + 12.0 * math.sqrt(expected[i]) + 32.0))


@jit
def draw_counts(
    seed: np.uint64,
    types: NDArray[np.integer],
    order: NDArray[np.int64],
    expected: NDArray[np.float64],
    ends: NDArray[np.uint32],
    single: NDArray[np.uint32],
    sizes: NDArray[np.float32],
    guide: NDArray[np.integer],
    starts: NDArray[np.int64],
    indptr: NDArray[np.int64],
    indices: NDArray[np.integer],
    data: NDArray[np.uint16],
) -> None:
    """Draw the counts of each cell, genes in rising order.

    Parameters
    ----------
    types, expected : (n_rows,)
        From `draw_cells`.
    order : (n_rows,) int64
        The order of work: cells of one type together, so that its table stays in the cache. The result does not
        depend on it, since each cell has its own seed.
    ends, single, sizes : (n_types, n_genes)
    guide : (n_types, n_parts)
        From `build_table`.
    starts : (n_rows + 1,) int64
        From `rooms`.
    indptr : (n_rows + 1,) int64, output
    indices, data : (starts[-1],) output
        Counts above 65,535 are cut off there.
    """
    n_rows = len(types)
    shift = np.uint64(32)
    while (1 << (32 - np.int64(shift))) < guide.shape[1]:
        shift -= np.uint64(1)
    for k in range(n_rows):
        i = order[k]
        t = types[i]
        end, one, part = ends[t], single[t], guide[t]
        out_indices = indices[starts[i] : starts[i + 1]]
        out_data = data[starts[i] : starts[i + 1]]
        state = _mix(np.uint64(seed) + np.uint64(i) * _ODD)
        unit = _LINE / max(expected[i], 1e-12)
        at = -1
        last = np.int64(-1)
        count = np.int64(0)
        position = 0.0
        while True:
            bits = _mix(state)
            state += _GOLDEN
            layer = np.int64(bits & _LAYER_BITS)
            gap = np.float64(bits >> _S32) * _WIDTH[layer]
            if bits >> _S32 >= _UNDER[layer]:
                gap, state = _rare_gap(bits, state)
            position += gap * unit
            if position >= _LAST:
                break
            here = np.uint64(np.int64(position))
            gene = np.int64(part[here >> shift])
            while np.uint64(end[gene]) <= here:
                gene += 1
            small = (bits >> _S8) & _SIZE_BITS
            size = np.int64(1)
            if small >= np.uint64(one[gene]):
                size = np.int64(_larger_size(small, one[gene], np.float64(sizes[t, gene])))
            new = gene != last
            at += int(new)
            if at == len(out_indices):  # beyond twelve deviations
                at -= 1
                break
            count = size if new else count + size
            last = gene
            out_indices[at] = gene
            out_data[at] = np.uint16(count if count < MAX_COUNT else MAX_COUNT)
        indptr[i + 1] = at + 1
    indptr[0] = 0
    for i in range(n_rows):  # close the gaps
        first = indptr[i]
        for j in range(indptr[i + 1]):
            indices[first + j] = indices[starts[i] + j]
            data[first + j] = data[starts[i] + j]
        indptr[i + 1] += first
