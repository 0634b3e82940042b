"""The stage `cluster`: what it writes for every cell, with and without batches."""

from __future__ import annotations

from pathlib import Path

import anndata
import numpy as np
import pytest
from sklearn.metrics import adjusted_rand_score

from hashstream.cluster import TransformerSettings
from hashstream.errors import InputError, SettingsError
from hashstream.runtime.run import Run
from hashstream.stages.cluster import cluster
from hashstream.stages.encode import encode
from tests.synthetic import make_adata

QUICK = TransformerSettings(n_steps=15, kl_steps=5, batch_tokens=32, n_hidden=16, n_neighbours=4)


@pytest.fixture(scope="module")
def shifted(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, anndata.AnnData]:
    """Two batches of the same types; in the second half of the genes are caught 25 times as often."""
    adata = make_adata()
    rng = np.random.default_rng(0)
    batch = rng.integers(0, 2, adata.n_obs)
    factor = np.where(rng.random(adata.n_vars) < 0.5, 25, 1)
    counts = adata.X.toarray().astype(np.int64)
    counts[batch == 1] *= factor
    adata.X = type(adata.X)(counts)
    adata.obs["lane"] = np.where(batch == 1, "second", "first")
    adata.obs["one"] = "all"
    adata.obs["gaps"] = np.where(np.arange(adata.n_obs) < 5, None, "x").astype(object)
    path = tmp_path_factory.mktemp("shifted") / "shifted.h5ad"
    adata.write_h5ad(path)
    return path, adata


def column(run: Path, name: str) -> np.ndarray:
    found = [batch.column(0) for batch in Run.open(run).iter_cells([name])]
    return np.concatenate([np.asarray(values.to_pylist()) for values in found])


@pytest.mark.parametrize("method", ["ward", "transformer"])
def test_batches_are_integrated(shifted: tuple[Path, anndata.AnnData], tmp_path: Path, method: str) -> None:
    path, adata = shifted
    encode(path, tmp_path / "run")
    n_types = adata.obs["cell_type"].nunique()
    transformer = QUICK if method == "transformer" else None
    cluster(tmp_path / "run", n_clusters=n_types, method=method, transformer=transformer)
    plain = column(tmp_path / "run", "cluster")
    record = cluster(tmp_path / "run", n_clusters=n_types, method=method, batch_key="lane", transformer=transformer)
    joined = column(tmp_path / "run", "cluster")
    assert record["batch_key"] == "lane"
    assert sum(record["sizes"]) == adata.n_obs
    truth = adata.obs["cell_type"].astype(str)
    assert adjusted_rand_score(truth, joined) > max(0.9, adjusted_rand_score(truth, plain) + 0.1)
    confidence = column(tmp_path / "run", "cluster_confidence")
    assert confidence.shape == (adata.n_obs,)
    assert 0 < confidence.min() <= confidence.max() <= 1


def test_batch_keys_that_cannot_be_used(shifted: tuple[Path, anndata.AnnData], tmp_path: Path) -> None:
    encode(shifted[0], tmp_path / "run")
    with pytest.raises(SettingsError, match="one value"):
        cluster(tmp_path / "run", n_clusters=3, batch_key="one")
    with pytest.raises(InputError, match="lacks the batch of 5"):
        cluster(tmp_path / "run", n_clusters=3, batch_key="gaps")
    with pytest.raises(InputError, match="no column 'nothing'"):
        cluster(tmp_path / "run", n_clusters=3, batch_key="nothing")
    assert "cluster" not in Run.open(tmp_path / "run").cell_columns()


@pytest.mark.parametrize("assign", ["bucket", "cell"])
def test_the_record_says_between_which_clusters_cells_are_torn(small_h5ad: Path, tmp_path: Path, assign: str) -> None:
    encode(small_h5ad, tmp_path / "run")
    record = cluster(tmp_path / "run", n_clusters=40, assign=assign, method="ward")
    mixed = record["mixed"]
    confidence = column(tmp_path / "run", "cluster_confidence")
    share = float((confidence < np.float32(mixed["confidence_below"])).mean())
    assert mixed["share_of_cells"] == pytest.approx(share, abs=1e-4)
    pairs = mixed["between"]
    cells = [pair["cells"] for pair in pairs]
    assert cells == sorted(cells, reverse=True)
    assert 0 < sum(cells) <= round(share * 600)
    assert all(a != b for a, b in (pair["clusters"] for pair in pairs))
    torn = column(tmp_path / "run", "cluster")[confidence < np.float32(mixed["confidence_below"])]
    assert set(pairs[0]["clusters"]) & set(torn)


