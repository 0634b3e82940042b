"""Every format in, the same matrix out; several together; a kill; little memory; and every bad input in words."""

from __future__ import annotations

import gzip
import hashlib
import json
import random
import signal
import subprocess
import sys
import time
import warnings
from collections.abc import Callable
from pathlib import Path

import anndata as ad
import h5py
import numpy as np
import pandas as pd
import pytest
import scipy.io
import scipy.sparse as sp
import zarr

import hashstream.atlas.ingest._arrays as arrays
import hashstream.atlas.ingest._run as run
from hashstream.atlas.ingest import ingest
from hashstream.atlas.ingest._source import Budget
from hashstream.atlas.ingest._spill import RowBuckets
from hashstream.errors import BudgetError, InputError, SettingsError, TargetExistsError

BIG = 2**40  # no limit: tests of the memory have their own

N, G = 60, 25


def counts(n: int = N, g: int = G, seed: int = 0, high: int = 400) -> sp.csr_matrix:
    rng = np.random.default_rng(seed)
    x = sp.random(n, g, 0.3, format="csr", rng=rng)
    x.data = rng.integers(1, high, x.nnz).astype(np.float32)
    x.sort_indices()
    return x


def table(x: sp.csr_matrix | None = None, seed: int = 0) -> ad.AnnData:
    x = counts(seed=seed) if x is None else x
    n, g = x.shape
    obs = pd.DataFrame(
        {
            "kind": pd.Categorical(np.array(["u", "v", "w"])[np.arange(n) % 3]),
            "depth": np.arange(n, dtype=np.float64),
            "good": np.arange(n) % 2 == 0,
        },
        index=[f"cell{seed}_{i}" for i in range(n)],
    )
    var = pd.DataFrame({"length": np.arange(g)}, index=[f"g{j}" for j in range(g)])
    return ad.AnnData(x.copy(), obs=obs, var=var)


def read(path: Path) -> ad.AnnData:
    got = ad.read_zarr(path)
    got.X = sp.csr_matrix((got.X.data, got.X.indices.astype(np.int64), got.X.indptr), shape=got.X.shape)
    return got


def equal(got: sp.csr_matrix, wanted: sp.spmatrix | np.ndarray) -> bool:
    return got.has_sorted_indices and np.array_equal(got.toarray(), sp.csr_matrix(wanted).toarray())


def digest(folder: Path) -> dict[str, str]:
    files = sorted(p for p in folder.rglob("*") if p.is_file())
    return {str(p.relative_to(folder)): hashlib.sha256(p.read_bytes()).hexdigest() for p in files}


def write_zarr(adata: ad.AnnData, path: Path, version: int) -> None:
    with ad.settings.override(zarr_write_format=version), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        adata.write_zarr(path)


# ---------------------------------------------------------------- AnnData


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


# ------------------------------------------------------------------- loom


def write_loom(path: Path, x: sp.csr_matrix, chunks: tuple[int, int] | None = (64, 64)) -> None:
    n, g = x.shape
    with h5py.File(path, "w") as file:
        size = None if chunks is None else (min(chunks[0], g), min(chunks[1], n))
        file.create_dataset("matrix", data=x.toarray().T, chunks=size)
        file["row_attrs/Gene"] = np.array([f"g{j}" for j in range(g)], dtype="S")
        file["row_attrs/length"] = np.arange(g)
        file["col_attrs/CellID"] = [f"c{i}" for i in range(n)]
        file["col_attrs/kind"] = np.array(["u", "v"], dtype="S")[np.arange(n) % 2]
        file.create_group("layers")
        file.create_group("row_graphs")
        file.create_group("col_graphs")


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


# -------------------------------------------------------------------- 10x


def write_tenx(path: Path, x: sp.csr_matrix, version: int, types: list[str] | None = None) -> None:
    n, g = x.shape
    names, ids = [f"g{j}" for j in range(g)], [f"ENSG{j:011d}" for j in range(g)]
    with h5py.File(path, "w") as file:
        group = file.create_group("matrix" if version == 3 else "GRCh38")
        group["barcodes"] = np.array([f"ACGT{i:04d}-1" for i in range(n)], dtype="S")
        group["data"], group["indices"], group["indptr"] = x.data.astype(np.int32), x.indices, x.indptr
        group["shape"] = np.array([g, n])
        if version == 3:
            features = group.create_group("features")
            features["id"], features["name"] = np.array(ids, dtype="S"), np.array(names, dtype="S")
            features["feature_type"] = np.array(types or ["Gene Expression"] * g, dtype="S")
            features["genome"] = np.array(["GRCh38"] * g, dtype="S")
        else:
            group["genes"], group["gene_names"] = np.array(ids, dtype="S"), np.array(names, dtype="S")


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


