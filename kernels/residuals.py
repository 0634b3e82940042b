"""Pearson residuals of counts, summed for each gene: how far counts are from what library sizes alone would give."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from hashstream.kernels._arrays import csr_arrays
from hashstream.kernels._jit import jit


@jit
def _add_residuals(indptr, indices, data, totals, share, per_theta, clip, sums):  # type: ignore[no-untyped-def]
    for row in range(len(totals)):
        total = totals[row]
        for k in range(indptr[row], indptr[row + 1]):
            gene = indices[k]
            mu = share[gene] * total
            sd = np.sqrt(mu + mu * mu * per_theta)
            found = min(max((np.float64(data[k]) - mu) / sd, -clip), clip)
            none = max(-mu / sd, -clip)
            sums[gene, 0] += found - none
            sums[gene, 1] += found * found - none * none


def residual_sums(
    indptr: Any, indices: Any, data: Any, totals: Any, share: Any, *, theta: float, clip: float
) -> NDArray[np.float64]:
    """Sums over the stored counts of each gene of what they add to residuals of which all counts are 0.

    The residual of a count x is ``(x - mu) / sqrt(mu + mu**2 / theta)``, limited to +-`clip`, with ``mu = total *
    share`` (Lause, Berens & Kobak, "Analytic Pearson residuals for normalization of single-cell RNA-seq UMI data",
    Genome Biol. 2021).

    Parameters
    ----------
    indptr, indices, data
        A CSR matrix (n_cells, n_genes) of counts.
    totals : (n_cells,) float64
        Total count of each cell, above 0.
    share : (n_genes,) float64
        Share of each gene in all counts, above 0 where a count is stored.
    theta : float
        Inverse overdispersion of the negative binomial.
    clip : float

    Returns
    -------
    (n_genes, 2) float64
        Residual of the count less that of 0, and square of the one less square of the other.

    Raises
    ------
    TypeError, ValueError
        Arrays of the wrong kind or shape, or a column that `share` does not have.
    """
    indptr, indices, data = csr_arrays(indptr, indices, data)
    share = np.ascontiguousarray(share, dtype=np.float64)
    totals = np.ascontiguousarray(totals, dtype=np.float64)
    if totals.shape != (len(indptr) - 1,) or share.ndim != 1:
        raise ValueError(f"totals has shape {totals.shape} and share {share.shape}, expected a value a row and a gene")
    if len(indices) and (int(indices.min()) < 0 or int(indices.max()) >= len(share)):
        raise ValueError(f"indices go from {indices.min()} to {indices.max()}, but share has {len(share)} values")
    sums = np.zeros((len(share), 2))
    _add_residuals(indptr, indices, data, totals, share, 1.0 / theta, float(clip), sums)
    return sums