def test_cells_are_assigned_by_their_codes(small_h5ad: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    encode(small_h5ad, tmp_path / "run")
    record = cluster(tmp_path / "run", n_clusters=4, bucket_bits=4, assign="bucket")
    assert (record["assigned_by"], record["cells_moved"]) == ("bucket", 0)
    of_buckets = column(tmp_path / "run", "cluster")
    record = cluster(tmp_path / "run", n_clusters=4, bucket_bits=4, assign="cell")
    of_cells = column(tmp_path / "run", "cluster")
    assert record["assigned_by"] == "cell"
    assert 0 < record["cells_moved"] < len(of_cells)
    names, sizes = np.unique(of_cells, return_counts=True)
    assert dict(zip(names, sizes, strict=True)) == {str(i): n for i, n in enumerate(record["sizes"])}
    assert record["sizes"] == sorted(record["sizes"], reverse=True)
    truth = anndata.read_h5ad(small_h5ad, backed="r").obs["cell_type"].astype(str)
    assert adjusted_rand_score(truth, of_cells) > adjusted_rand_score(truth, of_buckets) + 0.05
    confidence = column(tmp_path / "run", "cluster_confidence")
    assert 0.5 <= confidence.min() <= confidence.max() <= 1
    # An atlas is large where its buckets of three cells are more than can be clustered.
    assert cluster(tmp_path / "run", n_clusters=4)["assigned_by"] == "bucket"
    monkeypatch.setattr("hashstream.stages.cluster.MOST_POINTS", 10)
    assert cluster(tmp_path / "run", n_clusters=4)["assigned_by"] == "cell"
    assert cluster(tmp_path / "run", n_clusters=4, bucket_bits=4)["assigned_by"] == "bucket"
    assert cluster(tmp_path / "run", n_clusters=1)["sizes"] == [600]


def test_leiden_by_cell_looks_at_landmarks(small_h5ad: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    encode(small_h5ad, tmp_path / "run")
    record = cluster(tmp_path / "run", method="leiden", assign="cell", seed=3)
    assert (record["method"], record["assigned_by"], record["cells_moved"]) == ("leiden", "cell", None)
    of_cells = column(tmp_path / "run", "cluster")
    truth = anndata.read_h5ad(small_h5ad, backed="r").obs["cell_type"].astype(str)
    assert adjusted_rand_score(truth, of_cells) > 0.8
    names, sizes = np.unique(of_cells, return_counts=True)
    assert dict(zip(names, sizes, strict=True)) == {str(i): n for i, n in enumerate(record["sizes"])}
    confidence = column(tmp_path / "run", "cluster_confidence")
    assert record["mixed"]["share_of_cells"] == pytest.approx((confidence < 0.6).mean(), abs=1e-4)
    again = cluster(tmp_path / "run", method="leiden", assign="cell", seed=3)
    assert again["sizes"] == record["sizes"]
    # Coarser than any community of a graph that is not in parts: one cluster.
    with monkeypatch.context() as patch:
        patch.setattr("hashstream.cluster.partition.graph_neighbours", lambda n: n)
        record = cluster(tmp_path / "run", method="leiden", assign="cell", resolution=1e-6)
    assert record["sizes"] == [len(of_cells)]
    assert set(column(tmp_path / "run", "cluster")) == {"0"}
    with pytest.raises(SettingsError, match="landmarks"):
        cluster(tmp_path / "run", method="leiden", assign="cell", n_clusters=10**6)
    with pytest.raises(SettingsError, match="excludes --n-clusters"):
        cluster(tmp_path / "run", method="leiden", assign="cell", n_clusters=3, resolution=1.0)
    # All but the Transformer look at them where the atlas is large.
    monkeypatch.setattr("hashstream.stages.cluster.MOST_POINTS", 10)
    assert "landmarks" in cluster(tmp_path / "run")["chosen_by"]
    for method in ("ward", "kmeans"):
        record = cluster(tmp_path / "run", method=method, n_clusters=4)
        assert (record["method"], record["n_clusters"], record["n_landmarks"]) == (method, 4, len(of_cells))
        assert adjusted_rand_score(truth, column(tmp_path / "run", "cluster")) > 0.8
    assert "landmarks" not in cluster(tmp_path / "run", assign="bucket")["chosen_by"]
    assert "landmarks" not in cluster(tmp_path / "run", bucket_bits=4)["chosen_by"]


def test_the_default_is_leiden_where_the_number_of_clusters_is_not_known(small_h5ad: Path, tmp_path: Path) -> None:
    encode(small_h5ad, tmp_path / "run")
    assert cluster(tmp_path / "run")["method"] == "leiden"
    assert cluster(tmp_path / "run", resolution=2.0)["method"] == "leiden"
    assert cluster(tmp_path / "run", n_clusters=4)["method"] == "ward"
    assert cluster(tmp_path / "run", batch_key="batch")["method"] == "ward"


def test_odd_assignments_are_refused(small_h5ad: Path, tmp_path: Path) -> None:
    encode(small_h5ad, tmp_path / "run")
    with pytest.raises(SettingsError, match="--assign is 'row'"):
        cluster(tmp_path / "run", assign="row")
    with pytest.raises(SettingsError, match="--assign cell and --batch-key"):
        cluster(tmp_path / "run", assign="cell", batch_key="batch")
