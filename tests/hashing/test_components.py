"""Principal components of large samples, and the ranking of genes where cells are shallow."""

from __future__ import annotations

import tracemalloc
from collections.abc import Callable

import numpy as np
import pandas as pd
import pytest

import hashstream.hashing.pca_itq as pca_itq
from hashstream.atlas.sample import Sample
from hashstream.errors import SettingsError
from hashstream.hashing import PcaItqSettings, fit_pca_itq
from hashstream.hashing.anchors.cells import Cells
from hashstream.hashing.components import krylov_components, krylov_width
from hashstream.hashing.hvg import ranked_genes, residual_variance, select_genes
from hashstream.hashing.hvg_batches import select_genes_by_batch
from tests.hashing.test_hvg_batches import sample_of


def typed_counts(
    n_cells: int, n_genes: int, depth: float, marker_rate: float = 2.0, seed: int = 0
) -> tuple[np.ndarray, np.ndarray]:
    """Counts of six types, each with twenty genes of its own, and the types; most genes are hardly seen."""
    rng = np.random.default_rng(seed)
    types = rng.integers(0, 6, n_cells)
    rate = np.tile(rng.gamma(0.3, 1.0, n_genes), (n_cells, 1))
    for kind in range(6):
        rate[np.ix_(types == kind, np.arange(20 * kind, 20 * kind + 20))] += marker_rate
    return rng.poisson(rate * rng.lognormal(0, 0.3, (n_cells, 1)) * depth), types


def test_krylov_components_are_the_leading_eigenvectors() -> None:
    rng = np.random.default_rng(0)
    values = np.concatenate([np.linspace(30, 3, 10), np.full(190, 1.0)])
    basis = np.linalg.qr(rng.normal(size=(200, 200)))[0]
    matrix = (basis * values) @ basis.T
    found = krylov_components(lambda block: matrix @ block, 200, 10, rng=rng)
    np.testing.assert_allclose(found.T @ found, np.eye(10), atol=1e-10)
    np.testing.assert_allclose(np.abs(np.sum(found * basis[:, :10], axis=0)), 1, atol=1e-4)
    assert (found[np.abs(found).argmax(axis=0), np.arange(10)] > 0).all()
    with pytest.raises(ValueError, match=f"at least {krylov_width(10)}"):
        krylov_components(lambda block: block, krylov_width(10) - 1, 10, rng=rng)


def test_large_samples_give_the_components_of_small_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    counts, _ = typed_counts(900, 400, depth=1.0)
    settings = PcaItqSettings(n_bits=4, n_components=5, n_genes=300)
    exact = fit_pca_itq(sample_of(counts), settings, seed=3, threads=2)
    monkeypatch.setattr(pca_itq, "_EXACT_WORK", 0)
    assert not pca_itq.covariance_fits(900, 300, 5)
    found = fit_pca_itq(sample_of(counts), settings, seed=3, threads=2)
    assert np.array_equal(found.gene_names, exact.gene_names)
    np.testing.assert_allclose(found.weights[0], exact.weights[0], atol=2e-3)
    np.testing.assert_allclose(found.biases[0], exact.biases[0], atol=2e-3)
    deviations = (np.array(h.provenance["component_deviation"]) for h in (found, exact))
    np.testing.assert_allclose(*deviations, rtol=1e-3)
    one = fit_pca_itq(sample_of(counts), settings, seed=3, threads=1)
    assert one.fingerprint() == found.fingerprint()


def test_residual_variance_is_that_of_the_dense_residuals() -> None:
    counts, _ = typed_counts(500, 120, depth=0.5)
    counts[:, 7] = 0
    kept = counts.sum(axis=1) > 0
    counts = counts[kept]
    totals = counts.sum(axis=1)
    mu = np.outer(totals, counts.sum(axis=0) / counts.sum())
    with np.errstate(invalid="ignore"):
        residuals = (counts - mu) / np.sqrt(mu + mu**2 / 100)
    expected = np.clip(np.nan_to_num(residuals), -np.sqrt(len(counts)), np.sqrt(len(counts))).var(axis=0)
    found = residual_variance(sample_of(counts))
    assert found[7] == 0
    np.testing.assert_allclose(found, expected, rtol=0.02)  # library sizes of zero counts are taken in groups


