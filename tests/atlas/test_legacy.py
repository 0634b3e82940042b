"""Files of older AnnData: what AnnData of today reads in them is read."""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import anndata as ad
import h5py
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
import zarr
from click.testing import Result

from hashstream.atlas import open_atlas
from hashstream.atlas.ingest import ingest
from hashstream.errors import InputError
from hashstream.runtime.run import Run
from tests.synthetic import make_adata

Cli = Callable[..., Result]
# AnnData says that it reads old files, and that zarr format 2 is old.
pytestmark = pytest.mark.filterwarnings("ignore::PendingDeprecationWarning", "ignore::FutureWarning")
BIG = 2**40


def source() -> ad.AnnData:
    adata = make_adata()
    adata.obs["depth"] = np.arange(600, dtype=np.float32) / 3
    adata.obs["number"] = np.arange(600)
    adata.obs["good"] = np.arange(600) % 3 == 0
    adata.obs["name"] = [f"µ{i}" for i in range(600)]
    adata.obs["only"] = pd.Categorical(["one"] * 600)
    adata.obs["some"] = pd.Categorical(["u" if i % 2 else None for i in range(600)], categories=["u", "v"])
    adata.obs["year"] = pd.Categorical(2000 + np.arange(600) % 3)
    adata.var["gene_ids"] = [f"ENSG{j:011d}" for j in range(300)]
    adata.var["kind"] = pd.Categorical(["coding", "other", "third"] * 100)
    adata.var["cell_type"] = np.arange(300)  # numbers that are no codes, though obs has such categories
    return adata


def structured(table: pd.DataFrame, fixed: bool) -> np.ndarray:
    """A table as AnnData 0.6 stored it: names of fixed or variable length, codes for categories."""
    columns: dict[str, Any] = {"index": table.index.to_numpy(object)}
    for name, values in table.items():
        categorical = isinstance(values.dtype, pd.CategoricalDtype)
        columns[str(name)] = values.cat.codes.to_numpy() if categorical else values.to_numpy()
    types = []
    for name, values in columns.items():
        kind: Any = values.dtype
        if kind.kind == "O":
            longest = max(len(str(value).encode()) for value in values)
            ascii_only = all(str(value).isascii() for value in values)
            kind = f"S{longest}" if fixed and ascii_only else h5py.string_dtype()
        types.append((name, kind))
    rows = np.empty(len(table), dtype=types)
    for name, values in columns.items():
        rows[name] = [str(v).encode() for v in values] if values.dtype == object and rows[name].dtype == "S" else values
    return rows


def write_06(adata: ad.AnnData, path: Path, *, fixed: bool = False, dense: bool = False) -> Path:
    with h5py.File(path, "w") as file:
        if dense:
            file["X"] = adata.X.toarray()
        else:
            group = file.create_group("X")
            group.attrs.update({"h5sparse_format": b"csr", "h5sparse_shape": np.array(adata.shape)})
            for name in ("data", "indices", "indptr"):
                group[name] = getattr(adata.X, name)
        uns = file.create_group("uns")
        for name in ("obs", "var"):
            table = getattr(adata, name)
            file.create_dataset(name, data=structured(table, fixed), chunks=(100,))
            for column, values in table.items():
                if isinstance(values.dtype, pd.CategoricalDtype):
                    categories = values.cat.categories.to_numpy()
                    text = categories.dtype.kind in "OU"
                    stored = [str(one) for one in categories] if text else categories
                    uns[f"{column}_categories"] = stored[0] if len(stored) == 1 and text else stored
    return path


