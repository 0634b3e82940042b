"""A Hasher whose gene statistics are those of the query, so that a shift of whole genes is taken out."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from hashstream.atlas.genes import VAR_NAMES
from hashstream.atlas.sample import Sample
from hashstream.errors import InputError
from hashstream.hashing.genes import match_genes
from hashstream.hashing.hasher import Hasher

#: With fewer cells their mean and deviation say little.
FEWEST_CELLS = 100


def moment_matched(hasher: Hasher, sample: Sample, *, min_overlap: float, where: str) -> Hasher:
    """Bring each gene of a query to its mean and deviation in the reference, as scHash does, within the Hasher.

    With x' = (s_ref / s_query) (x - m_query) + m_ref the standardised value (x' - m_ref) / s_ref is
    (x - m_query) / s_query: only the statistics by which values are standardised change. x is log-normalised. Genes
    that the query lacks keep the reference's; those that do not vary in it keep the reference's deviation.

    A cell's code then depends on the other cells of its file: a query with other shares of types than the reference, or
    of one type alone, is pulled to the reference's mean and labelled wrongly. Use it only where a query is known to be
    composed as the reference is, and differs by technique.

    Parameters
    ----------
    hasher
        Of the reference.
    sample : Sample
        Of the query. Its counts of other genes are dropped.
    min_overlap
        Smallest share of the Hasher's genes that the sample must have.
    where
        The query, for messages.

    Returns
    -------
    Hasher
        Its provenance names the fingerprint of the given one as ``moment_matched_to``.

    Raises
    ------
    InputError
        If the sample has under 100 cells, or too few genes match.
    """
    if sample.n_cells < FEWEST_CELLS:
        raise InputError(
            f"{where}: {sample.n_cells} cells with counts; --moment-match needs those of at least {FEWEST_CELLS}. "
            "Leave it out: then each cell's code depends on that cell alone."
        )
    ids = None if hasher.gene_ids is None else [str(i) for i in hasher.gene_ids]
    columns = {VAR_NAMES: sample.gene_names} | ({} if sample.gene_ids is None else {"id": sample.gene_ids})
    match = match_genes([str(n) for n in hasher.gene_names], ids, columns, min_overlap=min_overlap, where=where)
    found = np.flatnonzero(match.gene_map >= 0)
    mean, deviation = _log_moments(sample, found, hasher.target_sum)
    genes = match.gene_map[found]
    gene_mean, gene_scale = hasher.gene_mean.copy(), hasher.gene_scale.copy()
    gene_mean[genes] = mean
    gene_scale[genes] = np.where(deviation > 0, deviation, gene_scale[genes])
    provenance = {
        **hasher.provenance,
        "moment_matched_to": hasher.fingerprint(),
        "moment_match_cells": sample.n_cells,
    }
    return replace(hasher, gene_mean=gene_mean, gene_scale=gene_scale, provenance=provenance)


def _log_moments(
    sample: Sample, genes: NDArray[np.int64], target_sum: float
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Mean and standard deviation of log1p of the normalised counts of some genes."""
    sample.keep_genes(genes)
    total, square = np.zeros(len(genes)), np.zeros(len(genes))
    for block in sample.blocks:
        values = np.log1p(block.data * np.repeat(target_sum / block.totals, np.diff(block.indptr)))
        total += np.bincount(block.indices, weights=values, minlength=len(genes))
        square += np.bincount(block.indices, weights=values * values, minlength=len(genes))
    n = sample.n_cells
    mean = total / n
    return mean, np.sqrt(np.maximum(square - n * mean * mean, 0.0) / (n - 1))