def test_a_count_that_stands_out_counts_as_the_root_of_the_number_of_cells() -> None:
    """So that a gene of one odd cell does not come before those of a type."""
    rng = np.random.default_rng(1)
    counts = rng.poisson(np.tile(rng.uniform(0.5, 5.0, 80), (60, 1)))
    counts[:, 5:10] = 0
    counts[[3, 20, 41], [5, 6, 7]] = 80, 150, 30
    counts[:20, 8], counts[20:, 9] = 12, 9
    totals = counts.sum(axis=1)
    mu = np.outer(totals, counts.sum(axis=0) / counts.sum())
    residuals = (counts - mu) / np.sqrt(mu + mu**2 / 100)
    assert (residuals[[3, 20, 41], [5, 6, 7]] > 2 * np.sqrt(60)).all()
    found = residual_variance(sample_of(counts))
    np.testing.assert_allclose(found, np.clip(residuals, -np.sqrt(60), np.sqrt(60)).var(axis=0), rtol=1e-9)
    assert set(np.argsort(-found)[:2]) == {8, 9}


def test_genes_of_shallow_cells_are_ranked_by_residuals() -> None:
    """Marker genes come first, where by dispersion those come that a few cells happen to have."""
    counts, _ = typed_counts(2000, 4000, depth=0.03, marker_rate=15.0)
    counts = counts[counts.sum(axis=1) > 0]
    settings = PcaItqSettings(n_bits=4, n_components=5, n_genes=200)
    chosen = {
        by: select_genes(sample_of(counts), n_genes=200, target_sum=1e4, by=by) for by in ("dispersion", "pearson")
    }
    markers = {by: int((genes < 120).sum()) for by, genes in chosen.items()}
    assert markers["pearson"] > 100
    assert markers["pearson"] > 2 * markers["dispersion"]
    found = fit_pca_itq(sample_of(counts), settings)
    assert found.provenance["genes_by"] == "pearson"
    assert np.array_equal(found.gene_names, sample_of(counts).gene_names[chosen["pearson"]])
    batches = np.random.default_rng(0).integers(0, 2, len(counts))
    by_batch = select_genes_by_batch(sample_of(counts), batches, n_genes=200, target_sum=1e4, by="pearson")
    dispersed = select_genes_by_batch(sample_of(counts), batches, n_genes=200, target_sum=1e4)
    assert (by_batch < 120).sum() > max(60, 2 * (dispersed < 120).sum())
    assert np.array_equal(fit_pca_itq(sample_of(counts), settings, batches=batches).gene_names,
                          sample_of(counts).gene_names[by_batch])  # fmt: skip


def test_dispersion_is_ranked_within_genes_of_like_means() -> None:
    """Against groups that pandas makes; a gene alone in its group is one deviation above it."""
    rng = np.random.default_rng(4)
    counts = rng.poisson(np.exp(rng.uniform(-2, 2, 200)) * rng.gamma(2.0, 0.5, (500, 200)))
    counts[:, 17] = rng.poisson(900, 500)  # alone at the upper end
    normal = counts * (1e4 / counts.sum(axis=1, keepdims=True))
    mean, variance = normal.mean(axis=0), normal.var(axis=0, ddof=1)
    dispersion = pd.Series(np.log(variance / mean))
    groups = dispersion.groupby(pd.cut(np.log1p(mean), 20, labels=False))
    deviation = groups.transform("std")
    alone = groups.transform("size") == 1
    assert alone[17]
    score = ((dispersion - groups.transform("mean")) / deviation).where(~alone, 1.0)
    assert (score > 1).sum() > 10
    found = ranked_genes(sample_of(counts), by="dispersion", target_sum=1e4)
    assert found.tolist() == np.argsort(-score.to_numpy(), kind="stable").tolist()


