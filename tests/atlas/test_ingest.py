"""Every format in, the same matrix out; several sources together."""

from __future__ import annotations

import subprocess
import sys
import warnings
from pathlib import Path

import anndata as ad
import h5py
import numpy as np
import pandas as pd
import pytest
import scipy.io
import scipy.sparse as sp

import hashstream.atlas.ingest._arrays as arrays
from hashstream.atlas.ingest import ingest
from hashstream.atlas.ingest._source import Budget
from hashstream.errors import InputError, SettingsError, TargetExistsError
from tests.atlas.ingest_sources import (
    BARCODES,
    BIG,
    G,
    N,
    counts,
    digest,
    equal,
    read,
    table,
    write_loom,
    write_mtx,
    write_tenx,
    write_text,
    write_zarr,
)


@pytest.mark.parametrize("form", ["csr", "csc", "dense", "fortran"])
@pytest.mark.parametrize("store", ["h5ad", "zarr2", "zarr3"])
def test_anndata(tmp_path: Path, form: str, store: str) -> None:
    source = table()
    x = source.X
    source.X = {"csr": x, "csc": x.tocsc(), "dense": x.toarray(), "fortran": np.asfortranarray(x.toarray())}[form]
    path = tmp_path / ("a.h5ad" if store == "h5ad" else "a.zarr")
    if store == "h5ad":
        source.write_h5ad(path, compression="gzip")
    else:
        write_zarr(source, path, int(store[-1]))
    report = ingest(path, tmp_path / "out.zarr", max_memory_bytes=BIG)
    got = read(tmp_path / "out.zarr")
    assert equal(got.X, x)
    assert got.X.data.dtype == np.uint16
    pd.testing.assert_frame_equal(got.obs, source.obs)
    pd.testing.assert_frame_equal(got.var, source.var)
    assert (report["n_cells"], report["n_genes"], report["nnz"], report["dtype"]) == (N, G, x.nnz, "uint16")
    assert report["sources"][0]["array"] == "X"
    assert report["notes"] == []
    assert sorted(p.name for p in tmp_path.iterdir()) == sorted([path.name, "out.zarr"])


@pytest.mark.parametrize("dtype", ["uint8", "int16", "int64", "float16", "float32", "float64", ">f4", "bool"])
@pytest.mark.parametrize("form", ["csr", "dense"])
def test_dtypes(tmp_path: Path, dtype: str, form: str) -> None:
    x = counts(high=2 if dtype == "bool" else 100)
    with h5py.File(tmp_path / "a.h5ad", "w") as file:
        ad.io.write_elem(file, "/", table(x))
        del file["X"]
        if form == "dense":
            file["X"] = x.toarray().astype(dtype)
        else:
            group = file.create_group("X")
            group.attrs.update({"encoding-type": "csr_matrix", "encoding-version": "0.1.0", "shape": x.shape})
            group["data"] = x.data.astype(dtype)
            group["indices"], group["indptr"] = x.indices, x.indptr
    ingest(tmp_path / "a.h5ad", tmp_path / "out.zarr", max_memory_bytes=BIG)
    got = read(tmp_path / "out.zarr").X
    assert equal(got, x)
    assert got.data.dtype == np.uint8


def test_unsorted_indices_and_stored_zeros(tmp_path: Path) -> None:
    x = sp.csr_matrix((np.array([3, 1, 0, 2, 5.0]), np.array([4, 0, 2, 3, 1]), np.array([0, 3, 3, 5])), shape=(3, 5))
    table(x).write_h5ad(tmp_path / "a.h5ad")
    ingest(tmp_path / "a.h5ad", tmp_path / "out.zarr", max_memory_bytes=BIG)
    got = read(tmp_path / "out.zarr").X
    assert equal(got, x)
    assert list(got.data) == [1, 3, 5, 2]


