"""Genes that vary within batches come before those that tell the batches apart."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import anndata
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp

from hashstream.atlas import open_atlas
from hashstream.atlas.sample import Sample, SampleBlock, draw_sample
from hashstream.hashing.hvg import ranked_genes, select_genes
from hashstream.hashing.hvg_batches import _hits_and_median, select_genes_by_batch

N_CELLS, N_GENES, N_MARKERS = 600, 300, 20


def sample_of(counts: np.ndarray, block_rows: int = 256) -> Sample:
    blocks = []
    for start in range(0, len(counts), block_rows):
        rows = sp.csr_matrix(counts[start : start + block_rows])
        totals = np.asarray(counts[start : start + block_rows].sum(axis=1), dtype=np.float64)
        where = np.arange(start, start + len(totals))
        blocks.append(SampleBlock(rows.indptr.astype(np.int64), rows.indices, rows.data, totals, where))
    return Sample(tuple(blocks), np.array([f"g{i:04d}" for i in range(counts.shape[1])], dtype=object), None)


def two_studies(seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Counts and batches: genes 0-19 mark two types in both studies; genes 20-99 were measured in study 1 only."""
    rng = np.random.default_rng(seed)
    batches = rng.integers(0, 2, N_CELLS)
    types = rng.integers(0, 2, N_CELLS)
    rate = np.tile(rng.uniform(0.5, 3.0, N_GENES), (N_CELLS, 1))
    rate[:, :N_MARKERS] *= np.where(types == 1, 2.5, 0.6)[:, None]
    counts = rng.poisson(rate)
    counts[batches == 0, N_MARKERS:100] = 0
    return counts, batches


def test_genes_of_one_study_come_after_those_that_vary_in_both() -> None:
    counts, batches = two_studies()
    plain = select_genes(sample_of(counts), n_genes=60, target_sum=1e4)
    chosen = select_genes_by_batch(sample_of(counts), batches, n_genes=60, target_sum=1e4)
    assert ((plain >= N_MARKERS) & (plain < 100)).sum() > 30
    assert ((chosen >= N_MARKERS) & (chosen < 100)).sum() < 16  # by chance as many
    assert (chosen < N_MARKERS).sum() >= 15  # 4 by chance
    assert len(chosen) == 60
    assert np.array_equal(chosen, np.unique(chosen))
    every = select_genes_by_batch(sample_of(counts), batches, n_genes=N_GENES, target_sum=1e4)
    assert np.array_equal(every, np.arange(N_GENES))


def test_each_batch_ranks_as_select_genes_does() -> None:
    """With two copies of one batch the order is that of the batch alone."""
    rng = np.random.default_rng(2)
    counts = rng.poisson(rng.gamma(0.5, 2.0, (200, 1)) * rng.uniform(0.2, 2.0, 150))
    counts[:, 0] += 1
    alone = select_genes(sample_of(counts), n_genes=40, target_sum=1e4)
    twice = select_genes_by_batch(
        sample_of(np.concatenate([counts, counts])), np.repeat([3, 8], 200), n_genes=40, target_sum=1e4
    )
    assert np.array_equal(twice, alone)


def test_small_batches_have_no_say() -> None:
    counts, batches = two_studies()
    odd = counts[:30].copy()
    odd[:, : N_GENES // 2] = 0
    more, labels = np.concatenate([counts, odd]), np.concatenate([batches, np.full(30, 2)])
    without = select_genes_by_batch(sample_of(counts), batches, n_genes=60, target_sum=1e4)
    assert np.array_equal(select_genes_by_batch(sample_of(more), labels, n_genes=60, target_sum=1e4), without)
    one = np.where(np.arange(N_CELLS) < 40, 1, 0)
    plain = select_genes(sample_of(counts), n_genes=60, target_sum=1e4)
    assert np.array_equal(select_genes_by_batch(sample_of(counts), one, n_genes=60, target_sum=1e4), plain)


def test_blocks_do_not_matter() -> None:
    counts, batches = two_studies()
    one, two = (
        select_genes_by_batch(sample_of(counts, rows), batches, n_genes=60, target_sum=1e4) for rows in (7, 1000)
    )
    assert np.array_equal(one, two)


def test_median_of_the_ranks_that_count() -> None:
    ranks = np.array([[5, 9, 1, 9], [2, 9, 9, 0], [9, 9, 4, 3]], dtype=np.uint8)
    hits, median = _hits_and_median(ranks, 9)
    assert hits.tolist() == [2, 0, 2, 2]
    assert median[[0, 2, 3]].tolist() == [3.5, 2.5, 1.5]


@pytest.mark.parametrize("n_batches", [2, 3, 4])
def test_genes_of_as_many_batches_are_ordered_by_their_median_rank(n_batches: int) -> None:
    rng = np.random.default_rng(n_batches)
    batches = np.arange(100 * n_batches) % n_batches
    shape = rng.uniform(0.3, 3.0, (n_batches, 90))[batches]  # each batch has genes of its own that vary
    counts = rng.poisson(rng.gamma(shape, 2.0 / shape))
    names = np.arange(90)
    ranks = np.full((n_batches, 90), np.nan)
    for batch in range(n_batches):
        first = ranked_genes(sample_of(counts[batches == batch]), by="dispersion", target_sum=1e4)[:30]
        ranks[batch, first] = np.arange(30)
    table = pd.DataFrame(
        {"hits": -(~np.isnan(ranks)).sum(axis=0), "median": pd.DataFrame(ranks).median(), "name": names}
    )
    expected = table.sort_values(["hits", "median", "name"])["name"].to_numpy()[:30]
    last = table["hits"] == table["hits"][expected[-1]]
    assert last.sum() > last[expected].sum()  # the median decides
    found = select_genes_by_batch(sample_of(counts), batches, n_genes=30, target_sum=1e4)
    assert found.tolist() == sorted(expected)


def test_one_batch_for_each_cell() -> None:
    counts, batches = two_studies()
    with pytest.raises(ValueError, match="599 batches for 600"):
        select_genes_by_batch(sample_of(counts), batches[1:], n_genes=60, target_sum=1e4)


@pytest.mark.real_data
def test_more_genes_of_real_studies_are_measured_in_all(real_data: Callable[[str], Path]) -> None:
    path = real_data("pancreas_4studies.h5ad")
    adata = anndata.read_h5ad(path, backed="r")
    batches = np.unique(adata.obs["batch"].astype(str), return_inverse=True)[1]
    sample = draw_sample(open_atlas(path))
    rows = np.concatenate([block.rows for block in sample.blocks])

    def share_measured_in_all(genes: np.ndarray) -> float:
        counts = sp.csr_matrix(adata[:, list(sample.gene_names[genes])].X)
        seen = [np.asarray((counts[batches == b] > 0).sum(axis=0)).ravel() >= 3 for b in range(4)]
        return float(np.all(seen, axis=0).mean())

    plain = select_genes(sample, n_genes=2000, target_sum=1e4)
    chosen = select_genes_by_batch(sample, batches[rows], n_genes=2000, target_sum=1e4)
    assert share_measured_in_all(chosen) > share_measured_in_all(plain) + 0.2
