"""The simulator: from a seed, of the asked size, with types that can be found again and batches that shift."""

from __future__ import annotations

import hashlib
from pathlib import Path

import anndata as ad
import numpy as np
import pytest
from scipy import stats
from sklearn.cluster import KMeans
from sklearn.decomposition import PCA
from sklearn.metrics import adjusted_rand_score

from hashstream.atlas._sampler import build_table, draw_cells, draw_counts, rooms
from hashstream.atlas.simulate import Simulation, World, _blocks, simulate, type_fractions
from hashstream.errors import SettingsError, TargetExistsError


def digest(folder: Path) -> dict[str, str]:
    files = sorted(p for p in folder.rglob("*") if p.is_file())
    return {str(p.relative_to(folder)): hashlib.sha256(p.read_bytes()).hexdigest() for p in files}


@pytest.fixture(scope="module")
def atlas(tmp_path_factory: pytest.TempPathFactory) -> ad.AnnData:
    path = tmp_path_factory.mktemp("sim") / "a.zarr"
    simulate(path, n_cells=9000, n_genes=2000, n_types=6, n_batches=2, nnz_per_cell=300, seed=3, rare_fraction=0.01)
    return ad.read_zarr(path)


def test_shape_and_tables(atlas: ad.AnnData) -> None:
    assert atlas.shape == (9000, 2000)
    assert list(atlas.var_names[:2]) == ["GENE00001", "GENE00002"]
    assert list(atlas.obs["cell_type"].cat.categories) == [f"type_{t}" for t in range(1, 7)]
    assert list(atlas.obs["batch"].cat.categories) == ["batch_1", "batch_2"]
    kept = atlas.uns["simulation"]
    assert kept["seed"] == 3
    assert kept["n_types"] == 6
    assert len(set(kept["type_lineage"])) == 6


def test_rows_are_sorted_positive_counts(atlas: ad.AnnData) -> None:
    x = atlas.X
    inside = np.ones(x.nnz, bool)
    inside[x.indptr[1:-1][np.diff(x.indptr[1:]) > 0]] = False
    inside[0] = False
    assert np.all(np.diff(x.indices.astype(np.int64))[inside[1:]] > 0)
    assert x.data.min() >= 1
    assert x.indices.max() < 2000


def test_non_zeros_and_popularity_are_as_asked(atlas: ad.AnnData) -> None:
    assert abs(atlas.X.nnz / atlas.n_obs - 300) < 24
    total = np.sort(np.asarray(atlas.X.sum(axis=0)).ravel())[::-1]
    assert total[:100].sum() > 0.3 * total.sum()  # 5% of the genes
    assert total[1000:].sum() > 0.02 * total.sum()  # half of the genes
    cells = np.log(np.asarray(atlas.X.sum(axis=1)).ravel())
    assert 0.25 < cells.std() < 0.5


def test_type_shares(atlas: ad.AnnData) -> None:
    share = atlas.obs["cell_type"].value_counts(normalize=True, sort=False).to_numpy()
    assert abs(share[-1] - 0.01) < 0.006
    assert share[0] > 0.25
    for n, rare in [(1, 0.0005), (6, 0.0005), (80, 0.0005), (6, 0.5)]:
        fractions = type_fractions(n, rare)
        assert abs(fractions.sum() - 1) < 1e-9
        assert fractions[-1] == pytest.approx(rare if rare < 1 / n and n > 1 else 1 / n, rel=1e-6)
        assert np.all(np.diff(fractions) <= 0)


def log_normalised(x: np.ndarray) -> np.ndarray:
    return np.log1p(x / x.sum(axis=1, keepdims=True) * 1e4)


def test_types_are_found_again(tmp_path: Path) -> None:
    simulate(tmp_path / "a.zarr", n_cells=3000, n_genes=2000, n_types=6, nnz_per_cell=400, seed=3, rare_fraction=0.05)
    got = ad.read_zarr(tmp_path / "a.zarr")
    scores = PCA(20, random_state=0).fit_transform(log_normalised(got.X.toarray().astype(np.float64)))
    labels = KMeans(6, n_init=2, random_state=0).fit_predict(scores)
    assert adjusted_rand_score(got.obs["cell_type"], labels) > 0.8