@pytest.mark.parametrize("place", ["counts", "raw", "other"])
def test_counts_are_found_where_they_are(tmp_path: Path, place: str) -> None:
    source = table()
    x = source.X.copy()
    if place == "raw":
        source.raw = source.copy()
        source = source[:, 5:].copy()
    else:
        source.layers[place] = x
    source.X = source.X.log1p()
    source.write_h5ad(tmp_path / "a.h5ad")
    if place == "other":
        with pytest.raises(InputError, match="a value that is not a whole number, and no counts in layers/counts"):
            ingest(tmp_path / "a.h5ad", tmp_path / "out.zarr", max_memory_bytes=BIG)
        report = ingest(tmp_path / "a.h5ad", tmp_path / "out.zarr", layer="other", max_memory_bytes=BIG)
        assert report["notes"] == []
    else:
        report = ingest(tmp_path / "a.h5ad", tmp_path / "out.zarr", max_memory_bytes=BIG)
        array = "raw/X" if place == "raw" else "layers/counts"
        assert report["sources"][0]["array"] == array
        assert f"{array} is taken, since X has a value that is not a whole number" in report["notes"][0]
    got = read(tmp_path / "out.zarr")
    assert got.shape == (N, G)
    assert equal(got.X, x)


def test_a_layer_that_is_not_there(tmp_path: Path) -> None:
    table().write_h5ad(tmp_path / "a.h5ad")
    with pytest.raises(InputError, match="has no layers/spliced; it has X"):
        ingest(tmp_path / "a.h5ad", tmp_path / "out.zarr", layer="spliced", max_memory_bytes=BIG)


@pytest.mark.parametrize("chunks", [(64, 64), (5, 7), None])
def test_loom(tmp_path: Path, chunks: tuple[int, int] | None) -> None:
    x = counts()
    write_loom(tmp_path / "a.loom", x, chunks)
    ingest(tmp_path / "a.loom", tmp_path / "out.zarr", max_memory_bytes=BIG)
    got = read(tmp_path / "out.zarr")
    assert equal(got.X, x)
    assert list(got.obs_names[:2]) == ["c0", "c1"]
    assert list(got.var_names[:2]) == ["g0", "g1"]
    assert list(got.obs["kind"][:2]) == ["u", "v"]
    assert list(got.var["length"]) == list(range(G))


def test_loom_by_loompy(tmp_path: Path) -> None:
    x = counts()
    code = (
        "import loompy, numpy as np, sys, scipy.sparse as sp; x = sp.load_npz(sys.argv[1]);"
        "loompy.create(sys.argv[2], {'': np.log1p(x.toarray().T), 'counts': x.toarray().T},"
        "{'Gene': np.array([f'g{j}' for j in range(x.shape[1])])},"
        "{'CellID': np.array([f'c{i}' for i in range(x.shape[0])])})"
    )
    sp.save_npz(tmp_path / "x.npz", x)  # in a process of its own: loompy warns when it is imported
    done = subprocess.run(
        [sys.executable, "-c", code, tmp_path / "x.npz", tmp_path / "a.loom"], capture_output=True, text=True
    )
    if "No module named" in done.stderr:
        pytest.skip("loompy is not installed")
    assert done.returncode == 0, done.stderr
    report = ingest(tmp_path / "a.loom", tmp_path / "out.zarr", max_memory_bytes=BIG)
    assert report["sources"][0]["array"] == "layers/counts"
    assert equal(read(tmp_path / "out.zarr").X, x)


@pytest.mark.parametrize("version", [2, 3])
def test_tenx_h5(tmp_path: Path, version: int) -> None:
    x = counts()
    write_tenx(tmp_path / "a.h5", x, version)
    ingest(tmp_path / "a.h5", tmp_path / "out.zarr", max_memory_bytes=BIG)
    got = read(tmp_path / "out.zarr")
    assert equal(got.X, x)
    assert got.obs_names[3] == "ACGT0003-1"
    assert got.var_names[3] == "g3"
    assert got.var["gene_ids"].iloc[3] == "ENSG00000000003"


