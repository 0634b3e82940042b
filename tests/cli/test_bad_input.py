"""Bad input through the command line: exit code 1 or 2, one readable message, nothing half-written."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import anndata
import h5py
import numpy as np
import pytest
import scipy.sparse as sp
from click.testing import Result

from hashstream.errors import InputError
from hashstream.runtime.run import Run
from hashstream.runtime.schema import FORMAT_VERSION
from tests import damage
from tests.runs import accept_files
from tests.synthetic import make_adata

Cli = Callable[..., Result]


def expect_failure(result: Result, *wanted: str, code: int = 1) -> None:
    assert result.exit_code == code, result.output
    assert "Traceback" not in result.output
    assert "defect of HashStream" not in result.output
    message = result.stderr.strip().splitlines()[-1]
    for words in wanted:
        assert words in message, f"{words!r} not in {message!r}"


def expect_nothing_written(folder: Path, *present: str) -> None:
    assert sorted(p.name for p in folder.iterdir()) == sorted(present)


def with_value(adata: anndata.AnnData, row: int, value: float) -> anndata.AnnData:
    """The atlas with one stored value of a row replaced."""
    out = adata.copy()
    x = out.X.tocsr().astype(np.float32)
    x.data[x.indptr[row]] = value
    out.X = x
    return out


def test_missing_path(hashstream: Cli, tmp_path: Path) -> None:
    result = hashstream("encode", tmp_path / "nothing.h5ad", "-o", tmp_path / "run")
    expect_failure(result, "nothing.h5ad", "no such file")
    expect_nothing_written(tmp_path)


def test_a_file_that_is_no_anndata(hashstream: Cli, tmp_path: Path) -> None:
    (tmp_path / "text.h5ad").write_text("gene,cell\n")
    expect_failure(hashstream("encode", tmp_path / "text.h5ad", "-o", tmp_path / "run"), "neither a zarr folder nor")
    with h5py.File(tmp_path / "other.h5ad", "w") as file:
        file["numbers"] = np.arange(3)
    expect_failure(hashstream("encode", tmp_path / "other.h5ad", "-o", tmp_path / "run"), "other.h5ad", "no 'obs'")
    (tmp_path / "folder.zarr").mkdir()
    expect_failure(hashstream("encode", tmp_path / "folder.zarr", "-o", tmp_path / "run"), "not a zarr store")
    expect_nothing_written(tmp_path, "text.h5ad", "other.h5ad", "folder.zarr")


def test_a_truncated_h5ad(hashstream: Cli, small_h5ad: Path, tmp_path: Path) -> None:
    whole = small_h5ad.read_bytes()
    (tmp_path / "cut.h5ad").write_bytes(whole[: len(whole) // 2])
    expect_failure(hashstream("encode", tmp_path / "cut.h5ad", "-o", tmp_path / "run"), "cut.h5ad", "damaged")
    expect_nothing_written(tmp_path, "cut.h5ad")


def test_log_normalised_without_counts(hashstream: Cli, small_adata: anndata.AnnData, tmp_path: Path) -> None:
    logged = small_adata.copy()
    logged.X = logged.X.log1p()
    logged.write_h5ad(tmp_path / "log.h5ad")
    result = hashstream("encode", tmp_path / "log.h5ad", "-o", tmp_path / "run")
    expect_failure(result, "log.h5ad", "no raw counts", "log-normalisation", "--layer")
    expect_nothing_written(tmp_path, "log.h5ad")


@pytest.mark.parametrize(
    ("value", "words"),
    [(np.nan, "NaN"), (np.inf, "infinite"), (-1.0, "negative"), (1.5, "non-integer")],
)
def test_values_that_are_no_counts(
    hashstream: Cli, small_adata: anndata.AnnData, tmp_path: Path, value: float, words: str
) -> None:
    with_value(small_adata, 100, value).write_h5ad(tmp_path / "bad.h5ad")
    result = hashstream("encode", tmp_path / "bad.h5ad", "-o", tmp_path / "run", "--chunk-rows", 60)
    expect_failure(result, "bad.h5ad", "X", "row 100", words)
    expect_nothing_written(tmp_path, "bad.h5ad")


@pytest.mark.parametrize(
    ("value", "words"), [(np.nan, "NaN"), (-1.0, "a negative value"), (1.5, "a non-integer value")]
)
def test_bad_rows_between_those_that_opening_looks_at(
    hashstream: Cli, tmp_path: Path, value: float, words: str
) -> None:
    large = make_adata(n_cells=2000, n_genes=100)
    large.write_h5ad(tmp_path / "good.h5ad")
    assert hashstream("fit", tmp_path / "good.h5ad", "-o", tmp_path / "hasher").exit_code == 0
    with_value(large, 150, value).write_h5ad(tmp_path / "bad.h5ad")
    for hasher in ((), ("--hasher", tmp_path / "hasher")):
        result = hashstream("encode", tmp_path / "bad.h5ad", "-o", tmp_path / "run", "--chunk-rows", 60, *hasher)
        expect_failure(result, "bad.h5ad/X", "row 150", words)
    expect_nothing_written(tmp_path, "good.h5ad", "bad.h5ad", "hasher")


def test_repeated_gene_names(hashstream: Cli, small_adata: anndata.AnnData, tmp_path: Path) -> None:
    repeated = small_adata.copy()
    names = repeated.var_names.to_numpy(dtype=object).copy()
    names[5] = names[4]
    repeated.var.index = names
    repeated.write_h5ad(tmp_path / "twice.h5ad")
    result = hashstream("encode", tmp_path / "twice.h5ad", "-o", tmp_path / "run")
    expect_failure(result, "twice.h5ad", "1 gene name(s)", "'G0004'", "make_unique")
    expect_nothing_written(tmp_path, "twice.h5ad")


@pytest.mark.parametrize("shape", [(0, 300), (600, 0)])
def test_an_empty_matrix(hashstream: Cli, small_adata: anndata.AnnData, tmp_path: Path, shape: tuple[int, int]) -> None:
    small_adata[: shape[0], : shape[1]].copy().write_h5ad(tmp_path / "empty.h5ad")
    result = hashstream("encode", tmp_path / "empty.h5ad", "-o", tmp_path / "run")
    expect_failure(result, "empty.h5ad", "is empty", f"{shape[0]} cells x {shape[1]} genes")
    expect_nothing_written(tmp_path, "empty.h5ad")


def test_a_matrix_of_zeros(hashstream: Cli, small_adata: anndata.AnnData, tmp_path: Path) -> None:
    zero = anndata.AnnData(sp.csr_matrix(small_adata.shape, dtype=np.float32), small_adata.obs, small_adata.var)
    zero.write_h5ad(tmp_path / "zero.h5ad")
    expect_failure(hashstream("encode", tmp_path / "zero.h5ad", "-o", tmp_path / "run"), "zero counts")
    expect_nothing_written(tmp_path, "zero.h5ad")


def test_genes_that_do_not_match(
    hashstream: Cli, small_h5ad: Path, small_adata: anndata.AnnData, tmp_path: Path
) -> None:
    assert hashstream("fit", small_h5ad, "-o", tmp_path / "hasher").exit_code == 0
    other = small_adata.copy()
    other.var.index = [f"ENSG{i:011d}" for i in range(other.n_vars)]
    other.write_h5ad(tmp_path / "ensembl.h5ad")
    result = hashstream("encode", tmp_path / "ensembl.h5ad", "--hasher", tmp_path / "hasher", "-o", tmp_path / "run")
    expect_failure(result, "ensembl.h5ad", "genes do not match", "Ensembl ids", "at least 50%")
    expect_nothing_written(tmp_path, "ensembl.h5ad", "hasher")


def test_an_existing_target(hashstream: Cli, small_h5ad: Path, tmp_path: Path) -> None:
    assert hashstream("encode", small_h5ad, "-o", tmp_path / "run").exit_code == 0
    before = (tmp_path / "run" / "run.json").read_bytes()
    expect_failure(hashstream("encode", small_h5ad, "-o", tmp_path / "run"), "already there", "--force", code=2)
    assert (tmp_path / "run" / "run.json").read_bytes() == before
    assert hashstream("encode", small_h5ad, "-o", tmp_path / "run", "--force").exit_code == 0
    expect_nothing_written(tmp_path, "run")


def test_csc_says_how_to_ingest(hashstream: Cli, small_adata: anndata.AnnData, tmp_path: Path) -> None:
    by_genes = small_adata.copy()
    by_genes.X = by_genes.X.tocsc()
    by_genes.write_h5ad(tmp_path / "csc.h5ad")
    result = hashstream("encode", tmp_path / "csc.h5ad", "-o", tmp_path / "run")
    expect_failure(result, "csc.h5ad/X", "CSC", "hashstream ingest")
    expect_nothing_written(tmp_path, "csc.h5ad")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (damage.repeated, ["row 100", "unsorted or repeated gene indices"]),
        (damage.out_of_range, ["row 100", "gene index outside the matrix"]),
        (damage.falling_pointers, ["indptr", "row 100"]),
        (damage.short_pointers, ["indptr has 600 entries, expected 601"]),
        (damage.short_data, ["data holds", "indices"]),
    ],
)
def test_broken_csr(
    hashstream: Cli, small_h5ad: Path, tmp_path: Path, change: Callable[[h5py.File], None], words: list[str]
) -> None:
    path = damage.edit(small_h5ad, tmp_path / "broken.h5ad", change)
    expect_failure(hashstream("encode", path, "-o", tmp_path / "run"), "broken.h5ad", *words)
    expect_nothing_written(tmp_path, "broken.h5ad")


def test_columns_of_a_row_may_stand_in_any_order(hashstream: Cli, small_h5ad: Path, tmp_path: Path) -> None:
    """AnnData writes them so, once genes were put into another order."""
    adata = anndata.read_h5ad(small_h5ad)
    genes = np.random.default_rng(0).permutation(adata.n_vars)
    mixed = adata[:, genes].copy()
    assert not mixed.X.has_sorted_indices
    mixed.write_h5ad(tmp_path / "mixed.h5ad")
    assert hashstream("encode", small_h5ad, "-o", tmp_path / "one").exit_code == 0
    own = ("--hasher", tmp_path / "one" / "hasher")
    done = hashstream("encode", tmp_path / "mixed.h5ad", "-o", tmp_path / "two", *own)
    assert done.exit_code == 0, done.stderr
    assert np.array_equal(Run.open(tmp_path / "one").codes(), Run.open(tmp_path / "two").codes())
    damage.edit(tmp_path / "mixed.h5ad", tmp_path / "twice.h5ad", damage.repeated)
    damage.edit(tmp_path / "mixed.h5ad", tmp_path / "beyond.h5ad", damage.out_of_range)
    for name, words in (("twice", "repeated gene indices"), ("beyond", "outside the matrix")):
        result = hashstream("encode", tmp_path / f"{name}.h5ad", "-o", tmp_path / "run")
        expect_failure(result, "row 100", words)


def test_a_hasher_that_was_changed(hashstream: Cli, small_h5ad: Path, tmp_path: Path) -> None:
    assert hashstream("fit", small_h5ad, "-o", tmp_path / "hasher").exit_code == 0
    meta = tmp_path / "hasher" / "hasher.json"
    meta.write_text(meta.read_text().replace('"target_sum": 10000.0', '"target_sum": 9999.0'))
    result = hashstream("encode", small_h5ad, "--hasher", tmp_path / "hasher", "-o", tmp_path / "run")
    expect_failure(result, "fingerprint")
    tensors = tmp_path / "hasher" / "hasher.safetensors"
    tensors.write_bytes(tensors.read_bytes()[:-100])
    result = hashstream("encode", small_h5ad, "--hasher", tmp_path / "hasher", "-o", tmp_path / "run")
    expect_failure(result, "damaged")
    expect_failure(hashstream("encode", small_h5ad, "--hasher", tmp_path, "-o", tmp_path / "run"), "not a hasher")


def test_damaged_runs(hashstream: Cli, small_h5ad: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    expect_failure(hashstream("cluster", run), "no such run")
    assert hashstream("encode", small_h5ad, "-o", run).exit_code == 0
    expect_failure(hashstream("evaluate", run, "--truth", "nothing"), "no column 'nothing'", "'cell_type'")
    meta = (run / "run.json").read_text()
    version = f'"format_version": {FORMAT_VERSION}'
    assert version in meta
    (run / "run.json").write_text(meta.replace(version, '"format_version": 99', 1))
    expect_failure(hashstream("cluster", run), "format version 99")
    (run / "run.json").write_text(meta)
    codes = run / "codes.zarr" / "c" / "0" / "0"
    content = bytearray(codes.read_bytes())
    content[200] ^= 1
    codes.write_bytes(content)
    expect_failure(hashstream("cluster", run), "codes.zarr: not what run.json tells of")
    accept_files(run)
    with pytest.raises(InputError, match=r"codes.zarr: rows 0 to 600"):
        Run.open(run).codes()
    (run / "buckets.parquet").write_bytes((run / "buckets.parquet").read_bytes()[:-50])
    expect_failure(hashstream("cluster", run), "buckets.parquet")
    (run / "cells.parquet").unlink()
    expect_failure(hashstream("cluster", run), "no cells.parquet")


def test_usage_errors(hashstream: Cli, small_h5ad: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    assert hashstream("encode", small_h5ad, "-o", run).exit_code == 0
    expect_failure(hashstream("cluster", run, "--n-clusters", "many"), "expected a number or 'auto'", code=2)
    expect_failure(hashstream("cluster", run, "--n-clusters", 5000), "5000", "buckets", code=2)
    expect_failure(hashstream("encode", small_h5ad), "-o", code=2)
    expect_failure(hashstream("encode", small_h5ad, "-o", tmp_path / "r2", "--bits", 0), "--bits", code=2)
    (tmp_path / "config.yaml").write_text("encode: {chunk: 3}\n")
    result = hashstream("--config", tmp_path / "config.yaml", "encode", small_h5ad, "-o", tmp_path / "r2")
    expect_failure(result, "unknown option(s) chunk", code=2)