def write_mtx(
    folder: Path, x: sp.csr_matrix, *, version: int = 3, packed: bool = True, order: str = "cells", prefix: str = ""
) -> Path:
    folder.mkdir(exist_ok=True)
    n, g = x.shape
    coo = x.tocoo()
    rows, columns, values = coo.col + 1, coo.row + 1, coo.data.astype(int)
    perm = {
        "cells": np.lexsort((rows, columns)),
        "genes": np.lexsort((columns, rows)),
        "none": np.random.default_rng(0).permutation(len(rows)),
    }[order]
    lines = [f"{rows[i]} {columns[i]} {values[i]}" for i in perm]
    head = ["%%MatrixMarket matrix coordinate integer general", '%metadata_json: {"a": 1}', f"{g} {n} {len(lines)}"]
    genes = [f"ENSG{j:011d}\tg{j}" + ("\tGene Expression" if version == 3 else "") for j in range(g)]
    files = {
        "matrix.mtx": [*head, *lines],
        "barcodes.tsv": [f"c{i}" for i in range(n)],
        "features.tsv" if version == 3 else "genes.tsv": genes,
    }
    for name, content in files.items():
        raw = ("\n".join(content) + "\n").encode()
        if packed:
            (folder / f"{prefix}{name}.gz").write_bytes(gzip.compress(raw))
        else:
            (folder / f"{prefix}{name}").write_bytes(raw)
    return folder


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


# ------------------------------------------------------------------- text


def write_text(path: Path, x: np.ndarray, rows: list[str], columns: list[str], *, like_r: bool = False) -> Path:
    separator = "," if ".csv" in path.name else "\t"
    quote = '"' if like_r else ""
    head = [] if like_r else [""]
    lines = [separator.join(head + [f"{quote}{c}{quote}" for c in columns])]
    lines += [separator.join([f"{quote}{r}{quote}", *(f"{v:g}" for v in row)]) for r, row in zip(rows, x, strict=True)]
    raw = ("\n".join(lines) + "\n").encode()
    path.write_bytes(gzip.compress(raw) if path.name.endswith(".gz") else raw)
    return path


BARCODES = ["".join("ACGT"[(i >> (2 * k)) & 3] for k in range(10)) for i in range(N)]


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


# --------------------------------------------------------- several sources


def three(tmp_path: Path) -> tuple[list[Path], sp.csr_matrix, sp.csr_matrix]:
    """Two h5ad and a loom: genes g0..g24, g10..g34 reversed, g5..g29."""
    one, two, loom = table(seed=1), table(seed=2), counts(seed=3)
    two.var_names = [f"g{j}" for j in range(34, 9, -1)]
    one.write_h5ad(tmp_path / "one.h5ad")
    two.write_h5ad(tmp_path / "two.h5ad")
    write_loom(tmp_path / "three.loom", loom)
    with h5py.File(tmp_path / "three.loom", "a") as file:
        del file["row_attrs/Gene"]
        file["row_attrs/Gene"] = [f"g{j}" for j in range(5, 30)]
    frames = [
        pd.DataFrame(one.X.toarray(), columns=one.var_names),
        pd.DataFrame(two.X.toarray(), columns=two.var_names),
        pd.DataFrame(loom.toarray(), columns=[f"g{j}" for j in range(5, 30)]),
    ]
    inner = pd.concat([f[[f"g{j}" for j in range(10, 25)]] for f in frames])
    union = [f"g{j}" for j in range(25)] + [f"g{j}" for j in range(34, 24, -1)]
    outer = pd.concat(frames)[union].fillna(0)
    paths = [tmp_path / name for name in ("one.h5ad", "two.h5ad", "three.loom")]
    return paths, inner, outer