def test_tenx_keeps_genes_only(tmp_path: Path) -> None:
    x = counts()
    types = ["Gene Expression"] * 20 + ["Antibody Capture"] * 5
    write_tenx(tmp_path / "a.h5", x, 3, types)
    report = ingest(tmp_path / "a.h5", tmp_path / "out.zarr", max_memory_bytes=BIG)
    got = read(tmp_path / "out.zarr")
    assert equal(got.X, x[:, :20])
    assert list(got.var["gene_ids"]) == [f"ENSG{j:011d}" for j in range(20)]
    assert "5 features that are not genes are left out (Antibody Capture)" in report["notes"][0]


@pytest.mark.parametrize("version", [2, 3])
@pytest.mark.parametrize("order", ["cells", "genes", "none"])
def test_mtx_folder(tmp_path: Path, version: int, order: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hashstream.atlas.ingest._mtx.BLOCK_BYTES", 100)  # many blocks, cells across them
    x = counts()
    x.data[x.indptr[10] : x.indptr[14]] = 0
    x.eliminate_zeros()
    folder = write_mtx(tmp_path / "m", x, version=version, packed=version == 3, order=order)
    report = ingest(folder, tmp_path / "out.zarr", max_memory_bytes=BIG)
    got = read(tmp_path / "out.zarr")
    assert equal(got.X, x)
    assert list(got.obs_names) == [f"c{i}" for i in range(N)]
    assert list(got.var_names) == [f"g{j}" for j in range(G)]
    assert ("went through the disk" in " ".join(report["notes"])) == (order != "cells")


def test_mtx_by_scipy_with_a_prefix(tmp_path: Path) -> None:
    x = counts()
    write_mtx(tmp_path / "m", x, prefix="GSM1_", packed=False)
    scipy.io.mmwrite(tmp_path / "m" / "GSM1_matrix.mtx", x.T.tocsc(), field="real", precision=7)
    ingest(tmp_path / "m", tmp_path / "out.zarr", max_memory_bytes=BIG)
    assert equal(read(tmp_path / "out.zarr").X, x)
    ingest(tmp_path / "m" / "GSM1_matrix.mtx", tmp_path / "again.zarr", max_memory_bytes=BIG)
    assert digest(tmp_path / "out.zarr") == digest(tmp_path / "again.zarr")


@pytest.mark.parametrize("name", ["a.csv", "a.tsv.gz", "a.csv.gz", "a.txt"])
@pytest.mark.parametrize("like_r", [False, True])
def test_text_by_barcodes(tmp_path: Path, name: str, like_r: bool) -> None:
    x = counts()
    genes = [f"g{j}" for j in range(G)]
    for folder, values, rows, columns in [
        ("cells", x.toarray(), BARCODES, genes),
        ("genes", x.toarray().T, genes, BARCODES),
    ]:
        (tmp_path / folder).mkdir()
        path = write_text(tmp_path / folder / name, values, rows, columns, like_r=like_r)
        report = ingest(path, tmp_path / folder / "out.zarr", max_memory_bytes=BIG)
        got = read(tmp_path / folder / "out.zarr")
        assert equal(got.X, x)
        assert list(got.obs_names) == BARCODES
        assert list(got.var_names) == genes
        assert "named like barcodes" in report["notes"][0]


def test_text_by_gene_names_and_by_order(tmp_path: Path) -> None:
    x = counts().toarray()
    cells = [f"c{i}" for i in range(N)]
    genes = [f"MT-{j}" if j < 3 else f"g{j}" for j in range(G)]
    path = write_text(tmp_path / "a.csv", x.T, genes, cells)
    report = ingest(path, tmp_path / "a.zarr", max_memory_bytes=BIG)
    assert "rows are taken for genes, since the rows are named like genes" in report["notes"][0]
    assert equal(read(tmp_path / "a.zarr").X, x)
    path = write_text(tmp_path / "b.csv", x, cells, [f"g{j}" for j in range(G)])
    report = ingest(path, tmp_path / "b.zarr", max_memory_bytes=BIG)
    assert "rows are taken for cells, since the names do not tell" in report["notes"][0]
    assert equal(read(tmp_path / "b.zarr").X, x)
    report = ingest(path, tmp_path / "c.zarr", transpose=True, max_memory_bytes=BIG)
    assert report["notes"] == []
    assert equal(read(tmp_path / "c.zarr").X, x.T)


@pytest.mark.parametrize("chunks", [(N, 1), (1, G), (7, 4), (N, G), None])
@pytest.mark.parametrize("cells_first", [True, False])
@pytest.mark.parametrize("start", [0, 17])
def test_dense_tiles(tmp_path: Path, chunks: tuple[int, int] | None, cells_first: bool, start: int) -> None:
    x = counts().toarray()
    with h5py.File(tmp_path / "a.h5", "w") as file:
        size = None if chunks is None else chunks if cells_first else chunks[::-1]
        array = file.create_dataset("x", data=x if cells_first else x.T, chunks=size)
        matrix = arrays.DenseMatrix("x", array, cells_first=cells_first)
        parts = list(matrix.rows(start, Budget(500, tmp_path / "spill")))
    assert [p.start for p in parts[1:]] == [p.stop for p in parts[:-1]]
    assert (parts[0].start, parts[-1].stop) == (start, N)
    got = sp.vstack([sp.csr_matrix((p.data, p.indices, p.indptr), shape=(p.n_rows, G)) for p in parts])
    assert np.array_equal(got.toarray(), x[start:])


def test_the_canonical_atlas_is_a_source(tmp_path: Path) -> None:
    table().write_h5ad(tmp_path / "a.h5ad")
    ingest(tmp_path / "a.h5ad", tmp_path / "b.zarr", max_memory_bytes=BIG)
    report = ingest(tmp_path / "b.zarr", tmp_path / "c.zarr", max_memory_bytes=BIG)
    assert report["sources"][0]["format"] == "zarr v3, CSR"
    assert digest(tmp_path / "b.zarr") == digest(tmp_path / "c.zarr")


def test_settings(tmp_path: Path) -> None:
    table().write_h5ad(tmp_path / "a.h5ad")
    with pytest.raises(SettingsError, match="no sources"):
        ingest([], tmp_path / "out.zarr")
    with pytest.raises(SettingsError, match='must be "intersection" or "union"'):
        ingest(tmp_path / "a.h5ad", tmp_path / "out.zarr", genes="all")
    with pytest.raises(SettingsError, match="source and target"):
        ingest(tmp_path / "a.h5ad", tmp_path / "a.h5ad")
    seen: list[tuple[int, int]] = []
    ingest(tmp_path / "a.h5ad", tmp_path / "out.zarr", max_memory_bytes=BIG, progress=lambda *done: seen.append(done))
    assert seen[-1] == (N, N)
    with pytest.raises(TargetExistsError):
        ingest(tmp_path / "a.h5ad", tmp_path / "out.zarr", max_memory_bytes=BIG)
    ingest(tmp_path / "a.h5ad", tmp_path / "out.zarr", overwrite=True, max_memory_bytes=BIG)


def test_slashes_in_names_of_columns(tmp_path: Path) -> None:
    source = table()
    source.obs["a_b"], source.obs["a/b"] = 1, np.arange(N)
    # AnnData 0.13 refuses such keys unless told not to; before, it warns.
    allowed = ad.settings.override(disallow_forward_slash_in_h5ad=False)
    with allowed, h5py.File(tmp_path / "a.h5ad", "w") as file, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        ad.io.write_elem(file, "/", source)
    report = ingest(tmp_path / "a.h5ad", tmp_path / "out.zarr", max_memory_bytes=BIG)
    assert report["notes"] == [
        f"{tmp_path / 'a.h5ad'}: obs: column 'a/b' is called 'a_b_', as no column of a zarr store may have a slash"
    ]
    got = read(tmp_path / "out.zarr").obs
    assert got["a_b_"].tolist() == list(range(N))
    assert (got["a_b"] == 1).all()
