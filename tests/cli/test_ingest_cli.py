"""`ingest` and `simulate` through the command line: every format in, the same codes out."""

from __future__ import annotations

import gzip
import json
import subprocess
import sys
import warnings
from collections.abc import Callable
from pathlib import Path

import anndata
import h5py
import numpy as np
import pandas as pd
import pytest
import scipy.io
import scipy.sparse as sp
from click.testing import Result

from hashstream.runtime.run import Run
from tests.synthetic import make_adata

Cli = Callable[..., Result]


def succeed(result: Result) -> Result:
    assert result.exit_code == 0, result.output
    return result


def files(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


@pytest.fixture(scope="module")
def adata() -> anndata.AnnData:
    """Cells named by barcodes, so that text tables tell their orientation."""
    source = make_adata()
    source.X.sort_indices()
    source.obs_names = ["".join("ACGT"[(i >> (2 * k)) & 3] for k in range(10)) for i in range(source.n_obs)]
    return source


@pytest.fixture(scope="module")
def hasher(adata: anndata.AnnData, tmp_path_factory: pytest.TempPathFactory) -> Path:
    from hashstream.stages.fit import fit

    folder = tmp_path_factory.mktemp("hasher")
    adata.write_h5ad(folder / "source.h5ad")
    fit(folder / "source.h5ad", folder / "hasher")
    return folder / "hasher"


@pytest.fixture
def codes(hashstream: Cli, hasher: Path, tmp_path: Path) -> Callable[[Path], np.ndarray]:
    """The codes that `encode` gives a store with the module's hasher."""

    def encode(path: Path) -> np.ndarray:
        run = tmp_path / f"run of {path.name}"
        succeed(hashstream("encode", path, "-o", run, "--hasher", hasher, "--force"))
        return Run.open(run).codes()

    return encode


@pytest.fixture(scope="module")
def wanted(adata: anndata.AnnData, hasher: Path, tmp_path_factory: pytest.TempPathFactory) -> np.ndarray:
    """Codes of the h5ad."""
    from hashstream.stages.encode import encode

    run = encode(hasher.parent / "source.h5ad", tmp_path_factory.mktemp("run") / "run", hasher=hasher)
    assert run is not None
    assert len(np.unique(run.codes())) > 100  # or the comparison would say little
    return run.codes()


def write_h5ad(adata: anndata.AnnData, folder: Path, form: str) -> Path:
    source = adata.copy()
    source.X = {"CSR": source.X, "CSC": source.X.tocsc(), "dense": source.X.toarray()}[form]
    source.write_h5ad(folder / "a.h5ad", compression="gzip")
    return folder / "a.h5ad"


def write_zarr(adata: anndata.AnnData, folder: Path, version: int) -> Path:
    with anndata.settings.override(zarr_write_format=version), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        adata.write_zarr(folder / "a.zarr")
    return folder / "a.zarr"


def write_loom(adata: anndata.AnnData, folder: Path) -> Path:
    """By loompy, in a process of its own: it warns when it is imported."""
    code = (
        "import sys, anndata, loompy; a = anndata.read_h5ad(sys.argv[1]);"
        "loompy.create(sys.argv[2], a.X.toarray().T, {'Gene': a.var_names.to_numpy(str)},"
        "{'CellID': a.obs_names.to_numpy(str), 'cell_type': a.obs['cell_type'].to_numpy(str)})"
    )
    adata.write_h5ad(folder / "for-loom.h5ad")
    done = subprocess.run(
        [sys.executable, "-c", code, folder / "for-loom.h5ad", folder / "a.loom"], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return folder / "a.loom"


def write_tenx(adata: anndata.AnnData, folder: Path) -> Path:
    """As Cell Ranger 3 and later lay it out: CSC of genes x cells, which has the arrays of CSR of cells."""
    with h5py.File(folder / "a.h5", "w") as file:
        matrix = file.create_group("matrix")
        matrix["barcodes"] = adata.obs_names.to_numpy("S")
        matrix["data"] = adata.X.data.astype(np.int32)
        matrix["indices"], matrix["indptr"] = adata.X.indices.astype(np.int64), adata.X.indptr.astype(np.int64)
        matrix["shape"] = np.array(adata.shape[::-1], dtype=np.int32)
        features = matrix.create_group("features")
        features["id"] = np.array([f"ENSG{i:011d}" for i in range(adata.n_vars)], dtype="S")
        features["name"] = adata.var_names.to_numpy("S")
        features["feature_type"] = np.full(adata.n_vars, b"Gene Expression")
        features["genome"] = np.full(adata.n_vars, b"GRCh38")
    return folder / "a.h5"


def write_mtx(adata: anndata.AnnData, folder: Path) -> Path:
    folder = folder / "filtered_feature_bc_matrix"
    folder.mkdir()
    scipy.io.mmwrite(folder / "matrix.mtx", adata.X.T.tocsc().astype(np.int64), field="integer")
    (folder / "matrix.mtx.gz").write_bytes(gzip.compress((folder / "matrix.mtx").read_bytes()))
    (folder / "matrix.mtx").unlink()
    genes = [f"ENSG{i:011d}\t{name}\tGene Expression\n" for i, name in enumerate(adata.var_names)]
    (folder / "features.tsv.gz").write_bytes(gzip.compress("".join(genes).encode()))
    (folder / "barcodes.tsv.gz").write_bytes(gzip.compress("".join(f"{n}\n" for n in adata.obs_names).encode()))
    return folder


def write_text(adata: anndata.AnnData, folder: Path, name: str, *, genes_first: bool) -> Path:
    table = pd.DataFrame(adata.X.toarray().astype(int), index=adata.obs_names, columns=adata.var_names)
    (table.T if genes_first else table).to_csv(folder / name, sep="," if ".csv" in name else "\t")
    return folder / name


FORMATS: dict[str, tuple[Callable[[anndata.AnnData, Path], Path], str]] = {
    "h5ad CSR": (lambda a, f: write_h5ad(a, f, "CSR"), "h5ad, CSR"),
    "h5ad CSC": (lambda a, f: write_h5ad(a, f, "CSC"), "h5ad, CSC"),
    "h5ad dense": (lambda a, f: write_h5ad(a, f, "dense"), "h5ad, dense"),
    "zarr v2": (lambda a, f: write_zarr(a, f, 2), "zarr v2, CSR"),
    "zarr v3": (lambda a, f: write_zarr(a, f, 3), "zarr v3, CSR"),
    "loom": (write_loom, "loom, dense"),
    "10x h5": (write_tenx, "10x h5, CSR"),
    "10x mtx": (write_mtx, "10x mtx"),
    "csv": (lambda a, f: write_text(a, f, "a.csv", genes_first=False), "text, cells x genes"),
    "csv of genes": (lambda a, f: write_text(a, f, "a.csv", genes_first=True), "text, genes x cells"),
    "tsv.gz": (lambda a, f: write_text(a, f, "a.tsv.gz", genes_first=False), "text, cells x genes"),
    "tsv.gz of genes": (lambda a, f: write_text(a, f, "a.tsv.gz", genes_first=True), "text, genes x cells"),
}


@pytest.mark.parametrize("form", list(FORMATS))
def test_every_format_gives_the_same_codes(
    hashstream: Cli,
    adata: anndata.AnnData,
    codes: Callable[[Path], np.ndarray],
    wanted: np.ndarray,
    tmp_path: Path,
    form: str,
) -> None:
    make, said = FORMATS[form]
    (tmp_path / "source").mkdir()
    source = make(adata, tmp_path / "source")
    target = tmp_path / "atlas.zarr"
    report = json.loads(succeed(hashstream("--json", "ingest", source, target)).stdout)
    assert [p.name for p in tmp_path.iterdir() if p.name != "source"] == ["atlas.zarr"]
    assert report["sources"] == [
        {
            "path": str(source),
            "format": said,
            "array": report["sources"][0]["array"],
            "n_cells": adata.n_obs,
            "n_genes": adata.n_vars,
        }
    ]
    assert (report["n_cells"], report["n_genes"], report["nnz"]) == (*adata.shape, adata.X.nnz)
    got = anndata.read_zarr(target)
    assert np.array_equal(got.X.toarray(), adata.X.toarray())
    assert list(got.obs_names) == list(adata.obs_names)
    assert list(got.var_names) == list(adata.var_names)
    assert np.array_equal(codes(target), wanted)


def test_the_report(hashstream: Cli, adata: anndata.AnnData, tmp_path: Path) -> None:
    source = write_h5ad(adata, tmp_path, "CSR")
    report = json.loads(succeed(hashstream("--json", "ingest", source, tmp_path / "a.zarr")).stdout)
    assert report["path"] == str(tmp_path / "a.zarr")
    assert report["dtype"] == "uint8" if adata.X.max() < 256 else "uint16"
    assert report["sources"][0]["array"] == "X"
    assert report["notes"] == []
    assert report["resumed_at"] is None
    assert report["seconds"] > 0
    assert 50 << 20 < report["peak_rss_bytes"] < 4 << 30
    words = succeed(hashstream("ingest", source, tmp_path / "a.zarr", "--force")).stdout
    assert str(tmp_path / "a.zarr") in words
    assert "600" in words


def test_notes_are_told_on_stderr_and_quiet_keeps_them(hashstream: Cli, adata: anndata.AnnData, tmp_path: Path) -> None:
    source = write_text(adata, tmp_path, "a.csv", genes_first=True)
    result = succeed(hashstream("--json", "ingest", source, tmp_path / "a.zarr"))
    assert "rows are taken for genes" in result.stderr
    assert "rows are taken for genes" in json.loads(result.stdout)["notes"][0]
    result = succeed(hashstream("--quiet", "--json", "ingest", source, tmp_path / "a.zarr", "--force"))
    assert result.stderr == ""


def test_several_sources_with_a_batch_key(
    hashstream: Cli,
    adata: anndata.AnnData,
    codes: Callable[[Path], np.ndarray],
    wanted: np.ndarray,
    tmp_path: Path,
) -> None:
    adata[:200].write_h5ad(tmp_path / "first.h5ad")
    middle = adata[200:350].copy()
    middle.X = middle.X.tocsc()
    middle.write_h5ad(tmp_path / "second.h5ad")
    write_text(adata[350:].copy(), tmp_path, "third.csv", genes_first=False)
    sources = [tmp_path / name for name in ("first.h5ad", "second.h5ad", "third.csv")]
    report = json.loads(
        succeed(hashstream("--json", "ingest", *sources, tmp_path / "a.zarr", "--batch-key", "origin")).stdout
    )
    assert [source["n_cells"] for source in report["sources"]] == [200, 150, 250]
    got = anndata.read_zarr(tmp_path / "a.zarr")
    assert list(got.obs["origin"]) == ["first"] * 200 + ["second"] * 150 + ["third"] * 250
    assert list(got.obs["cell_type"][:350]) == list(adata.obs["cell_type"][:350])
    assert got.obs["cell_type"][350:].isna().all()
    assert np.array_equal(codes(tmp_path / "a.zarr"), wanted)


def test_genes_of_all_sources_or_of_each(hashstream: Cli, adata: anndata.AnnData, tmp_path: Path) -> None:
    adata[:300, :200].write_h5ad(tmp_path / "one.h5ad")
    adata[300:, 100:].write_h5ad(tmp_path / "two.h5ad")
    sources = [tmp_path / "one.h5ad", tmp_path / "two.h5ad"]
    dense = adata.X.toarray()
    dense[:300, 200:] = 0
    dense[300:, :100] = 0
    for genes, columns in (("union", range(300)), ("intersection", range(100, 200))):
        target = tmp_path / f"{genes}.zarr"
        succeed(hashstream("ingest", *sources, target, "--genes", genes))
        got = anndata.read_zarr(target)
        assert list(got.var_names) == list(adata.var_names[columns])
        assert np.array_equal(got.X.toarray(), dense[:, columns])


@pytest.mark.parametrize("layer", ["spliced", "raw"])
def test_a_layer_is_taken_when_it_is_named(
    hashstream: Cli,
    adata: anndata.AnnData,
    codes: Callable[[Path], np.ndarray],
    wanted: np.ndarray,
    tmp_path: Path,
    layer: str,
) -> None:
    source = adata.copy()
    if layer == "raw":
        source.raw = adata
    else:
        source.layers[layer] = adata.X.tocsc()
    source.X = sp.csr_matrix(source.X > 2, dtype=np.float32)  # counts as well, but others
    source.write_h5ad(tmp_path / "a.h5ad")
    report = json.loads(
        succeed(hashstream("--json", "ingest", tmp_path / "a.h5ad", tmp_path / "a.zarr", "--layer", layer)).stdout
    )
    assert report["sources"][0]["array"] == ("raw/X" if layer == "raw" else f"layers/{layer}")
    assert np.array_equal(codes(tmp_path / "a.zarr"), wanted)
    succeed(hashstream("ingest", tmp_path / "a.h5ad", tmp_path / "x.zarr"))
    assert not np.array_equal(codes(tmp_path / "x.zarr"), wanted)


def test_simulate_gives_the_same_bytes_for_the_same_seed(hashstream: Cli, tmp_path: Path) -> None:
    shape = ("--cells", 3000, "--genes", 500, "--types", 6, "--batches", 2, "--nnz-per-cell", 60)
    for name, seed in (("a", 7), ("b", 7), ("c", 8)):
        result = succeed(hashstream("--seed", seed, "--json", "simulate", tmp_path / f"{name}.zarr", *shape))
        report = json.loads(result.stdout)
        assert (report["path"], report["n_cells"], report["n_genes"]) == (str(tmp_path / f"{name}.zarr"), 3000, 500)
    a, b, c = (files(tmp_path / f"{name}.zarr") for name in "abc")
    assert a == b
    assert a["X/data/c/0"] != c["X/data/c/0"]
    got = anndata.read_zarr(tmp_path / "a.zarr")
    assert got.shape == (3000, 500)
    assert 45 < got.X.nnz / 3000 < 75
    result = succeed(hashstream("--json", "encode", tmp_path / "a.zarr", "-o", tmp_path / "run"))
    run = Run.open(json.loads(result.stdout)["path"])
    assert run.n_cells == 3000
    assert run.n_buckets > 100


def test_help_states_the_bounds_that_hold(hashstream: Cli, tmp_path: Path) -> None:
    """The least and the most that --help names are taken, and nothing beyond."""
    words = " ".join(succeed(hashstream("simulate", "--help")).stdout.split())
    assert "[default: 63561; x>=50]" in words
    assert words.count("1<=x<=32767") == 2
    least = ("--cells", 1, "--genes", 50, "--types", 1, "--batches", 1, "--nnz-per-cell", 1)
    succeed(hashstream("simulate", tmp_path / "least.zarr", *least))
    assert anndata.read_zarr(tmp_path / "least.zarr").shape == (1, 50)
    for option, value in (("--genes", 49), ("--types", 32768), ("--batches", 0)):
        result = hashstream("simulate", tmp_path / "a.zarr", "--cells", 100, option, value)
        assert result.exit_code == 2
        assert f"Invalid value for '{option}'" in result.stderr
    for options, said in (
        (("--genes", 100, "--nnz-per-cell", 71), "--nnz-per-cell"),
        (("--genes", 1000, "--batches", 101), "--batches"),
    ):
        result = hashstream("simulate", tmp_path / "a.zarr", "--cells", 100, *options)
        assert result.exit_code == 2
        assert said in result.stderr
    assert [p.name for p in tmp_path.iterdir()] == ["least.zarr"]


def test_messages_name_the_options(hashstream: Cli, adata: anndata.AnnData, tmp_path: Path) -> None:
    twice = adata[:, :3].copy()
    twice.var.index = ["a", "a", "b"]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        twice.write_h5ad(tmp_path / "twice.h5ad")
    assert "--make-unique" in hashstream("ingest", tmp_path / "twice.h5ad", tmp_path / "a.zarr").stderr
    logged = adata.copy()
    logged.X = logged.X.log1p()
    logged.write_h5ad(tmp_path / "logged.h5ad")
    assert "with --layer (raw for raw.X)" in hashstream("ingest", tmp_path / "logged.h5ad", tmp_path / "a.zarr").stderr
    adata.write_h5ad(tmp_path / "source.h5ad")
    result = hashstream("ingest", tmp_path / "source.h5ad", tmp_path / "a.h5ad")
    assert result.exit_code == 2
    assert "ending of another format; call it a.zarr" in result.stderr
    result = hashstream("ingest", tmp_path / "source.h5ad", tmp_path / "a.zarr", "--transpose")
    assert result.exit_code == 2
    assert "leave --transpose out" in result.stderr
    text = write_text(adata, tmp_path, "a.csv", genes_first=False)
    assert "leave --layer out" in hashstream("ingest", text, tmp_path / "a.zarr", "--layer", "counts").stderr
