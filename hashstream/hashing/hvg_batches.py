"""Highly variable genes of a sample of several batches."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from hashstream.atlas.sample import Sample
from hashstream.hashing.hvg import ranked_genes, select_genes

#: A batch of fewer sampled cells does not say which genes are measured or vary.
MIN_BATCH_CELLS = 50


def select_genes_by_batch(
    sample: Sample, batches: NDArray[np.integer], *, n_genes: int, target_sum: float, by: str = "dispersion"
) -> NDArray[np.int64]:
    """Indices of the `n_genes` genes that vary within most batches, ascending; all that vary where there are fewer.

    Each batch ranks the genes by itself (`select_genes`). Genes are then ordered by the number of batches that have
    them among their first `n_genes`, ties by the median of these ranks, as scanpy's ``highly_variable_genes`` with a
    ``batch_key`` and of flavour ``seurat_v3`` does. Genes that vary between batches only, such as those that a study
    did not measure in a matrix over the union of several studies' genes, come late. They are not left out: a gene that
    a batch lacks may as well mark a type that the batch lacks.

    Parameters
    ----------
    sample
    batches : (n_sampled_cells,) integer
        Number of the batch of each cell, in the order of the sample. Batches of fewer than 50 sampled cells have no
        say; where fewer than two are larger, genes are ranked over all cells.
    n_genes, target_sum, by
        As in `select_genes`.

    Raises
    ------
    ValueError
        If there is not one batch for each sampled cell.
    """
    if len(batches) != sample.n_cells:
        raise ValueError(f"{len(batches)} batches for {sample.n_cells} sampled cells")
    numbers, sizes = np.unique(batches, return_counts=True)
    numbers = numbers[sizes >= MIN_BATCH_CELLS]
    if len(numbers) < 2:
        return select_genes(sample, n_genes=n_genes, target_sum=target_sum, by=by)
    n_all = len(sample.gene_names)
    # A gene that is not among a batch's first n_genes has rank n_genes there.
    ranks = np.full((len(numbers), n_all), n_genes, dtype=np.min_scalar_type(n_genes))
    varies = np.zeros(n_all, dtype=bool)
    for i, number in enumerate(numbers):
        ranked = ranked_genes(sample.cells(np.flatnonzero(batches == number)), by=by, target_sum=target_sum)
        varies[ranked] = True
        ranks[i, ranked[:n_genes]] = np.arange(min(len(ranked), n_genes))
    candidates = np.flatnonzero(varies)
    if len(candidates) <= n_genes:
        return candidates
    hits, median = _hits_and_median(ranks, n_genes)
    # The sample's genes are sorted by name and lexsort is stable, so ties go to the name that sorts first.
    order = np.lexsort((median[candidates], -hits[candidates]))
    return np.sort(candidates[order[:n_genes]])


def _hits_and_median(ranks: NDArray[np.unsignedinteger], n_genes: int) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """How many ranks of each column are below `n_genes`, and their median; `ranks` is sorted in place."""
    ranks.sort(axis=0)
    hits = (ranks < n_genes).sum(axis=0)
    columns = np.arange(ranks.shape[1])
    low, high = ranks[np.maximum(hits - 1, 0) // 2, columns], ranks[np.minimum(hits // 2, len(ranks) - 1), columns]
    return hits, (low.astype(np.float64) + high) / 2.0