def test_several_sources(tmp_path: Path) -> None:
    paths, inner, outer = three(tmp_path)
    ingest(paths, tmp_path / "inner.zarr", max_memory_bytes=BIG)
    got = read(tmp_path / "inner.zarr")
    assert list(got.var_names) == list(inner.columns)
    assert equal(got.X, inner.to_numpy())
    assert list(got.obs["batch"].cat.categories) == ["one", "two", "three"]
    assert list(got.obs["batch"].value_counts(sort=False)) == [N, N, N]
    assert list(got.obs["kind"][:2]) == ["u", "v"]
    assert got.obs["depth"].isna().sum() == N  # loom has none
    assert got.obs["good"].isna().sum() == N
    assert "length" not in got.var  # they differ in it
    report = ingest(paths, tmp_path / "outer.zarr", genes="union", batch_key=None, max_memory_bytes=BIG)
    got = read(tmp_path / "outer.zarr")
    assert list(got.var_names) == list(outer.columns)
    assert equal(got.X, outer.to_numpy())
    assert "batch" not in got.obs
    assert any("'length' is left out" in note for note in report["notes"])


def test_sources_with_their_own_batch_and_var(tmp_path: Path) -> None:
    for name, label in [("a", "x"), ("b", "y")]:
        source = table(seed=1)
        source.obs["batch"] = pd.Categorical([label] * N)
        source.var["symbol"] = [f"s{j}" for j in range(G)]
        source.write_h5ad(tmp_path / f"{name}.h5ad")
    report = ingest([tmp_path / "a.h5ad", tmp_path / "b.h5ad"], tmp_path / "out.zarr", max_memory_bytes=BIG)
    got = read(tmp_path / "out.zarr")
    assert list(got.obs["batch"].cat.categories) == ["x", "y"]
    assert list(got.var["symbol"]) == [f"s{j}" for j in range(G)]
    assert got.var["length"].dtype == np.int64
    assert got.obs["depth"].dtype == np.float64
    assert got.obs["good"].dtype == bool
    assert got.obs_names[0] == "cell1_0-a"  # the same names in both
    assert got.obs_names[N] == "cell1_0-b"
    assert any("the source's name is added" in note for note in report["notes"])


