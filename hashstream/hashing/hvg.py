"""Highly variable genes of a sample."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from hashstream.atlas.sample import Sample

N_BINS = 20
MIN_CELLS = 3
MIN_CELL_SHARE = 2e-4


def select_genes(sample: Sample, *, n_genes: int, target_sum: float) -> NDArray[np.int64]:
    """Indices of the `n_genes` most variable genes, ascending; all that vary where there are fewer.

    The rank is the dispersion (variance over mean of the normalised counts, in logarithms) standardised within 20
    bins of the logarithm of the mean (Satija et al., "Spatial reconstruction of single-cell gene expression data",
    Nat. Biotechnol. 2015; the flavour `seurat` of scanpy). Genes in fewer than 3 cells or 0.02% of the sample are
    left out.
    """
    mean, variance, n_expressing = _moments(sample, target_sum)
    least = max(MIN_CELLS, int(np.ceil(MIN_CELL_SHARE * sample.n_cells)))
    usable = np.flatnonzero((n_expressing >= least) & (variance > 0))
    if len(usable) <= n_genes:
        return usable
    score = _normalised_dispersion(mean[usable], variance[usable])
    # Ties go to the gene whose name sorts first: the sample's genes are sorted by name and the sort is stable.
    return np.sort(usable[np.argsort(-score, kind="stable")[:n_genes]])


def _moments(sample: Sample, target_sum: float) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.int64]]:
    """Mean and variance of the normalised counts of each gene, and the cells that express it."""
    n_genes = len(sample.gene_names)
    total, square = np.zeros(n_genes), np.zeros(n_genes)
    expressing = np.zeros(n_genes, dtype=np.int64)
    for block in sample.blocks:
        values = block.data * np.repeat(target_sum / block.totals, np.diff(block.indptr))
        # Each gene is summed in the order of the cells, whatever the order of the genes within a cell.
        total += np.bincount(block.indices, weights=values, minlength=n_genes)
        square += np.bincount(block.indices, weights=values * values, minlength=n_genes)
        expressing += np.bincount(block.indices[values > 0], minlength=n_genes)
    n = sample.n_cells
    mean = total / n
    return mean, np.maximum(square - n * mean * mean, 0.0) / max(n - 1, 1), expressing


def _normalised_dispersion(mean: NDArray[np.float64], variance: NDArray[np.float64]) -> NDArray[np.float64]:
    dispersion, level = np.log(variance / mean), np.log1p(mean)
    edges = np.linspace(level.min(), level.max(), N_BINS + 1)
    bins = np.clip(np.searchsorted(edges, level, side="right") - 1, 0, N_BINS - 1)
    score = np.empty(len(mean))
    for b in np.unique(bins):
        inside = bins == b
        centre = dispersion[inside].mean()
        spread = dispersion[inside].std(ddof=1) if inside.sum() > 1 else 0.0
        # A gene alone in its bin has nothing to be compared with: it counts as one deviation above it, as in Seurat.
        score[inside] = (dispersion[inside] - centre) / spread if spread > 0 else 1.0
    return score
