"""Highly variable genes of a sample."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from hashstream.atlas.sample import Sample
from hashstream.kernels import residual_sums

N_BINS = 20
MIN_CELLS = 3
MIN_CELL_SHARE = 2e-4
#: How genes may be ranked; ``auto`` is for settings, see `hashstream.hashing.pca_itq`.
GENES_BY = ("auto", "dispersion", "pearson")
_THETA = 100.0
_LIBRARY_GROUPS = 64


#: Mean and variance of the normalised counts of each gene, and the cells that express it.
Moments = tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.int64]]


def select_genes(
    sample: Sample, *, n_genes: int, target_sum: float, by: str = "dispersion", moments: Moments | None = None
) -> NDArray[np.int64]:
    """Indices of the `n_genes` most variable genes, ascending; all that vary where there are fewer.

    See `ranked_genes` for `by`, which is not ``auto``, and `moments`.
    """
    return np.sort(ranked_genes(sample, by=by, target_sum=target_sum, moments=moments)[:n_genes])


def ranked_genes(sample: Sample, *, by: str, target_sum: float, moments: Moments | None = None) -> NDArray[np.int64]:
    """Indices of the genes that vary, the most variable first.

    Genes in fewer than 3 cells or 0.02% of the sample are left out. Ties go to the gene whose name sorts first: the
    sample's genes are sorted by name.

    Parameters
    ----------
    by
        ``dispersion``: variance over mean of the normalised counts, in logarithms, standardised within 20 bins of the
        logarithm of the mean (Satija et al., "Spatial reconstruction of single-cell gene expression data", Nat.
        Biotechnol. 2015; the flavour `seurat` of scanpy). ``pearson``: variance of the Pearson residuals of the counts
        (Lause, Berens & Kobak, Genome Biol. 2021; scanpy's `pearson_residuals`).
    moments
        What `sample_moments` gives, where it is known already.
    """
    mean, variance, n_expressing = moments or sample_moments(sample, target_sum)
    least = max(MIN_CELLS, int(np.ceil(MIN_CELL_SHARE * sample.n_cells)))
    usable = np.flatnonzero((n_expressing >= least) & (variance > 0))
    if len(usable) == 0:
        return usable
    if by == "pearson":
        score = residual_variance(sample)[usable]
    else:
        score = _normalised_dispersion(mean[usable], variance[usable])
    return usable[np.argsort(-score, kind="stable")]


def residual_variance(sample: Sample) -> NDArray[np.float64]:
    """Variance (n_genes,) of each gene's Pearson residuals; 0 for a gene without counts.

    The inverse overdispersion is 100 and residuals are limited to the square root of the number of cells, as in
    scanpy. Those of zero counts are taken at the mean library size of each of 64 groups of cells of similar size.
    """
    totals = np.concatenate([block.totals for block in sample.blocks])
    n_cells, n_genes = sample.n_cells, len(sample.gene_names)
    counts = np.zeros(n_genes)
    for block in sample.blocks:
        counts += np.bincount(block.indices, weights=block.data, minlength=n_genes)
    share, clip = counts / totals.sum(), float(np.sqrt(n_cells))
    sums = np.zeros((n_genes, 2))
    for group in np.array_split(np.sort(totals), min(_LIBRARY_GROUPS, n_cells)):
        mu = share * group.mean()
        residual = -np.minimum(np.sqrt(mu / (1.0 + mu / _THETA)), clip)
        sums += len(group) * np.stack([residual, residual**2], axis=1)
    for block in sample.blocks:
        rows = block.indptr, block.indices, block.data
        sums += residual_sums(*rows, block.totals, share, theta=_THETA, clip=clip)
    return np.asarray(sums[:, 1] / n_cells - (sums[:, 0] / n_cells) ** 2)


def sample_moments(sample: Sample, target_sum: float) -> Moments:
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
