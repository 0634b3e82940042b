"""`export`: the obs of the source as it was, results beside it, and nothing of the user's lost."""

from __future__ import annotations

from pathlib import Path

import anndata
import numpy as np
import pandas as pd
import pytest
import zarr

from hashstream.errors import InputError, SettingsError
from hashstream.runtime.run import Run
from hashstream.stages import export as stage
from hashstream.stages.annotate import annotate
from hashstream.stages.cluster import cluster
from hashstream.stages.encode import encode
from hashstream.stages.evaluate import evaluate
from hashstream.stages.export import export
from hashstream.stages.report import report
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


def test_columns_that_one_store_has_are_missing_in_the_other(tmp_path: Path) -> None:
    first, second = source(tmp_path / "0.h5ad", 0), make_adata(n_cells=300, seed=1)
    second.obs_names = [f"1-{name}" for name in second.obs_names]
    second.obs["own"] = np.arange(300)
    second.write_h5ad(tmp_path / "1.h5ad")
    run = encode([tmp_path / "0.h5ad", tmp_path / "1.h5ad"], tmp_path / "run")
    assert run is not None
    for suffix in (".h5ad", ".zarr"):
        out = exported(run, tmp_path / f"out{suffix}")
        for name in KINDS:
            assert plain(out.obs[name]) == plain(first.obs[name]) + [None] * 300, name
        assert plain(out.obs["own"]) == [None] * 300 + list(range(300))
        assert list(out.obs["ordered"].cat.categories) == ["low", "high"]
    cluster(run, n_clusters=3)
    found = evaluate(run, "kind")
    assert found["n_cells"] == 200  # those with a value
    with pytest.raises(InputError, match="obs has no column 'nothing'"):
        evaluate(run, "nothing")


def test_genes_in_another_order_are_put_in_the_order_of_the_first_store(tmp_path: Path) -> None:
    parts = [make_adata(n_cells=300, seed=seed) for seed in (0, 1)]
    parts[1] = parts[1][:, np.random.default_rng(0).permutation(parts[1].n_vars)].copy()
    for seed, part in enumerate(parts):
        part.obs_names = [f"{seed}-{name}" for name in part.obs_names]
        part.write_h5ad(tmp_path / f"{seed}.h5ad")
    run = encode([tmp_path / "0.h5ad", tmp_path / "1.h5ad"], tmp_path / "run")
    assert run is not None
    out = exported(run, tmp_path / "out.h5ad")
    assert list(out.var_names) == list(parts[0].var_names)
    assert out.X.has_canonical_format
    for rows, part in ((slice(300), parts[0]), (slice(300, 600), parts[1])):
        assert (out[rows, part.var_names].X != part.X).nnz == 0
    parts[1][:, 1:].write_h5ad(tmp_path / "1.h5ad")
    run = encode([tmp_path / "0.h5ad", tmp_path / "1.h5ad"], tmp_path / "run", force=True)
    assert run is not None
    with pytest.raises(SettingsError, match=r"0.h5ad have different genes.*hashstream ingest.*--no-counts"):
        export(run, tmp_path / "out2.h5ad")


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


@pytest.mark.filterwarnings("ignore:Consolidated metadata")
def test_columns_of_an_earlier_export_leave_nothing_behind(tmp_path: Path) -> None:
    """Not even arrays that no list of columns names any more."""
    adata = source(tmp_path / "in.h5ad")
    with anndata.settings.override(zarr_write_format=3, auto_shard_zarr_v3=True):
        adata.write_zarr(tmp_path / "own.zarr")
    before = sorted(path.name for path in (tmp_path / "own.zarr" / "obs").iterdir())
    run = encode(tmp_path / "own.zarr", tmp_path / "run")
    assert run is not None
    cluster(run, n_clusters=4)
    export(run.path, tmp_path / "own.zarr")
    assert (tmp_path / "own.zarr" / "obs" / "cluster").is_dir()
    run = encode(tmp_path / "own.zarr", tmp_path / "run", force=True)
    assert run is not None
    export(run, tmp_path / "own.zarr")
    assert sorted(path.name for path in (tmp_path / "own.zarr" / "obs").iterdir()) == sorted([*before, "bucket"])


@pytest.mark.filterwarnings("ignore:Consolidated metadata")
@pytest.mark.parametrize("target", ["own.zarr", "new.zarr", "new.h5ad"])
def test_no_column_of_the_user_is_replaced(tmp_path: Path, target: str) -> None:
    adata = source(tmp_path / "in.h5ad")
    adata.obs["bucket"], adata.obs["hashstream_bucket"] = "mine", "mine, too"
    with anndata.settings.override(zarr_write_format=3, auto_shard_zarr_v3=True):
        adata.write_zarr(tmp_path / "own.zarr")
    run = encode(tmp_path / "own.zarr", tmp_path / "run")
    assert run is not None
    out = exported(run, tmp_path / target)
    assert set(out.obs["bucket"]) == {"mine"}
    assert set(out.obs["hashstream_bucket"]) == {"mine, too"}
    assert out.obs["hashstream_hashstream_bucket"].nunique() == run.n_buckets