def write_07(adata: ad.AnnData, path: Path) -> Path:
    """Columns of a table are datasets; categories lie in a group beside them."""
    with h5py.File(path, "w") as file:
        group = file.create_group("X")
        group.attrs.update({"encoding-type": "csr_matrix", "encoding-version": "0.1.0", "shape": adata.shape})
        for name in ("data", "indices", "indptr"):
            group[name] = getattr(adata.X, name)
        for name in ("obs", "var"):
            table, made = getattr(adata, name), file.create_group(name)
            made.attrs.update({"encoding-type": "dataframe", "encoding-version": "0.1.0", "_index": "index"})
            made.attrs["column-order"] = list(table.columns)
            made["index"] = [*map(str, table.index)]
            for column, values in table.items():
                if not isinstance(values.dtype, pd.CategoricalDtype):
                    made[column] = values.to_numpy() if values.dtype.kind in "biuf" else [*map(str, values)]
                    continue
                made[column] = values.cat.codes.to_numpy()
                categories = values.cat.categories
                numbers = categories.dtype.kind in "biuf"
                made[f"__categories/{column}"] = categories if numbers else [*map(str, categories)]
                made[f"__categories/{column}"].attrs["ordered"] = False
                made[column].attrs["categories"] = made[f"__categories/{column}"].ref
    return path


WRITERS: dict[str, Callable[[ad.AnnData, Path], Path]] = {
    "0.6": write_06,
    "0.6 fixed": lambda adata, path: write_06(adata, path, fixed=True),
    "0.6 dense": lambda adata, path: write_06(adata, path, dense=True),
    "0.7": write_07,
}


