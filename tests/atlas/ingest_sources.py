"""Small sources of every format for the tests of ingest, and what was made of them."""

from __future__ import annotations

import gzip
import hashlib
import warnings
from pathlib import Path

import anndata as ad
import h5py
import numpy as np
import pandas as pd
import scipy.sparse as sp

BIG = 2**40  # no limit: tests of the memory have their own


N, G = 60, 25


def counts(n: int = N, g: int = G, seed: int = 0, high: int = 400) -> sp.csr_matrix:
    rng = np.random.default_rng(seed)
    x = sp.csr_matrix(rng.random((n, g)) < 0.3, dtype=np.float32)
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


def three_sources(tmp_path: Path) -> tuple[list[Path], sp.csr_matrix, sp.csr_matrix]:
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
