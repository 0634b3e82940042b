"""Cells without counts change nothing for the others: in each way of clustering and labelling, and in pseudotime."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp

from hashstream.errors import SettingsError
from hashstream.runtime.run import Run
from hashstream.stages.annotate import annotate
from hashstream.stages.cluster import cluster
from hashstream.stages.empty_cells import counted_tokens
from hashstream.stages.encode import encode
from hashstream.stages.encode_plan import EncodeSettings
from hashstream.stages.evaluate import evaluate
from hashstream.stages.fit import fit
from hashstream.stages.markers import markers
from hashstream.stages.report import report
from hashstream.stages.trajectory import trajectory
from tests.synthetic import make_adata

N, N_EMPTY = 600, 300
ROWS = np.sort(np.random.default_rng(0).choice(N + N_EMPTY, N, replace=False))  # of the cells with counts


def with_empty(adata: ad.AnnData) -> ad.AnnData:
    """The cells at `ROWS`, among others without counts."""
    x = sp.lil_matrix((N + N_EMPTY, adata.n_vars), dtype=np.float32)
    x[ROWS] = adata.X
    obs = pd.DataFrame(index=[f"empty{i}" for i in range(N + N_EMPTY)])
    obs["cell_type"] = "blank"  # of the empty ones
    obs["batch"] = ["a", "b"] * ((N + N_EMPTY) // 2)
    obs.iloc[ROWS, 0] = adata.obs["cell_type"].astype(str).to_numpy()
    return ad.AnnData(sp.csr_matrix(x), obs=obs, var=adata.var)


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("empty")
    adata = make_adata(n_cells=N)
    more = with_empty(adata)
    adata.obs["batch"] = more.obs["batch"].to_numpy()[ROWS]
    adata.write_h5ad(folder / "plain.h5ad")
    more.write_h5ad(folder / "empty.h5ad")
    fit(folder / "plain.h5ad", folder / "hasher")
    for name in ("plain", "empty"):
        encode(folder / f"{name}.h5ad", folder / name, hasher=folder / "hasher")
    return folder


def column(run: Path, name: str) -> np.ndarray[Any, Any]:
    values = pd.concat([batch.to_pandas() for batch in Run.open(run).iter_cells([name])])[name]
    return values.to_numpy() if values.dtype.kind == "f" else values.astype(str).to_numpy(dtype=object)


def alike(runs: Path, name: str) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    """A column of the cells with counts in either run, and that of the others."""
    plain, more = column(runs / "plain", name), column(runs / "empty", name)
    assert np.array_equal(plain, more[ROWS], equal_nan=plain.dtype.kind == "f"), name
    return plain, np.delete(more, ROWS)


@pytest.mark.parametrize(
    "options",
    [
        {"method": "ward", "n_clusters": 4},
        {"method": "kmeans", "n_clusters": 4},
        {"method": "leiden"},
        {"method": "leiden", "assign": "bucket", "bucket_bits": 64},
        {"method": "ward", "n_clusters": 4, "assign": "cell"},
        {"method": "ward", "n_clusters": 4, "batch_key": "batch"},
        {"method": "ward", "n_clusters": 1},
    ],
    ids=lambda options: "-".join(map(str, options.values())),
)
def test_clusters(runs: Path, options: dict[str, Any]) -> None:
    plain = cluster(runs / "plain", **options)
    more = cluster(runs / "empty", **options)
    assert more["sizes"] == plain["sizes"]
    assert more["cells_without_counts"] == N_EMPTY
    assert "cells_without_counts" not in plain
    assert more["cells_moved"] == plain["cells_moved"]
    assert (alike(runs, "cluster")[1] == "empty").all()
    assert (alike(runs, "cluster_confidence")[1] == 0).all()


def test_groups_do_not_have_them(runs: Path, tmp_path: Path) -> None:
    for name in ("plain", "empty"):
        cluster(runs / name, method="ward", n_clusters=4)
        markers(runs / name, target=tmp_path / f"{name}.csv")
    assert (tmp_path / "plain.csv").read_text() == (tmp_path / "empty.csv").read_text()
    report(runs / "empty", target=tmp_path / "r.html", markers=tmp_path / "empty.csv")
    assert evaluate(runs / "empty", "cell_type")["cluster"]["n_clusters"] == 5  # of cells of any kind


@pytest.mark.parametrize("assign", ["bucket", "cell"])
@pytest.mark.parametrize("method", ["both", "vote", "discriminant"])
def test_labels(runs: Path, assign: str, method: str) -> None:
    options = {"labels": "cell_type", "assign": assign, "method": method}
    # Those of the query change nothing, nor do those of the reference, whatever their label is.
    said = [
        annotate(runs / query, reference=runs / reference, **options)
        for query, reference in (("plain", "plain"), ("empty", "plain"), ("plain", "empty"))
    ]
    labels = [one["cells"] | {"unknown": 0} for one in said]
    assert labels[0] == labels[1] == labels[2]
    assert said[1]["rejected"]["empty"] == N_EMPTY
    assert said[0]["novelty_shift"] == said[1]["novelty_shift"] == said[2]["novelty_shift"]
    assert said[2]["n_labels"] == said[0]["n_labels"]
    assert said[2]["unlabelled_reference_cells"] == N_EMPTY
    annotate(runs / "empty", reference=runs / "plain", **options)
    annotate(runs / "plain", reference=runs / "plain", **options)
    assert (alike(runs, "label")[1] == "unknown").all()
    alike(runs, "label_confidence")


def test_pseudotime(runs: Path) -> None:
    for name in ("plain", "empty"):
        cluster(runs / name, method="ward", n_clusters=4)
        said = trajectory(runs / name, root="0")
        assert said["cells_unreached"] == 0
        assert said.get("cells_without_counts", 0) == (N_EMPTY if name == "empty" else 0)
    assert np.isnan(alike(runs, "pseudotime")[1]).all()
    empty = int(np.setdiff1d(np.arange(N + N_EMPTY), ROWS)[0])
    with pytest.raises(SettingsError, match=f"--root-cell {empty}: this cell has no counts"):
        trajectory(runs / "empty", root_cell=empty)


def test_a_run_of_them_alone(tmp_path: Path, runs: Path) -> None:
    adata = make_adata(n_cells=20)
    adata.X = sp.csr_matrix(adata.shape, dtype=np.float32)
    adata.write_h5ad(tmp_path / "a.h5ad")
    encode(tmp_path / "a.h5ad", tmp_path / "run", hasher=runs / "hasher")
    cluster(tmp_path / "run", n_clusters=1)
    assert set(column(tmp_path / "run", "cluster")) == {"empty"}
    annotate(tmp_path / "run", reference=runs / "plain", labels="cell_type")
    assert set(column(tmp_path / "run", "label")) == {"unknown"}


def test_buckets_that_have_cells_with_counts_too(runs: Path, tmp_path: Path) -> None:
    for name in ("plain", "empty"):
        settings = EncodeSettings(bucket_bits=3)
        encode(runs / f"{name}.h5ad", tmp_path / name, hasher=runs / "hasher", settings=settings)
    plain, more = Run.open(tmp_path / "plain"), Run.open(tmp_path / "empty")
    found, kept = counted_tokens(more, more.tokens())
    expected = plain.tokens()
    place = np.flatnonzero((found.codes == expected.codes[:, None]).all(axis=2).any(axis=0))
    assert len(place) == len(expected.counts) == len(found.counts)
    assert np.array_equal(found.counts, expected.counts)
    assert np.allclose(found.means, expected.means, atol=5e-3)  # of float32 times hundreds of cells
    assert more.tokens().n_tokens == kept.max() + 1
    assert not np.allclose(more.tokens().means[kept], expected.means, atol=0.1)