def test_batches_shift_genes(atlas: ad.AnnData) -> None:
    one = atlas[atlas.obs["cell_type"] == "type_1"]
    means = []
    for batch in ("batch_1", "batch_2"):
        x = one[one.obs["batch"] == batch].X.toarray().astype(np.float64)
        half = len(x) // 2
        means.append([x[:half].sum(0), x[half:].sum(0)])
    share = [[part / part.sum() for part in pair] for pair in means]
    seen = np.min([np.minimum(*pair) for pair in means], axis=0) > 200
    assert seen.sum() > 50
    between = np.log(share[0][0][seen] / share[1][0][seen]).std()
    within = np.log(share[0][0][seen] / share[0][1][seen]).std()
    assert between > 0.25  # sqrt(2) x 0.25 expected
    assert within < 0.12


def test_bytes_depend_on_the_seed_alone(tmp_path: Path) -> None:
    sizes = {"n_cells": 9000, "n_genes": 300, "n_types": 4, "n_batches": 3, "nnz_per_cell": 60}
    for name, seed, threads in [("a", 5, 1), ("b", 5, 3), ("c", 6, 3)]:
        simulate(tmp_path / name, seed=seed, threads=threads, **sizes)
    assert digest(tmp_path / "a") == digest(tmp_path / "b")
    assert digest(tmp_path / "a")["X/data/c/0"] != digest(tmp_path / "c")["X/data/c/0"]


def test_counts_are_negative_binomial() -> None:
    """Means, variances and the whole distribution of single genes at a fixed library."""
    d, means = 0.5, np.array([0.02, 0.5, 3.0, 40.0, 0.0001, 1.0])
    ends, single = np.empty((1, 6), np.uint32), np.empty((1, 6), np.uint32)
    sizes, guide = np.empty((1, 6), np.float32), np.empty((1, 1024), np.uint16)
    total = build_table(means / 2, np.full(6, 3.0), means.sum(), d, ends[0], single[0], sizes[0], guide[0])
    assert total == pytest.approx((np.log1p(d * means) / d).sum())
    n = 40_000
    types, expected = np.zeros(n, np.int16), np.empty(n, np.float64)
    draw_cells(np.uint64(9), np.ones(1), np.array([total]), 0.0, types, expected)
    starts, indptr = np.empty(n + 1, np.int64), np.empty(n + 1, np.int64)
    rooms(expected, 6, starts)
    indices, data = np.empty(starts[-1], np.uint16), np.empty(starts[-1], np.uint16)
    order = np.arange(n)[::-1].copy()
    draw_counts(np.uint64(11), types, order, expected, ends, single, sizes, guide, starts, indptr, indices, data)
    x = np.zeros((n, 6))
    x[np.repeat(np.arange(n), np.diff(indptr)), indices[: indptr[-1]]] = data[: indptr[-1]]
    for gene, m in enumerate(means):
        variance = m * (1 + d * m)
        assert abs(x[:, gene].mean() - m) < 5 * np.sqrt(variance / n)
        if m > 0.1:
            assert x[:, gene].var() == pytest.approx(variance, rel=0.1)
            top = int(stats.nbinom.ppf(0.99, 1 / d, 1 / (1 + d * m)))
            expected = stats.nbinom.pmf(np.arange(top), 1 / d, 1 / (1 + d * m)) * n
            observed = np.bincount(x[:, gene].astype(int), minlength=top)[:top]
            rest = n - expected.sum(), n - observed.sum()
            chi2 = ((observed - expected) ** 2 / expected).sum() + (rest[1] - rest[0]) ** 2 / rest[0]
            assert stats.chi2.sf(chi2, top) > 1e-4
    assert abs(np.corrcoef(x[:, 2], x[:, 3])[0, 1]) < 0.03


def test_library_factors_have_mean_one() -> None:
    types, expected = np.empty(50_000, np.int16), np.empty(50_000, np.float64)
    draw_cells(np.uint64(1), np.array([0.25, 1.0]), np.array([500.0, 20.0]), 0.35, types, expected)
    assert (types == 0).mean() == pytest.approx(0.25, abs=0.01)
    for t, clusters in enumerate([500.0, 20.0]):
        factors = expected[types == t] / clusters
        assert factors.mean() == pytest.approx(1, rel=0.01)
        assert np.log(factors).std() == pytest.approx(0.35, rel=0.03)


