"""Counts in a layer that HashStream would not find by itself: every stage takes them from there, or needs none."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import anndata
import numpy as np
import pytest
import scipy.sparse as sp
from click.testing import Result

from hashstream.runtime.run import Run
from tests.synthetic import make_adata

Cli = Callable[..., Result]


def ok(result: Result) -> Result:
    assert result.exit_code == 0, result.output
    return result


@pytest.fixture(params=["normalised", "other counts"])
def run(request: pytest.FixtureRequest, hashstream: Cli, tmp_path: Path) -> Path:
    adata = make_adata(n_cells=700)
    adata.layers["umi"] = adata.X.copy()
    if request.param == "normalised":
        adata.X = sp.csr_matrix(adata.X / adata.X.sum(axis=1))
    else:
        adata.X = adata.X[::-1].copy()
    adata.write_h5ad(tmp_path / "atlas.h5ad")
    ok(hashstream("encode", tmp_path / "atlas.h5ad", "-o", tmp_path / "run", "--layer", "umi", "--bits", 16))
    ok(hashstream("cluster", tmp_path / "run", "--n-clusters", 4))
    return tmp_path / "run"


def test_columns_of_obs_are_read(hashstream: Cli, run: Path) -> None:
    scores = json.loads(ok(hashstream("evaluate", run, "--truth", "cell_type", "--json")).stdout)
    assert scores["cluster"]["ari"] > 0.9
    ok(hashstream("trajectory", run, "--root", "type 1", "--by", "cell_type"))
    ok(hashstream("report", run, "-o", run.parent / "report.html", "--truth", "cell_type"))
    ok(hashstream("reference", run, "-o", run.parent / "database", "--labels", "cell_type"))
    ok(hashstream("annotate", run, "--reference", run, "--labels", "cell_type"))


def test_counts_are_those_of_the_layer(hashstream: Cli, run: Path) -> None:
    ok(hashstream("markers", run, "--by", "cell_type", "-o", run.parent / "markers.csv"))
    ok(hashstream("cluster", run, "--batch-key", "batch"))
    ok(hashstream("export", run, "--to", run.parent / "out.h5ad"))
    source, out = anndata.read_h5ad(run.parent / "atlas.h5ad"), anndata.read_h5ad(run.parent / "out.h5ad")
    assert (source.layers["umi"] != out.X).nnz == 0
    assert list(out.obs_names) == list(source.obs_names)
    assert list(out.obs["cell_type"]) == list(source.obs["cell_type"])


def test_no_counts_are_needed_where_none_are_read(hashstream: Cli, run: Path) -> None:
    """Results go to the cells of a store whose counts are gone."""
    bare = anndata.read_h5ad(run.parent / "atlas.h5ad")
    bare = anndata.AnnData(obs=bare.obs)
    bare.write_h5ad(run.parent / "bare.h5ad")
    arguments = ("--to", run.parent / "out.h5ad", "--no-counts", "--atlas", run.parent / "bare.h5ad")
    ok(hashstream("export", run, *arguments))
    out = anndata.read_h5ad(run.parent / "out.h5ad")
    clusters = np.concatenate([b.to_pandas()["cluster"] for b in Run.open(run).iter_cells(["cluster"])])
    assert out.obs["cluster"].to_numpy().tolist() == clusters.tolist()
    assert "cell_type" in out.obs
    ok(hashstream("evaluate", run, "--truth", "cell_type", "--atlas", run.parent / "bare.h5ad"))


def test_an_atlas_of_other_cells_is_refused_for_its_counts(hashstream: Cli, run: Path) -> None:
    make_adata(n_cells=700, seed=1).write_h5ad(run.parent / "other.h5ad")
    result = hashstream("export", run, "--to", run.parent / "out.h5ad", "--atlas", run.parent / "other.h5ad")
    assert result.exit_code == 1
    assert "layers/umi" in result.stderr
    other = make_adata(n_cells=700, seed=1)
    other.layers["umi"] = other.X.copy()
    other.write_h5ad(run.parent / "other.h5ad")
    result = hashstream("export", run, "--to", run.parent / "out.h5ad", "--atlas", run.parent / "other.h5ad")
    assert result.exit_code == 1
    assert "another code" in result.stderr
    assert not (run.parent / "out.h5ad").exists()