@pytest.mark.filterwarnings("ignore:Consolidated metadata")
@pytest.mark.parametrize("new", ["new.zarr", "new.h5ad"])
def test_a_new_file_has_the_results_of_now_alone(tmp_path: Path, new: str) -> None:
    """The atlas holds those of an earlier export."""
    adata = source(tmp_path / "in.h5ad")
    with anndata.settings.override(zarr_write_format=3, auto_shard_zarr_v3=True):
        adata.write_zarr(tmp_path / "own.zarr")
    run = encode(tmp_path / "own.zarr", tmp_path / "run")
    assert run is not None
    for n_clusters in (6, 3):
        cluster(run.path, n_clusters=n_clusters)
        if n_clusters == 6:
            export(run.path, tmp_path / "own.zarr")
    report = export(run.path, tmp_path / new)
    assert report["left_out"] == ["bucket", "cluster", "cluster_confidence"]
    out = anndata.read_h5ad(tmp_path / new) if new.endswith("h5ad") else anndata.read_zarr(tmp_path / new)
    assert out.obs["cluster"].nunique() == 3
    assert not [name for name in out.obs if name.startswith("hashstream_")]


@pytest.mark.filterwarnings("ignore:Consolidated metadata")
def test_an_array_of_the_user_is_kept(tmp_path: Path) -> None:
    adata = source(tmp_path / "in.h5ad")
    adata.obsm["X_hash"] = np.ones((adata.n_obs, 2))
    with anndata.settings.override(zarr_write_format=3, auto_shard_zarr_v3=True):
        adata.write_zarr(tmp_path / "own.zarr")
    run = encode(tmp_path / "own.zarr", tmp_path / "run")
    assert run is not None
    for _ in range(2):
        assert export(run.path, tmp_path / "own.zarr")["obsm"] == ["hashstream_X_hash"]
        out = anndata.read_zarr(tmp_path / "own.zarr")
        assert {name: out.obsm[name].shape[1] for name in out.obsm} == {"X_hash": 2, "hashstream_X_hash": 64}
    export(run.path, tmp_path / "own.zarr", force=True)
    assert anndata.read_zarr(tmp_path / "own.zarr").obsm["X_hash"].shape[1] == 64


@pytest.mark.filterwarnings("ignore:Consolidated metadata", "ignore:Writing zarr v2")
@pytest.mark.parametrize("zarr_format", [2, 3])
@pytest.mark.parametrize("last", ["obsm", "obs"])
def test_the_atlas_can_be_read_wherever_an_export_ends(
    tmp_path: Path, zarr_format: int, last: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    adata = source(tmp_path / "in.h5ad")
    with anndata.settings.override(zarr_write_format=zarr_format, auto_shard_zarr_v3=zarr_format == 3):
        adata.write_zarr(tmp_path / "own.zarr")
    run = encode(tmp_path / "own.zarr", tmp_path / "run")
    assert run is not None
    for n_clusters in (2, 12):
        cluster(run.path, n_clusters=n_clusters)
        if n_clusters == 2:
            export(run.path, tmp_path / "own.zarr")
            assert zarr.open_group(tmp_path / "own.zarr", mode="r").metadata.consolidated_metadata is not None
    real = stage.publish

    def killed(partial: Path, target: Path) -> None:
        real(partial, target)
        if target.name == last:
            raise KeyboardInterrupt

    monkeypatch.setattr(stage, "publish", killed)
    with pytest.raises(KeyboardInterrupt):
        export(run.path, tmp_path / "own.zarr")
    out = anndata.read_zarr(tmp_path / "own.zarr")
    assert out.obs["cluster"].nunique() == (2 if last == "obsm" else 12)
    assert out.obs["text"].tolist() == adata.obs["text"].tolist()


@pytest.mark.filterwarnings("ignore:Consolidated metadata")
@pytest.mark.parametrize("kind", ["new.h5ad", "own.zarr", "page.html"])
def test_a_run_that_changes_meanwhile_is_noticed(tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    adata = source(tmp_path / "in.h5ad")
    with anndata.settings.override(zarr_write_format=3, auto_shard_zarr_v3=True):
        adata.write_zarr(tmp_path / "own.zarr")
    run = encode(tmp_path / "own.zarr", tmp_path / "run")
    assert run is not None
    cluster(run, n_clusters=2)
    real = Run.iter_cells

    def iter_cells(self: Run, columns: list[str]) -> object:
        monkeypatch.undo()
        cluster(run.path, n_clusters=5)
        return real(self, columns)

    monkeypatch.setattr(Run, "iter_cells", iter_cells)
    write = report if kind == "page.html" else export
    with pytest.raises(InputError, match="another command has changed the run meanwhile"):
        write(run.path, target=tmp_path / kind)
    assert (tmp_path / kind).exists() == (kind == "own.zarr")
    assert list(anndata.read_zarr(tmp_path / "own.zarr").obs) == list(adata.obs)
