"""What the network sees: thinned counts, standardised as the Hasher does, and neighbours among training cells."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from hashstream.atlas import open_atlas
from hashstream.atlas.sample import draw_sample
from hashstream.hashing import PcaItqSettings, fit_pca_itq
from hashstream.hashing.neural.batches import BatchMaker
from hashstream.hashing.neural.neighbours import nearest_cells
from hashstream.hashing.neural.settings import NeuralSettings
from hashstream.hashing.neural.views import Rows, SampleCells, Standardiser, drop_inputs, thin
from hashstream.kernels import encode_rows


@pytest.fixture(scope="module")
def prepared(small_h5ad: Path):  # type: ignore[no-untyped-def]
    sample = draw_sample(open_atlas(small_h5ad))
    start = fit_pca_itq(sample, PcaItqSettings(n_bits=8, n_components=20, n_genes=150))
    return SampleCells(sample), Standardiser(start), start


def dense(rows: Rows, n_genes: int) -> np.ndarray:
    out = np.zeros((len(rows.totals), n_genes), dtype=np.int64)
    out[rows.cells, rows.genes] = rows.counts
    return out


def test_rows_are_those_of_the_file_in_the_order_asked(prepared, small_adata) -> None:  # type: ignore[no-untyped-def]
    cells, _, start = prepared
    numbers = np.array([599, 0, 256, 255, 300])
    rows = cells.rows(numbers)
    expected = small_adata[:, list(start.gene_names)].X.toarray()[numbers]
    assert np.array_equal(dense(rows, cells.n_genes), expected)
    assert np.array_equal(rows.totals, small_adata.X.toarray()[numbers].sum(axis=1))


def test_standardised_values_give_the_embedding_of_the_kernel(prepared, small_adata) -> None:  # type: ignore[no-untyped-def]
    cells, standardise, start = prepared
    numbers = np.arange(100)
    z = standardise(cells.rows(numbers))
    bound = start.bind(small_adata.var, where="small")
    x = small_adata.X[:100]
    encoded = encode_rows(x.indptr, x.indices, x.data, bound.match.gene_map, bound.weights)
    assert np.allclose(z @ start.weights[0] + start.biases[0], encoded.embedding, atol=1e-3)


def test_thinning_keeps_the_share_it_draws(prepared) -> None:  # type: ignore[no-untyped-def]
    cells, _, _ = prepared
    rows = cells.rows(np.arange(400))
    half = thin(rows, (0.5, 0.5), np.random.default_rng(1))
    assert (half.counts <= rows.counts).all()
    assert half.counts.sum() / rows.counts.sum() == pytest.approx(0.5, abs=0.01)
    assert half.totals.sum() / rows.totals.sum() == pytest.approx(0.5, abs=0.01)
    many = rows.counts > 3
    assert half.counts[many].sum() / rows.counts[many].sum() == pytest.approx(0.5, abs=0.02)
    assert (half.totals >= np.bincount(half.cells, half.counts, minlength=400)).all()
    whole = thin(rows, (1.0, 1.0), np.random.default_rng(1))
    assert np.array_equal(whole.counts, rows.counts)
    assert np.array_equal(whole.totals, rows.totals)
    spread = thin(rows, (0.2, 1.0), np.random.default_rng(2)).totals / rows.totals
    assert spread.min() < 0.3
    assert spread.max() > 0.9


def test_thinned_counts_are_binomial() -> None:
    n = 20_000
    rows = Rows(np.arange(n), np.zeros(n, np.int64), np.full(n, 5), np.full(n, 9))
    thinned = thin(rows, (0.3, 0.3), np.random.default_rng(0))
    assert thinned.counts.mean() == pytest.approx(1.5, abs=0.03)
    assert thinned.counts.var() == pytest.approx(5 * 0.3 * 0.7, abs=0.04)
    assert thinned.totals.mean() == pytest.approx(2.7, abs=0.05)
    assert thinned.totals.min() >= 1


def test_dropped_inputs() -> None:
    z = np.ones((200, 500), dtype=np.float32)
    drop_inputs(z, 0.25, np.random.default_rng(0))
    assert set(np.unique(z)) == {0.0, np.float32(256 / 192)}
    assert (z == 0).mean() == pytest.approx(0.25, abs=0.01)
    same = np.ones((3, 4), dtype=np.float32)
    drop_inputs(same, 0.0, np.random.default_rng(0))
    assert (same == 1).all()


def test_neighbours_are_the_nearest_training_cells() -> None:
    scores = np.random.default_rng(0).standard_normal((60, 5)).astype(np.float32)
    held_out, train = np.arange(0, 60, 10), np.setdiff1d(np.arange(60), np.arange(0, 60, 10))
    found = nearest_cells(scores, train, held_out, 4)
    for i in range(60):
        distance = ((scores - scores[i]) ** 2).sum(axis=1)
        distance[held_out] = np.inf
        distance[i] = np.inf
        assert found[i].tolist() == np.argsort(distance)[:4].tolist()


def test_batches_depend_on_seed_and_step_alone_and_hold_no_held_out_cell(prepared) -> None:  # type: ignore[no-untyped-def]
    cells, standardise, _ = prepared
    held_out, train = np.arange(0, 600, 10), np.setdiff1d(np.arange(600), np.arange(0, 600, 10))
    neighbours = np.repeat(np.arange(600)[:, None], 3, axis=1)
    settings = NeuralSettings(batch_cells=540, thinning=(1.0, 1.0), input_dropout=0.0, zinb_genes=10)
    maker = BatchMaker(cells, standardise, neighbours, train, held_out, settings, seed=4)
    later = maker.training(7)
    again = BatchMaker(cells, standardise, neighbours, train, held_out, settings, seed=4).training(7)
    assert all(np.array_equal(a, b) for a, b in zip(later, again, strict=True))
    assert not np.array_equal(later.genes, maker.training(8).genes)
    # Nothing is thinned and the batch is as large as the training set: it is the training set.
    assert np.array_equal(later.z, standardise(cells.rows(train)))
    assert np.array_equal(later.z, later.z_positive)
    assert np.array_equal(later.counts, dense(cells.rows(train), cells.n_genes)[:, later.genes])
    assert np.median(cells.totals) * later.size_factors == pytest.approx(cells.totals[train], rel=1e-6)
    watched = np.concatenate([batch.z for batch in maker.held_out()])
    assert np.array_equal(watched, standardise(cells.rows(held_out)))