def test_the_same_bytes_whatever_the_block_size(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    paths, _, _ = three(tmp_path)
    ad.read_h5ad(paths[0]).copy().write_h5ad(paths[0])
    source = ad.read_h5ad(paths[1])
    source.X = source.X.tocsc()
    source.write_h5ad(paths[1])
    ingest(paths, tmp_path / "a.zarr", max_memory_bytes=BIG)
    monkeypatch.setattr(run, "_block_bytes", lambda *_: 700)
    ingest(paths, tmp_path / "b.zarr", max_memory_bytes=BIG)
    assert digest(tmp_path / "a.zarr") == digest(tmp_path / "b.zarr")


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


def test_a_bucket_that_is_too_large_is_read_in_parts(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    x = sp.csr_matrix(np.vstack([rng.integers(1, 5, (10, 50)), np.zeros((90, 50), int)]))  # all in the first rows
    coo = x.tocoo()
    buckets = RowBuckets(tmp_path / "s", 100, 50, coo.nnz, np.dtype(np.int64), 1600)
    perm = rng.permutation(coo.nnz)
    for part in np.array_split(perm, 7):
        buckets.add(coo.row[part], coo.col[part], coo.data[part])
    chunks = list(buckets.chunks())
    assert len(chunks) > 5
    assert max(c.nnz for c in chunks) <= 200
    got = sp.vstack([sp.csr_matrix((c.data, c.indices, c.indptr), shape=(c.n_rows, 50)) for c in chunks])
    assert np.array_equal(got.toarray(), x.toarray())
    assert next(buckets.chunks(3)).start == 3
    buckets.remove()
    assert not (tmp_path / "s").exists()


# ---------------------------------------------------------- kill and resume

SCRIPT = """
import sys
import hashstream.atlas.write as write
from hashstream.atlas.ingest import ingest
import hashstream.atlas.ingest._run as run
write.CHECKPOINT_ELEMENTS = 1
write.AtlasWriter.__init__.__kwdefaults__["checkpoint_elements"] = 20_000
run._block_bytes = lambda *_: 30_000
print("up", flush=True)
report = ingest(sys.argv[2:], sys.argv[1], resume=True, max_memory_bytes=2**40)
print(report["resumed_at"])
"""


def test_killed_and_resumed_gives_the_same_bytes(tmp_path: Path) -> None:
    big = counts(9000, 60, seed=5)
    one = table(big, seed=1)
    two = table(counts(9000, 60, seed=6), seed=2)
    two.X = two.X.tocsc()
    one.write_h5ad(tmp_path / "one.h5ad")
    two.write_h5ad(tmp_path / "two.h5ad")
    paths = [tmp_path / "one.h5ad", tmp_path / "two.h5ad"]
    (tmp_path / "script.py").write_text(SCRIPT)
    command = [sys.executable, str(tmp_path / "script.py")]
    ingest(paths, tmp_path / "whole.zarr", max_memory_bytes=BIG)
    rng = random.Random(time.time_ns())
    resumed = []
    for kill in [True, True, True, False]:
        if (tmp_path / "parts.zarr").exists():
            break
        state = tmp_path / "parts.zarr.partial" / "state.json"
        resumed.append(json.loads(state.read_text())["rows_done"] if state.exists() else 0)
        with subprocess.Popen(
            [*command, str(tmp_path / "parts.zarr"), *map(str, paths)], stdout=subprocess.PIPE, text=True
        ) as process:
            assert process.stdout is not None
            assert process.stdout.readline() == "up\n"
            if kill:
                deadline = time.monotonic() + 20
                before = state.read_bytes() if state.exists() else b""
                while time.monotonic() < deadline and process.poll() is None:
                    if state.exists() and state.read_bytes() != before:
                        break
                    time.sleep(0.005)
                time.sleep(rng.uniform(0, 0.2))
                process.send_signal(signal.SIGKILL)
    assert resumed == sorted(resumed)
    assert max(resumed) > 0
    assert digest(tmp_path / "whole.zarr") == digest(tmp_path / "parts.zarr")


def test_resume_refuses_other_sources(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    table().write_h5ad(tmp_path / "a.h5ad")
    state = tmp_path / "out.zarr.partial" / "state.json"
    monkeypatch.setattr("hashstream.atlas.write.AtlasWriter.finish", lambda self, **_: self._checkpoint(self._files))
    monkeypatch.setattr("hashstream.atlas.write.AtlasWriter.append", lambda self, chunk: self._open_files(2**14))
    ingest(tmp_path / "a.h5ad", tmp_path / "out.zarr", max_memory_bytes=BIG)
    assert state.exists()
    with pytest.raises(SettingsError, match="fingerprint differ"):
        ingest(tmp_path / "a.h5ad", tmp_path / "out.zarr", layer="X", resume=True, max_memory_bytes=BIG)


# ------------------------------------------------------------------ memory

MEMORY = """
import sys
import numpy, anndata, numba, zarr
from hashstream.atlas.ingest import ingest

def peak():  # not ru_maxrss, which begins with the parent's
    return int(next(line for line in open("/proc/self/status") if line.startswith("VmHWM")).split()[1]) / 1024

if sys.argv[4] == "without spill":
    import hashstream.atlas.ingest._arrays as arrays
    import hashstream.atlas.ingest._run as run
    from hashstream.atlas.ingest._rows import rows_from_triplets

    class InMemory:
        def __init__(self, folder, n_rows, n_genes, *rest):
            self.size, self.parts = (n_rows, n_genes), []
        def add(self, *part):
            self.parts.append([numpy.array(values) for values in part])
        def chunks(self, start):
            yield rows_from_triplets(*map(numpy.concatenate, zip(*self.parts)), 0, *self.size)
        def remove(self):
            pass

    arrays.RowBuckets = InMemory
elif sys.argv[4] == "in one block":
    import hashstream.atlas.ingest._run as run
    run._block_bytes = lambda *_: 2**40

base = peak()
ingest(sys.argv[1], sys.argv[2], max_memory_bytes=int(sys.argv[3]))
print(base, peak())
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="the peak is read from /proc")
@pytest.mark.parametrize("form", ["csc", "dense", "columns"])
def test_peak_memory_is_within_the_budget(tmp_path: Path, form: str) -> None:
    n, g = 20_000, 3000
    rng = np.random.default_rng(0)
    x = sp.random(n, g, 0.2, format="csr", rng=rng, dtype=np.float32)
    x.data = rng.integers(1, 300, x.nnz).astype(np.float32)  # 12 million values: 144 MB as triplets, 240 MB dense
    with h5py.File(tmp_path / "a.h5ad", "w") as file:
        ad.io.write_elem(file, "/", table(sp.csr_matrix((n, g), dtype=np.float32)))
        del file["X"]
        if form == "csc":
            ad.io.write_elem(file, "X", x.tocsc())
        else:
            file.create_dataset("X", data=x.toarray(), chunks=(n, 20) if form == "columns" else None)
    budget = 480 * 2**20
    how = ["in blocks", "in one block" if form == "dense" else "without spill"]
    command = [sys.executable, "-c", MEMORY, tmp_path / "a.h5ad"]
    running = [
        subprocess.Popen(
            [*command, tmp_path / f"{i}.zarr", str(budget), way],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for i, way in enumerate(how)
    ]
    peaks = []
    for process in running:
        out, err = process.communicate()
        assert process.returncode == 0, err
        peaks.append(float(out.split()[1]) * 2**20)
    assert peaks[0] < budget
    assert peaks[1] > budget  # the test can fail: without the spill, or blocks, it does not fit
    got = read(tmp_path / "0.zarr").X
    assert (got != x).nnz == 0


def dense_zarr(tmp_path: Path, version: int, chunks: tuple[int, int], x: np.ndarray) -> Path:
    source = table(sp.csr_matrix(x.shape, dtype=np.float32))
    write_zarr(source, tmp_path / "d.zarr", version)
    root = zarr.open_group(tmp_path / "d.zarr", mode="a", use_consolidated=False)
    del root["X"]
    array = root.create_array("X", shape=x.shape, chunks=chunks, dtype=np.float32)
    array.attrs.update({"encoding-type": "array", "encoding-version": "0.2.0"})
    array[:] = x
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # not in the specification of format 3 yet
        zarr.consolidate_metadata(tmp_path / "d.zarr")
    return tmp_path / "d.zarr"


@pytest.mark.parametrize("version", [2, 3])
@pytest.mark.parametrize("chunks", [(20, G), (20, 5), (600, 5)])
def test_a_lost_chunk_of_a_dense_matrix(tmp_path: Path, version: int, chunks: tuple[int, int]) -> None:
    x = counts(600).toarray()
    path = dense_zarr(tmp_path, version, chunks, x)
    files = [p for p in (path / "X").rglob("*") if p.is_file() and not p.name.startswith((".", "zarr"))]
    if chunks == (600, 5):
        for file in files:
            file.unlink()
        words = "none of 5 chunks is there"
    else:
        (path / "X" / ("c/3/0" if version == 3 else "3.0")).unlink()
        words = rf"X: 1 of {len(files)} chunks are missing, among them that of cells 60 to 80"
    if chunks == (20, 5):  # 100 values, 30 of which are no zeros: it might be empty, but not if there are more cells
        ingest(path, tmp_path / "out.zarr", max_memory_bytes=BIG)
        return
    with pytest.raises(InputError, match=words):
        ingest(path, tmp_path / "out.zarr", max_memory_bytes=BIG)


def test_chunks_of_zeros_of_a_dense_matrix_need_no_file(tmp_path: Path) -> None:
    x = counts(600).toarray()
    x[:, 5:10] = 0  # genes that nobody has
    x[:, 10:15][np.arange(600) % 200 > 0] = 0  # genes that few have
    x[400:, 10:15] = 0
    path = dense_zarr(tmp_path, 3, (200, 5), x)
    assert not (path / "X" / "c" / "2" / "2").exists()
    ingest(path, tmp_path / "out.zarr", max_memory_bytes=BIG)
    assert equal(read(tmp_path / "out.zarr").X, x)


@pytest.mark.parametrize("version", [2, 3])
def test_a_lost_chunk_of_names(tmp_path: Path, version: int) -> None:
    write_zarr(table(), tmp_path / "a.zarr", version)
    (tmp_path / "a.zarr" / "obs" / "_index" / ("c/0" if version == 3 else "0")).unlink()
    with pytest.raises(InputError, match="obs/_index: 1 of 1 chunks are missing"):
        ingest(tmp_path / "a.zarr", tmp_path / "out.zarr", max_memory_bytes=BIG)


def test_a_budget_that_cannot_be_met_names_one_that_would(tmp_path: Path) -> None:
    table().write_h5ad(tmp_path / "a.h5ad")
    with pytest.raises(BudgetError, match=r"allow at least [0-9,]+ MiB"):
        ingest(tmp_path / "a.h5ad", tmp_path / "out.zarr", max_memory_bytes=50 * 2**20)


# --------------------------------------------------------------- bad inputs


def damaged_h5(tmp_path: Path, change: Callable[[h5py.File], None]) -> Path:
    path = tmp_path / "bad.h5ad"
    table().write_h5ad(path)
    with h5py.File(path, "a") as file:
        change(file)
    return path


def set_value(name: str, at: int, value: float) -> Callable[[h5py.File], None]:
    def change(file: h5py.File) -> None:
        data = file[name][:]
        data[at] = value
        del file[name]
        file[name] = data

    return change


def cut(path: Path, n_bytes: int) -> Path:
    raw = path.read_bytes()
    path.write_bytes(raw[:n_bytes])
    return path


def twice(file: h5py.File) -> None:
    start = file["X/indptr"][7]
    set_value("X/indices", start + 1, file["X/indices"][start])(file)


BAD_H5AD = {
    "negative": (
        set_value("X/data", 400, -1),
        r"bad.h5ad: X, row \d+: a negative value \(cell cell0_\d+\); exp",
    ),
    "nan": (set_value("X/data", 400, np.nan), r"bad.h5ad: X, row \d+: NaN or infinity"),
    "too large": (set_value("X/data", 400, 1e11), "a value above 4,294,967,295"),
    "twice": (twice, r"row 7 \(cell0_7\): two values for one gene; expected one"),
    "gene": (set_value("X/indices", 400, 99), "a gene index outside the matrix"),
    "short data": (lambda f: (f.move("X/data", "X/old"), f.create_dataset("X/data", data=f["X/old"][:9])), "9 values"),
    "falling": (set_value("X/indptr", 5, 10**6), "row pointers that fall or lie outside"),
    "no obs": (lambda f: f.__delitem__("obs"), "has no obs"),
    "no X": (lambda f: f.__delitem__("X"), "has no X, layers/counts or raw/X"),
    "bad obs": (lambda f: f.__delitem__("obs/_index"), "obs: cannot be read"),
}


@pytest.mark.parametrize("case", list(BAD_H5AD))
def test_bad_h5ad(tmp_path: Path, case: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(arrays, "PEEK", 100)
    change, words = BAD_H5AD[case]
    path = damaged_h5(tmp_path, change)
    with pytest.raises(InputError, match=words) as error:
        ingest(path, tmp_path / "out.zarr", max_memory_bytes=BIG)
    assert str(path) in str(error.value)
    assert [p.name for p in tmp_path.iterdir()] == ["bad.h5ad"]


def test_damaged_files(tmp_path: Path) -> None:
    def fails(path: Path, words: str) -> None:
        with pytest.raises(InputError, match=words):
            ingest(path, tmp_path / "out.zarr", max_memory_bytes=BIG)
        assert not (tmp_path / "out.zarr").exists()
        assert not (tmp_path / "out.zarr.partial").exists()

    fails(tmp_path / "nowhere.h5ad", "no such file or folder")
    (tmp_path / "a.h5ad").write_bytes(b"hello")
    fails(tmp_path / "a.h5ad", "not an HDF5 file")
    table().write_h5ad(tmp_path / "b.h5ad")
    fails(cut(tmp_path / "b.h5ad", 8000), "cannot be read .* damaged or cut off")
    (tmp_path / "c.docx").write_bytes(b"hello")
    fails(tmp_path / "c.docx", "of no known format; expected h5ad")
    (tmp_path / "folder").mkdir()
    fails(tmp_path / "folder", "neither zarr metadata nor a matrix.mtx")
    zarr.create_group(tmp_path / "d.zarr")
    fails(tmp_path / "d.zarr", "a zarr store with nothing in it")
    with h5py.File(tmp_path / "e.h5", "w") as file:
        file["z"] = 1
    fails(tmp_path / "e.h5", "an HDF5 file with z; expected")
    with h5py.File(tmp_path / "f.loom", "w") as file:
        file["values"] = np.ones((2, 2))
    fails(tmp_path / "f.loom", "not a whole loom file: it has values")
    write_loom(tmp_path / "g.loom", counts())
    with h5py.File(tmp_path / "g.loom", "a") as file:
        del file["row_attrs/Gene"]
    fails(tmp_path / "g.loom", "row_attrs has no gene names")
    table(sp.csr_matrix((0, 5))).write_h5ad(tmp_path / "h.h5ad")
    fails(tmp_path / "h.h5ad", "0 cells x 5 genes")


@pytest.mark.parametrize("name", ["data", "indices"])
def test_a_lost_or_cut_chunk_of_zarr(tmp_path: Path, name: str) -> None:
    write_zarr(table(), tmp_path / "a.zarr", 3)
    chunk = next(p for p in (tmp_path / "a.zarr" / "X" / name / "c").iterdir() if p.is_file())
    cut(chunk, 30)
    with pytest.raises(InputError, match="cannot be read"):
        ingest(tmp_path / "a.zarr", tmp_path / "out.zarr", max_memory_bytes=BIG)
    chunk.unlink()
    with pytest.raises(InputError, match=f"X/{name}: 1 of 1 chunks are missing"):
        ingest(tmp_path / "a.zarr", tmp_path / "out.zarr", max_memory_bytes=BIG)


def test_the_canonical_atlas_is_a_source(tmp_path: Path) -> None:
    table().write_h5ad(tmp_path / "a.h5ad")
    ingest(tmp_path / "a.h5ad", tmp_path / "b.zarr", max_memory_bytes=BIG)
    report = ingest(tmp_path / "b.zarr", tmp_path / "c.zarr", max_memory_bytes=BIG)
    assert report["sources"][0]["format"] == "zarr v3, CSR"
    assert digest(tmp_path / "b.zarr") == digest(tmp_path / "c.zarr")


def test_bad_tenx(tmp_path: Path) -> None:
    write_tenx(tmp_path / "a.h5", counts(), 3)
    with h5py.File(tmp_path / "a.h5", "a") as file:
        del file["matrix/barcodes"]
        file["matrix/barcodes"] = np.array(["a"], dtype="S")
    with pytest.raises(InputError, match="1 barcodes, but the shape says 60"):
        ingest(tmp_path / "a.h5", tmp_path / "out.zarr", max_memory_bytes=BIG)
    write_tenx(tmp_path / "b.h5", counts(), 2)
    with h5py.File(tmp_path / "b.h5", "a") as file:
        file.copy("GRCh38", "mm10")
    with pytest.raises(InputError, match="one matrix for each of GRCh38, mm10"):
        ingest(tmp_path / "b.h5", tmp_path / "out.zarr", max_memory_bytes=BIG)


BAD_MTX = {
    "features": (lambda t: t, "feat", "a matrix of 25 x 60, but 24 features and 60 barcodes"),
    "cut": (lambda t: "\n".join(t.split("\n")[:50]) + "\n", "mtx", "47 entries, but its header says 450"),
    "half a line": (lambda t: "\n".join(t.split("\n")[:50]) + "\n3", "mtx", "line 51: expected a row up to 25"),
    "outside": (
        lambda t: t.replace("\n5 ", "\n26 ", 1),
        "mtx",
        r"line \d+: expected a row up to 25, a column up to",
    ),
    "words": (lambda t: t.replace("\n5 ", "\nfive ", 1), "mtx", r"line \d+: expected a row"),
    "not mtx": (lambda t: "hello" + t, "mtx", "not a MatrixMarket file"),
    "fraction": (lambda t: t.rstrip("\n") + ".5\n", "mtx", r"row 59: a value that is not a whole number \(cell c59\)"),
    "negative": (lambda t: t.replace(" ", " ", 1), "neg", "a negative value"),
}


@pytest.mark.parametrize("case", list(BAD_MTX))
def test_bad_mtx(tmp_path: Path, case: str) -> None:
    folder = write_mtx(tmp_path / "m", counts(), packed=False)
    change, what, words = BAD_MTX[case]
    mtx = folder / "matrix.mtx"
    if what == "feat":
        lines = (folder / "features.tsv").read_text().split("\n")
        (folder / "features.tsv").write_text("\n".join(lines[:24]) + "\n")
    elif what == "neg":
        head, _, last = mtx.read_text().rstrip("\n").rpartition(" ")
        mtx.write_text(f"{head} -{last}\n")
    else:
        mtx.write_text(change(mtx.read_text()))
    with pytest.raises(InputError, match=words):
        ingest(folder, tmp_path / "out.zarr", max_memory_bytes=BIG)
    assert [p.name for p in tmp_path.iterdir()] == ["m"]


def test_mtx_without_its_companions_or_cut_gzip(tmp_path: Path) -> None:
    folder = write_mtx(tmp_path / "m", counts())
    cut(folder / "matrix.mtx.gz", 500)
    with pytest.raises(InputError, match=r"matrix.mtx.gz.*cannot be read \(EOFError"):
        ingest(folder, tmp_path / "out.zarr", max_memory_bytes=BIG)
    (folder / "barcodes.tsv.gz").unlink()
    with pytest.raises(InputError, match=r"no barcodes.tsv \(or .gz\) beside matrix.mtx.gz"):
        ingest(folder, tmp_path / "out.zarr", max_memory_bytes=BIG)


def test_bad_text(tmp_path: Path) -> None:
    def fails(content: str, words: str, **options: object) -> None:
        (tmp_path / "a.csv").write_text(content)
        with pytest.raises(InputError, match=words):
            ingest(tmp_path / "a.csv", tmp_path / "out.zarr", max_memory_bytes=BIG, **options)

    fails(",g1,g2\nc1,1,2\nc2,1\n", "a.csv, line 3: 1 values, expected 2 as in the header")
    fails(",g1,g2\nc1,1,2\n\nc2,1,x\n", "a.csv, line 4, column g2: 'x' is not a number")
    fails(",g1,g2\nc1,1,2\nc2,1,\n", "line 3, column g2: '' is not a number")
    fails(",g1,g2\nc1,1,2\nc2,1,0.5\n", r"row 1: a value that is not a whole number \(cell c2\)")
    fails(",g1,g2\nc1,1,2\nc2,1,-3\n", r"row 1: a negative value \(cell g2\)", transpose=True)
    fails("", "is empty")
    fails("g1;g2\nc1;1\n", "line 1: one field; expected names separated by a comma")
    fails(",g1,g2\n", "no values")
    fails(",g1,g1\nc1,1,2\n", "1 gene names occur more than once")


def test_duplicated_genes(tmp_path: Path) -> None:
    source = table()
    source.var_names = ["a", "b", "a", "a-1", *[f"g{j}" for j in range(G - 4)]]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        source.write_h5ad(tmp_path / "a.h5ad")
    with pytest.raises(InputError, match=r"1 gene names occur more than once \('a'\).*number them with --make-unique"):
        ingest(tmp_path / "a.h5ad", tmp_path / "out.zarr", max_memory_bytes=BIG)
    ingest(tmp_path / "a.h5ad", tmp_path / "out.zarr", make_unique=True, max_memory_bytes=BIG)
    got = read(tmp_path / "out.zarr")
    assert list(got.var_names[:4]) == ["a", "b", "a-2", "a-1"]
    assert equal(got.X, source.X)


def test_sources_with_no_common_gene(tmp_path: Path) -> None:
    table(seed=1).write_h5ad(tmp_path / "a.h5ad")
    other = table(seed=2)
    other.var_names = [f"ENSG{j}" for j in range(G)]
    other.write_h5ad(tmp_path / "b.h5ad")
    for genes in ("intersection", "union"):
        with pytest.raises(InputError, match=r"no gene in common \(.*g0, g1, g2; .*ENSG0"):
            ingest([tmp_path / "a.h5ad", tmp_path / "b.h5ad"], tmp_path / "o.zarr", genes=genes, max_memory_bytes=BIG)


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


def test_the_budget_is_for_what_a_call_adds_to_a_large_process(tmp_path: Path) -> None:
    table().write_h5ad(tmp_path / "a.h5ad")
    held = np.ones(1 << 30, dtype=np.uint8)  # as a notebook may hold
    ingest(tmp_path / "a.h5ad", tmp_path / "out.zarr", max_memory_bytes=1 << 30)
    assert held.sum() == 1 << 30
    assert equal(read(tmp_path / "out.zarr").X, table().X)