def test_genes_of_deep_cells_are_ranked_by_dispersion() -> None:
    counts, _ = typed_counts(600, 400, depth=5.0)
    found = fit_pca_itq(sample_of(counts), PcaItqSettings(n_bits=4, n_components=5, n_genes=200))
    assert found.provenance["genes_by"] == "dispersion"
    # Few genes give few values a cell, however deep cells are.
    few = fit_pca_itq(sample_of(counts), PcaItqSettings(n_bits=4, n_components=5, n_genes=40))
    assert few.provenance["values_per_cell"] < 64
    assert few.provenance["genes_by"] == "dispersion"
    asked = fit_pca_itq(sample_of(counts), PcaItqSettings(n_bits=4, n_components=5, n_genes=200, genes_by="pearson"))
    assert asked.provenance["genes_by"] == "pearson"
    with pytest.raises(SettingsError, match="genes_by is 'luck'"):
        PcaItqSettings(genes_by="luck")


def dense_sample(n_cells: int, n_genes: int) -> Sample:
    """Cells that have every gene, as they may in a panel of genes."""
    return sample_of(np.random.default_rng(0).integers(1, 9, (n_cells, n_genes), dtype=np.uint16))


def peak_bytes(function: Callable[[], object]) -> int:
    """What a call holds at most beyond what was held before."""
    tracemalloc.start()
    try:
        function()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def test_components_of_a_panel_take_little_beside_its_values() -> None:
    """Of a panel of genes all values remain: index and value are copied once, and nothing is held in 64 bits."""
    sample = dense_sample(20_000, 200)
    groups = pca_itq._NormalisedGroups(sample, PcaItqSettings(n_bits=8), 1)
    few = pca_itq._NormalisedGroups(dense_sample(512, 200), PcaItqSettings(n_bits=8), 1)
    pca_itq._sparse_components(few, 8, 0, 1)  # compiles
    values = 20_000 * 200
    assert peak_bytes(lambda: pca_itq._sparse_components(groups, 8, 0, 1)) < 11 * values


def test_scores_of_some_cells_and_the_deviation_of_all() -> None:
    rng = np.random.default_rng(0)
    scores = rng.normal(loc=[0, 1, 2], size=(50_001, 3))
    cuts = np.sort(rng.choice(50_001, 9, replace=False))
    some, deviation = pca_itq._some_scores(np.split(scores, cuts), 50_001)
    assert np.array_equal(some, scores[::3])
    np.testing.assert_allclose(deviation, scores.std(axis=0), rtol=1e-9)


def test_the_mean_of_sparse_values_is_that_of_the_dense_ones() -> None:
    groups = pca_itq._NormalisedGroups(dense_sample(700, 50), PcaItqSettings(n_bits=8), 1)
    (indptr, genes, values), of_zero, mean = groups.sparse()
    z = np.concatenate(list(groups.map(lambda z: z)))
    assert indptr[-1] == len(genes) == z.size
    np.testing.assert_allclose(mean, np.bincount(genes, weights=values) / 700, rtol=1e-12)
    np.testing.assert_allclose(mean + of_zero, z.mean(axis=0, dtype=np.float64), atol=1e-5)


def test_moments_of_held_cells_take_little_beside_them() -> None:
    cells = Cells.from_blocks(list(dense_sample(20_000, 200).blocks), 200, 1e4)
    mean, scale = cells.moments()
    dense = cells.values.reshape(20_000, 200).astype(np.float64)
    np.testing.assert_allclose(mean, dense.mean(axis=0), rtol=1e-9)
    np.testing.assert_allclose(scale, dense.std(axis=0, ddof=1), rtol=1e-6)
    assert peak_bytes(cells.moments) < 10 * 20_000 * 200