def test_gaps_are_exponential() -> None:
    """One gene that is never seen twice at one place: the number of clusters of a cell is Poisson."""
    n, mean = 100_000, 2.5
    ends, single = np.full((1, 1), 2**32 - 1, np.uint32), np.full((1, 1), 2**24 - 1, np.uint32)
    sizes, guide = np.zeros((1, 1), np.float32), np.zeros((1, 1024), np.uint16)
    starts, indptr = np.empty(n + 1, np.int64), np.empty(n + 1, np.int64)
    expected = np.full(n, mean)
    rooms(expected, 1, starts)
    indices, data = np.empty(n, np.uint16), np.empty(n, np.uint16)
    types, order = np.zeros(n, np.int16), np.arange(n)
    draw_counts(np.uint64(5), types, order, expected, ends, single, sizes, guide, starts, indptr, indices, data)
    observed = np.bincount(data[: indptr[-1]], minlength=12)[:12].astype(float)
    observed[0] = n - indptr[-1]
    wanted = stats.poisson.pmf(np.arange(12), mean) * n
    assert stats.chi2.sf(((observed - wanted) ** 2 / wanted).sum(), 12) > 1e-4


def test_transcripts_are_about_as_in_sparse_atlases(tmp_path: Path) -> None:
    simulate(tmp_path / "a.zarr", n_cells=500, n_genes=63_561, n_types=30, n_batches=2, nnz_per_cell=600, seed=1)
    x = ad.read_zarr(tmp_path / "a.zarr").X
    assert x.nnz / 500 == pytest.approx(600, rel=0.1)
    assert 1.3 < x.data.mean() < 1.8


@pytest.mark.parametrize("n_genes", [1000, 70_000])
def test_tables_share_the_line_among_the_genes(n_genes: int) -> None:
    rng = np.random.default_rng(0)
    means = rng.lognormal(-3, 3, n_genes)
    ends, single, sizes = np.empty(n_genes, np.uint32), np.empty(n_genes, np.uint32), np.empty(n_genes, np.float32)
    guide = np.empty(1024, np.int32)
    build_table(means, np.ones(n_genes), means.sum(), 0.3, ends, single, sizes, guide)
    weights = np.log1p(0.3 * means) / 0.3
    shares = np.diff(ends.astype(np.int64), prepend=0) / 2**32
    assert np.abs(shares - weights / weights.sum()).max() < 2**-31
    assert np.array_equal(guide, np.searchsorted(ends, np.arange(1024, dtype=np.int64) << 22, side="right"))


def test_progress_and_overwrite(tmp_path: Path) -> None:
    seen: list[tuple[int, int]] = []
    sizes = {"n_cells": 5000, "n_genes": 100, "n_types": 2, "nnz_per_cell": 20}
    simulate(tmp_path / "a.zarr", progress=lambda done, n: seen.append((done, n)), **sizes)
    assert seen == [(4096, 5000), (5000, 5000)]
    many: list[tuple[int, int]] = []
    simulate(tmp_path / "b.zarr", progress=lambda *done: many.append(done), n_batches=3, threads=3, **sizes)
    assert many == [(1666, 5000), (3333, 5000), (5000, 5000)]
    with pytest.raises(TargetExistsError):
        simulate(tmp_path / "a.zarr", **sizes)
    simulate(tmp_path / "a.zarr", overwrite=True, **sizes)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"n_cells": 0}, "n_cells must be at least 1"),
        ({"n_genes": 10}, "n_genes must be between 50"),
        ({"nnz_per_cell": 90}, "more than 70%"),
        ({"n_batches": 200}, "more than the 100 cells"),
        ({"rare_fraction": 0.0}, "rare_fraction"),
        ({"seed": -1}, "seed must not be negative"),
    ],
)
def test_numbers_that_contradict(change: dict[str, float], words: str) -> None:
    with pytest.raises(SettingsError, match=words):
        Simulation(**{"n_cells": 100, "n_genes": 100, "n_types": 3, "nnz_per_cell": 50, **change})  # type: ignore[arg-type]


def test_blocks_of_cells_that_express_many_genes_have_fewer_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hashstream.atlas.simulate.MOST_BLOCK_NNZ", 10_000)
    world = World(Simulation(n_cells=1050, n_genes=2000, n_types=3, nnz_per_cell=100))
    rows = [chunk.n_rows for chunk, _, _ in _blocks(world, 1)]
    assert rows == [100] * 10 + [50]