@pytest.fixture(params=list(WRITERS))
def written(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    return WRITERS[request.param](source(), tmp_path / "old.h5ad")


def test_the_test_writes_what_anndata_takes_for_old(written: Path) -> None:
    oracle, wanted = ad.read_h5ad(written), source()
    assert oracle.shape == (600, 300)
    for name in ("obs", "var"):
        found, expected = getattr(oracle, name), getattr(wanted, name)
        assert list(found.columns) == list(expected.columns)
        for column in expected:
            assert list(found[column].astype(str)) == list(expected[column].astype(str)), column


def test_columns_of_cells_and_genes_are_those_of_anndata(written: Path) -> None:
    oracle = ad.read_h5ad(written)
    store = open_atlas(written).stores[0]
    assert store.n_cells == 600
    assert store.obs_columns() == list(oracle.obs.columns)
    for column in oracle.obs:
        found, expected = store.obs_column(column), oracle.obs[column].reset_index(drop=True)
        pd.testing.assert_series_equal(found, expected, check_names=False)
    assert list(store.obs_names()) == list(oracle.obs_names)
    assert store.var_columns() == list(oracle.var.columns)
    assert list(store.gene_names) == list(oracle.var_names)
    assert list(store.gene_columns) == ["var_names", "gene_ids", "kind"]
    for column in ("gene_ids", "kind"):
        assert list(store.gene_columns[column]) == list(oracle.var[column].astype(str))
    pd.testing.assert_frame_equal(store.var, oracle.var)
    chunk = store.matrix.read_rows(0, 600)
    counts = sp.csr_matrix((chunk.data, chunk.indices.astype(np.int64), chunk.indptr), (600, 300))
    assert (counts != sp.csr_matrix(oracle.X)).nnz == 0


def test_ingest_gives_what_anndata_reads(written: Path, tmp_path: Path) -> None:
    oracle = ad.read_h5ad(written)
    ingest(written, tmp_path / "out.zarr", max_memory_bytes=BIG)
    got = ad.read_zarr(tmp_path / "out.zarr")
    pd.testing.assert_frame_equal(got.obs, oracle.obs, check_names=False)
    pd.testing.assert_frame_equal(got.var, oracle.var, check_names=False)
    assert np.array_equal(got.X.toarray(), sp.csr_matrix(oracle.X).toarray())


def test_command_line(hashstream: Cli, written: Path, tmp_path: Path) -> None:
    inspected = json.loads(hashstream("inspect", written, "--json").stdout)
    assert (inspected["cells"], inspected["genes"], inspected["first_genes"][0]) == (600, 300, "G0000")
    assert inspected["obs_columns"][:2] == ["cell_type", "batch"]
    source().write_h5ad(tmp_path / "new.h5ad")
    assert hashstream("fit", tmp_path / "new.h5ad", "-o", tmp_path / "hasher").exit_code == 0
    for name in ("old", "new"):
        result = hashstream("encode", tmp_path / f"{name}.h5ad", "-o", tmp_path / name, "--hasher", tmp_path / "hasher")
        assert result.exit_code == 0, result.output
        assert hashstream("cluster", tmp_path / name, "--n-clusters", 4).exit_code == 0
    assert np.array_equal(Run.open(tmp_path / "old").codes(), Run.open(tmp_path / "new").codes())
    scores = [hashstream("evaluate", tmp_path / n, "--truth", "cell_type", "--json").stdout for n in ("old", "new")]
    assert json.loads(scores[0]) == json.loads(scores[1])
    result = hashstream("export", tmp_path / "old", "--to", tmp_path / "out.h5ad")
    assert result.exit_code == 0, result.output
    exported = ad.read_h5ad(tmp_path / "out.h5ad")
    assert list(exported.obs["cell_type"]) == list(source().obs["cell_type"])
    assert "cluster" in exported.obs


def test_raw_of_an_old_file(tmp_path: Path) -> None:
    adata = source()
    path = write_06(adata[:, :200].copy(), tmp_path / "old.h5ad")
    with h5py.File(path, "a") as file:
        file["X/data"][...] = np.log1p(file["X/data"][...])
        group = file.create_group("raw.X")
        group.attrs.update({"h5sparse_format": b"csr", "h5sparse_shape": np.array(adata.shape)})
        for name in ("data", "indices", "indptr"):
            group[name] = getattr(adata.X, name)
        file["raw.var"] = structured(adata.var[["gene_ids"]], fixed=False)
    store = open_atlas(path).stores[0]
    assert (store.matrix_name, store.n_genes) == ("raw/X", 300)
    assert list(store.gene_names) == list(ad.read_h5ad(path).raw.var_names)
    report = ingest(path, tmp_path / "out.zarr", max_memory_bytes=BIG)
    assert report["sources"][0]["array"] == "raw/X"
    assert np.array_equal(ad.read_zarr(tmp_path / "out.zarr").X.toarray(), adata.X.toarray())


def test_a_damaged_old_file_is_named(tmp_path: Path) -> None:
    path = write_06(source(), tmp_path / "old.h5ad")
    with h5py.File(path, "a") as file:
        rows = file["obs"][:-1]
        del file["obs"]
        file["obs"] = rows
    with pytest.raises(InputError, match="old.h5ad: obs lists 599 cells but X has 600 rows"):
        open_atlas(path)
    with pytest.raises(InputError, match="old.h5ad: obs"):
        ingest(path, tmp_path / "out.zarr", max_memory_bytes=BIG)


def test_categories_of_a_zarr_store_of_anndata_07(tmp_path: Path) -> None:
    adata = source()
    with ad.settings.override(zarr_write_format=2), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        adata.write_zarr(tmp_path / "a.zarr")
    root: Any = zarr.open_group(tmp_path / "a.zarr", mode="r+", use_consolidated=False)
    obs = root["obs"]
    values, categories = obs["cell_type"]["codes"][:], obs["cell_type"]["categories"][:]
    del obs["cell_type"]
    obs.create_group("__categories").create_array("cell_type", data=categories).attrs["ordered"] = False
    obs.create_array("cell_type", data=values).attrs["categories"] = "__categories/cell_type"
    obs.attrs["encoding-version"] = "0.1.0"
    zarr.consolidate_metadata(tmp_path / "a.zarr")
    oracle = ad.read_zarr(tmp_path / "a.zarr")
    assert list(oracle.obs["cell_type"]) == list(adata.obs["cell_type"])
    assert list(open_atlas(tmp_path / "a.zarr").obs_column("cell_type")) == list(adata.obs["cell_type"])
