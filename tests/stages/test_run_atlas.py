"""A run and the atlas that it encoded: results go to their own cells, or are refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import anndata
import h5py
import numpy as np
import pandas as pd
import pytest

from hashstream.errors import InputError, SettingsError
from hashstream.runtime.run import Run
from hashstream.stages.annotate import annotate
from hashstream.stages.append import append
from hashstream.stages.cluster import cluster
from hashstream.stages.encode import encode
from hashstream.stages.evaluate import evaluate
from hashstream.stages.export import export
from hashstream.stages.fit import fit
from hashstream.stages.reference import build_reference
from hashstream.stages.trajectory import trajectory


@pytest.fixture
def run(small_adata: anndata.AnnData, tmp_path: Path) -> Run:
    """A clustered run of atlas.h5ad, whose cells are in no order of their names."""
    small_adata.obs_names = [f"cell{i * 7919 % 600:03d}" for i in range(600)]
    small_adata.write_h5ad(tmp_path / "atlas.h5ad")
    made = encode(tmp_path / "atlas.h5ad", tmp_path / "run")
    cluster(made.path, n_clusters=4)
    return Run.open(made.path)


def resorted(path: Path) -> anndata.AnnData:
    adata = anndata.read_h5ad(path)
    return adata[adata.obs_names.argsort()].copy()


STAGES: dict[str, Callable[[Run, Path], object]] = {
    "evaluate": lambda run, _: evaluate(run, "cell_type"),
    "annotate": lambda run, _: annotate(run, reference=run, labels="cell_type"),
    "reference": lambda run, folder: build_reference([run], folder / "database", labels="cell_type"),
    "trajectory": lambda run, _: trajectory(run, root="type 0", by="cell_type"),
    "export": lambda run, folder: export(run, folder / "out.h5ad"),
    "export without counts": lambda run, folder: export(run, folder / "out.h5ad", counts=False),
}


@pytest.mark.parametrize("stage", list(STAGES))
def test_an_atlas_that_was_sorted_since_is_refused(run: Run, tmp_path: Path, stage: str) -> None:
    resorted(tmp_path / "atlas.h5ad").write_h5ad(tmp_path / "atlas.h5ad")
    with pytest.raises(InputError, match="other names than those|has another code"):
        STAGES[stage](run, tmp_path)


@pytest.mark.filterwarnings("ignore:Writing zarr v2")
def test_results_are_not_written_into_a_store_in_another_order(run: Run, tmp_path: Path) -> None:
    anndata.read_h5ad(tmp_path / "atlas.h5ad").write_zarr(tmp_path / "same.zarr")
    resorted(tmp_path / "atlas.h5ad").write_zarr(tmp_path / "sorted.zarr")
    with pytest.raises(InputError, match="or these in another order"):
        export(run, tmp_path / "sorted.zarr")
    assert "cluster" not in anndata.read_zarr(tmp_path / "sorted.zarr").obs
    export(run, tmp_path / "same.zarr")
    assert "cluster" in anndata.read_zarr(tmp_path / "same.zarr").obs


def test_renamed_cells_are_known_by_their_codes(run: Run, tmp_path: Path) -> None:
    adata = anndata.read_h5ad(tmp_path / "atlas.h5ad")
    adata.obs_names = [f"{name}-1" for name in adata.obs_names]
    adata.write_h5ad(tmp_path / "atlas.h5ad")
    assert evaluate(run, "cell_type")["n_cells"] == 600


def test_counts_may_have_become_something_else(run: Run, tmp_path: Path) -> None:
    """As after `normalize_total` and `log1p`: the cells have their names still."""
    adata = anndata.read_h5ad(tmp_path / "atlas.h5ad")
    adata.X = adata.X.multiply(0.37).tocsr()
    adata.write_h5ad(tmp_path / "atlas.h5ad")
    assert evaluate(run, "cell_type")["n_cells"] == 600


def test_stores_in_another_order_and_put_together(run: Run, tmp_path: Path) -> None:
    adata = anndata.read_h5ad(tmp_path / "atlas.h5ad")
    for name, part in (("a", slice(0, 400)), ("b", slice(400, 600))):
        adata[part].copy().write_h5ad(tmp_path / f"{name}.h5ad")
    a, b = (str(tmp_path / f"{name}.h5ad") for name in "ab")
    expected = evaluate(run, "cell_type")
    assert evaluate(run, "cell_type", atlas=[a, b]) == expected
    with pytest.raises(InputError, match="its stores in the same order"):
        evaluate(run, "cell_type", atlas=[b, a])
    both = encode([a, b], tmp_path / "both", hasher=run.path / "hasher")
    assert evaluate(both, "cell_type", atlas=str(tmp_path / "atlas.h5ad"))["buckets"] == expected["buckets"]
    with pytest.raises(InputError, match="in another order"):
        evaluate(both, "cell_type", atlas=[b, a])


def test_appended_stores_are_known_too(run: Run, tmp_path: Path) -> None:
    adata = anndata.read_h5ad(tmp_path / "atlas.h5ad")
    for name, part in (("a", slice(0, 400)), ("b", slice(400, 600))):
        adata[part].copy().write_h5ad(tmp_path / f"{name}.h5ad")
    encode(tmp_path / "a.h5ad", tmp_path / "grown", hasher=run.path / "hasher")
    grown = append(tmp_path / "b.h5ad", tmp_path / "grown")
    assert len(grown.meta["input"]["cell_names"]) == 2
    assert evaluate(grown, "cell_type")["n_cells"] == 600
    resorted(tmp_path / "b.h5ad").write_h5ad(tmp_path / "b.h5ad")
    with pytest.raises(InputError, match="in another order"):
        evaluate(grown, "cell_type")


def test_a_run_of_an_earlier_version_has_no_names(run: Run, tmp_path: Path) -> None:
    old = Run(run.path, json.loads(json.dumps(run.meta)))
    del old.meta["input"]["cell_names"]
    resorted(tmp_path / "atlas.h5ad").write_h5ad(tmp_path / "atlas.h5ad")
    assert evaluate(old, "cell_type")["n_cells"] == 600


@pytest.mark.parametrize(
    ("values", "words"),
    [
        (np.random.default_rng(0).integers(0, 200, 600) / 7, r"holds 1\d\d fractions"),
        ([f"donor {i}" for i in range(600)], "600 different values among 600 cells"),
    ],
)
def test_columns_that_are_no_categories(run: Run, tmp_path: Path, values: object, words: str) -> None:
    adata = anndata.read_h5ad(tmp_path / "atlas.h5ad")
    adata.obs["odd"] = values
    adata.write_h5ad(tmp_path / "atlas.h5ad")
    for stage in (
        lambda: evaluate(run, "odd"),
        lambda: annotate(run, reference=run, labels="odd"),
        lambda: cluster(run.path, batch_key="odd"),
        lambda: encode(tmp_path / "atlas.h5ad", tmp_path / "other", batch_key="odd"),
    ):
        with pytest.raises(InputError, match=words):
            stage()


def test_two_cells_that_changed_places_are_noticed(run: Run, tmp_path: Path) -> None:
    adata = anndata.read_h5ad(tmp_path / "atlas.h5ad")
    order = np.arange(600)
    order[[100, 101]] = 101, 100
    adata[order].copy().write_h5ad(tmp_path / "atlas.h5ad")
    with pytest.raises(InputError, match="in another order"):
        evaluate(run, "cell_type", atlas=str(tmp_path / "atlas.h5ad"))


@pytest.mark.parametrize("index", ["numbers", "categories"])
def test_an_index_that_is_no_text_is_not_looked_at(run: Run, tmp_path: Path, index: str) -> None:
    with h5py.File(tmp_path / "atlas.h5ad", "r+") as file:
        del file["obs/_index"]
        values = np.arange(600) if index == "numbers" else pd.Categorical([f"c{i}" for i in range(600)])
        anndata.io.write_elem(file["obs"], "_index", values)
    made = encode(tmp_path / "atlas.h5ad", tmp_path / "other", hasher=run.path / "hasher")
    assert made.meta["input"]["cell_names"] == [None]
    assert evaluate(made, "cell_type")["n_cells"] == 600


@pytest.mark.parametrize("lost", ["run.json", "buckets.parquet"])
def test_a_damaged_run_is_replaced(run: Run, tmp_path: Path, lost: str) -> None:
    (run.path / lost).unlink()
    assert encode(tmp_path / "atlas.h5ad", run.path, force=True).n_cells == 600


def test_days_may_be_groups(run: Run, tmp_path: Path) -> None:
    adata = anndata.read_h5ad(tmp_path / "atlas.h5ad")
    adata.obs["day"] = np.array([8.5, 9.0, 9.5])[np.arange(600) % 3]
    adata.write_h5ad(tmp_path / "atlas.h5ad")
    assert set(annotate(run, reference=run, labels="day", unknown_threshold=0)["cells"]) <= {"8.5", "9", "9.5"}


@pytest.mark.parametrize("categorical", [True, False])
def test_texts_for_no_value_are_none(run: Run, tmp_path: Path, categorical: bool) -> None:
    adata = anndata.read_h5ad(tmp_path / "atlas.h5ad")
    told = adata.obs["cell_type"].astype(str).to_numpy(dtype=object)
    for i, nothing in enumerate(["", "nan", "NaN", "<NA>", None, "unknown"]):
        told[i * 10 : i * 10 + 10] = nothing
    adata.obs["told"] = pd.Categorical(told) if categorical else pd.array(told, dtype="string")
    adata.write_h5ad(tmp_path / "atlas.h5ad")
    record = annotate(run, reference=run, labels="told")
    assert record["unlabelled_reference_cells"] == 60
    assert record["n_labels"] == 4


def test_a_hasher_of_several_batches_is_fitted_on_the_way(run: Run, tmp_path: Path) -> None:
    adata = anndata.read_h5ad(tmp_path / "atlas.h5ad")
    adata.obs["study"] = np.array(["a", "b"])[np.arange(600) % 2]
    adata.write_h5ad(tmp_path / "atlas.h5ad")
    made = encode(tmp_path / "atlas.h5ad", tmp_path / "other", batch_key="study")
    alone = fit(tmp_path / "atlas.h5ad", tmp_path / "hasher", batch_key="study")
    assert made.hasher().fingerprint() == alone.fingerprint() != run.hasher().fingerprint()
    assert made.meta["plan"]["made_by"]["batch_key"] == "study"
    with pytest.raises(SettingsError, match="leave either out"):
        encode(tmp_path / "atlas.h5ad", tmp_path / "third", batch_key="study", hasher=alone)


def test_what_is_no_run_is_told(run: Run, tmp_path: Path) -> None:
    build_reference([run], tmp_path / "database", labels="cell_type")
    for name, words in (
        ("atlas.h5ad", "a file, but a run is a folder"),
        ("database", "It is a reference database"),
        ("run/hasher", "It is a hasher"),
    ):
        with pytest.raises(InputError, match=words):
            Run.open(tmp_path / name)
    with pytest.raises(InputError, match="an AnnData in memory is given"):
        encode(anndata.read_h5ad(tmp_path / "atlas.h5ad"), tmp_path / "other")
    assert cluster(run.path, n_clusters="auto")["n_clusters"] == cluster(run.path)["n_clusters"]


def test_an_export_replaces_its_own_columns(run: Run, tmp_path: Path) -> None:
    export(run, tmp_path / "out.zarr")
    cluster(run.path, n_clusters=2)
    export(run.path, tmp_path / "out.zarr")
    obs = anndata.read_zarr(tmp_path / "out.zarr").obs
    assert obs["cluster"].nunique() == 2
    assert not [name for name in obs if name.startswith("hashstream_")]


@pytest.mark.parametrize("suffix", ["h5ad", "zarr"])
def test_the_index_keeps_its_name(run: Run, tmp_path: Path, suffix: str) -> None:
    adata = anndata.read_h5ad(tmp_path / "atlas.h5ad")
    adata.obs.index.name = "bucket"  # which an export would call a column
    adata.write_h5ad(tmp_path / "atlas.h5ad")
    export(run, tmp_path / f"out.{suffix}")
    read = anndata.read_h5ad if suffix == "h5ad" else anndata.read_zarr
    got = read(tmp_path / f"out.{suffix}")
    assert got.obs.index.name == "bucket"
    assert list(got.obs_names) == list(adata.obs_names)
    assert "hashstream_bucket" in got.obs


def test_scipy_can_work_on_exported_counts(run: Run, tmp_path: Path) -> None:
    """Some of its functions want row pointers and indices of one type."""
    adata = anndata.read_h5ad(tmp_path / "atlas.h5ad")
    adata.X = adata.X.astype(np.float32)
    adata.write_h5ad(tmp_path / "atlas.h5ad")
    export(run, tmp_path / "out.h5ad")
    got = anndata.read_h5ad(tmp_path / "out.h5ad").X
    assert got.indices.dtype == got.indptr.dtype == np.int32
    got.eliminate_zeros()
    assert (got != adata.X).nnz == 0
