"""`export`: the obs of the source as it was, results beside it, and nothing of the user's lost."""

from __future__ import annotations

from pathlib import Path

import anndata
import numpy as np
import pandas as pd
import pytest

from hashstream.errors import SettingsError
from hashstream.runtime.run import Run
from hashstream.stages.annotate import annotate
from hashstream.stages.cluster import cluster
from hashstream.stages.encode import encode
from hashstream.stages.export import export
from tests.synthetic import make_adata

KINDS = {
    "whole": np.arange(300, dtype=np.int32),
    "real": np.linspace(0, 1, 300),
    "either": np.arange(300) % 2 == 0,
    "nullable whole": pd.array([1, 2, None] * 100, dtype="Int64"),
    "nullable either": pd.array([True, None, False] * 100, dtype="boolean"),
    "text": np.array(["a", "b", "ü"] * 100, dtype=object),
    "kind": pd.Categorical(["x", None, "y"] * 100, categories=["y", "x", "unused"]),
    "ordered": pd.Categorical(["low", "high", "low"] * 100, categories=["low", "high"], ordered=True),
}


def source(path: Path, seed: int = 0) -> anndata.AnnData:
    adata = make_adata(n_cells=300, seed=seed)
    for name, values in KINDS.items():
        adata.obs[name] = values
    adata.obs_names = [f"{seed}-{name}" for name in adata.obs_names]
    adata.write_h5ad(path)
    return anndata.read_h5ad(path)


def exported(run: Run, target: Path, **options: object) -> anndata.AnnData:
    export(run, target, **options)  # type: ignore[arg-type]
    return anndata.read_h5ad(target) if target.suffix == ".h5ad" else anndata.read_zarr(target)


def plain(values: pd.Series) -> list[object]:
    return [None if pd.isna(value) else value for value in values]


@pytest.mark.parametrize("suffix", [".h5ad", ".zarr"])
def test_columns_of_every_kind_stay_what_they_are(tmp_path: Path, suffix: str) -> None:
    adata = source(tmp_path / "in.h5ad")
    run = encode(tmp_path / "in.h5ad", tmp_path / "run")
    assert run is not None
    out = exported(run, tmp_path / f"out{suffix}")
    pd.testing.assert_frame_equal(out.obs[list(adata.obs)], adata.obs)


def test_columns_of_two_stores_follow_each_other(tmp_path: Path) -> None:
    parts = [source(tmp_path / f"{seed}.h5ad", seed) for seed in (0, 1)]
    run = encode([tmp_path / "0.h5ad", tmp_path / "1.h5ad"], tmp_path / "run")
    assert run is not None
    out = exported(run, tmp_path / "out.h5ad")
    assert list(out.obs_names) == [*parts[0].obs_names, *parts[1].obs_names]
    for name in KINDS:
        whole = [value for part in parts for value in plain(part.obs[name])]
        assert plain(out.obs[name]) == whole, name
        assert out.obs[name].dtype.kind == parts[0].obs[name].dtype.kind, name


def test_a_column_of_another_kind_in_each_store(tmp_path: Path) -> None:
    for seed, values in ((0, np.arange(300)), (1, np.array(["a", "b", "c"] * 100, dtype=object))):
        adata = make_adata(n_cells=300, seed=seed)
        adata.obs["mixed"] = values
        adata.obs_names = [f"{seed}-{name}" for name in adata.obs_names]
        adata.write_h5ad(tmp_path / f"{seed}.h5ad")
    run = encode([tmp_path / "0.h5ad", tmp_path / "1.h5ad"], tmp_path / "run")
    assert run is not None
    out = exported(run, tmp_path / "out.h5ad")
    assert out.obs["mixed"].astype(str).tolist() == [*map(str, range(300)), *["a", "b", "c"] * 100]


def test_the_atlas_itself_is_not_overwritten(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    adata = source(tmp_path / "in.h5ad")
    run = encode(tmp_path / "in.h5ad", tmp_path / "run")
    assert run is not None
    monkeypatch.chdir(tmp_path)
    for path in (tmp_path / "in.h5ad", Path("in.h5ad"), Path("run") / ".." / "in.h5ad"):
        with pytest.raises(SettingsError, match="this is the atlas"):
            export(run, path, force=True)
    assert (anndata.read_h5ad(tmp_path / "in.h5ad").X != adata.X).nnz == 0


@pytest.mark.filterwarnings("ignore:Consolidated metadata")
def test_results_that_a_run_has_no_more_go_from_the_atlas(tmp_path: Path) -> None:
    adata = source(tmp_path / "in.h5ad")
    with anndata.settings.override(zarr_write_format=3, auto_shard_zarr_v3=True):
        adata.write_zarr(tmp_path / "own.zarr")
    run = encode(tmp_path / "own.zarr", tmp_path / "run")
    assert run is not None
    cluster(run, n_clusters=4)
    annotate(Run.open(run.path), reference=run, labels="cell_type")
    first = export(run.path, tmp_path / "own.zarr")
    assert {"bucket", "cluster", "label"} <= set(first["obs"])
    assert "removed" not in first
    run = encode(tmp_path / "own.zarr", tmp_path / "run", force=True)
    assert run is not None
    again = export(run, tmp_path / "own.zarr")
    assert set(again["removed"]) == set(first["obs"]) - {"bucket"}
    out = anndata.read_zarr(tmp_path / "own.zarr")
    assert list(out.obs) == [*adata.obs, "bucket"]
    assert (out.X != adata.X).nnz == 0
