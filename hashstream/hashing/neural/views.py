"""Cells as the network sees them: thinned counts, normalised, standardised, with inputs dropped; a batch at a time."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from hashstream.atlas.sample import Sample
from hashstream.hashing.hasher import Hasher


class Rows(NamedTuple):
    """Raw counts of some cells as one long list: cell (from 0) and gene of each count, and the cells' totals."""

    cells: NDArray[np.int64]
    genes: NDArray[np.int64]
    counts: NDArray[np.int64]
    totals: NDArray[np.int64]


class SampleCells:
    """The cells of a sample by number, in the sample's order; its blocks stay as they are."""

    def __init__(self, sample: Sample) -> None:
        self._blocks = sample.blocks
        self._first = np.cumsum([0, *(len(block.totals) for block in sample.blocks)])
        self.n_cells, self.n_genes = sample.n_cells, len(sample.gene_names)
        self.totals = np.concatenate([block.totals for block in sample.blocks])

    def rows(self, numbers: NDArray[np.int64]) -> Rows:
        """Counts of the cells `numbers` (n,), in that order."""
        at = np.searchsorted(self._first, numbers, side="right") - 1
        genes, counts = [], []
        for b, i in zip(at.tolist(), (numbers - self._first[at]).tolist(), strict=True):
            block = self._blocks[b]
            entries = slice(block.indptr[i], block.indptr[i + 1])
            genes.append(block.indices[entries])
            counts.append(block.data[entries])
        cells = np.repeat(np.arange(len(numbers)), [len(g) for g in genes])
        return Rows(
            cells,
            np.concatenate(genes).astype(np.int64),
            np.concatenate(counts).astype(np.int64),
            self.totals[numbers].astype(np.int64),
        )


def thin(rows: Rows, thinning: tuple[float, float], rng: np.random.Generator) -> Rows:
    """Each cell as if sequenced less deeply: it keeps every count with one probability, drawn from a range.

    Counts outside the chosen genes are part of the total and thinned with it. A cell keeps a total of at least 1.
    """
    keep = rng.uniform(*thinning, size=len(rows.totals))
    each = keep[rows.cells]
    # Most counts are 1, for which one comparison does: drawing binomials would take most of the time of a step.
    counts = (rng.random(len(each)) < each).astype(np.int64)
    many = np.flatnonzero(rows.counts > 1)
    counts[many] = rng.binomial(rows.counts[many], each[many])
    rest = rows.totals - _sums(rows.counts, rows)
    totals = _sums(counts, rows) + rng.binomial(np.maximum(rest, 0), keep)
    return Rows(rows.cells, rows.genes, counts, np.maximum(totals, 1))


def _sums(counts: NDArray[np.int64], rows: Rows) -> NDArray[np.int64]:
    return np.bincount(rows.cells, weights=counts, minlength=len(rows.totals)).astype(np.int64)


class Standardiser:
    """Counts to z (n, n_genes) float32, as the Hasher defines it."""

    def __init__(self, hasher: Hasher) -> None:
        self._target_sum, self._clip = hasher.target_sum, np.float32(hasher.clip)
        self._shift = hasher.gene_mean.astype(np.float32)
        self._factor = (1 / hasher.gene_scale).astype(np.float32)

    def __call__(self, rows: Rows) -> NDArray[np.float32]:
        z = np.zeros((len(rows.totals), len(self._shift)), dtype=np.float32)
        z[rows.cells, rows.genes] = np.log1p(rows.counts * (self._target_sum / rows.totals)[rows.cells])
        z -= self._shift
        z *= self._factor
        return np.minimum(z, self._clip, out=z)


def drop_inputs(z: NDArray[np.float32], share: float, rng: np.random.Generator) -> None:
    """Set about `share` of the values (to the nearest 1/256 below 1) to 0 and scale the others up, in place."""
    dropped = min(round(share * 256), 255)
    if dropped:
        z *= rng.integers(0, 256, size=z.shape, dtype=np.uint8) >= dropped
        z *= np.float32(256 / (256 - dropped))
