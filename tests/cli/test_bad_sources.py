"""Bad sources of `ingest`, and atlases damaged afterwards: one readable message, nothing half-written."""

from __future__ import annotations

import gzip
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import anndata
import h5py
import numpy as np
import pytest
import scipy.sparse as sp
import zarr
from click.testing import Result

from hashstream.runtime.run import Run
from tests import damage
from tests.cli.test_bad_input import expect_failure, expect_nothing_written, with_value
from tests.synthetic import make_adata

Cli = Callable[..., Result]


@pytest.fixture
def refused(hashstream: Cli, tmp_path: Path) -> Callable[..., None]:
    """Ingest fails with all the words in its message, and leaves the folder as it was."""

    def check(*sources: Path, words: list[str], code: int = 1, options: tuple[object, ...] = ()) -> None:
        before = sorted(p.name for p in tmp_path.iterdir())
        result = hashstream("ingest", *sources, tmp_path / "out.zarr", *options)
        expect_failure(result, *words, code=code)
        expect_nothing_written(tmp_path, *before)

    return check


def write_text(path: Path, lines: list[str]) -> Path:
    raw = ("\n".join(lines) + "\n").encode()
    path.write_bytes(gzip.compress(raw) if path.name.endswith(".gz") else raw)
    return path


def write_mtx(folder: Path, *, cells: int = 4, genes: int = 3, entries: int = 5, barcodes: int = 4) -> Path:
    """A 10x folder of a 3 x 4 matrix of 5 entries, whose numbers may be told otherwise."""
    folder.mkdir()
    body = ["1 1 2", "3 1 1", "2 2 5", "1 3 1", "3 4 9"]
    write_text(
        folder / "matrix.mtx",
        ["%%MatrixMarket matrix coordinate integer general", f"{genes} {cells} {entries}", *body],
    )
    write_text(folder / "barcodes.tsv", [f"c{i}" for i in range(barcodes)])
    write_text(folder / "features.tsv", [f"ENSG{j:011d}\tg{j}\tGene Expression" for j in range(3)])
    return folder


def write_loom(path: Path, names: tuple[str, ...] = ("matrix", "row_attrs", "col_attrs")) -> Path:
    with h5py.File(path, "w") as file:
        if "matrix" in names:
            file["matrix"] = np.arange(12).reshape(3, 4)
        if "row_attrs" in names:
            file["row_attrs/Gene"] = [f"g{j}" for j in range(3)]
        if "col_attrs" in names:
            file["col_attrs/CellID"] = [f"c{i}" for i in range(4)]
        file.create_group("layers")
    return path


def cut(path: Path, share: float) -> Path:
    whole = path.read_bytes()
    path.write_bytes(whole[: int(len(whole) * share)])
    return path


# ------------------------------------------------------------------ sources


def test_paths_and_formats(refused: Callable[..., None], small_h5ad: Path, tmp_path: Path) -> None:
    refused(tmp_path / "nothing.h5ad", words=["nothing.h5ad", "no such file"])
    refused(small_h5ad, tmp_path / "nothing.csv", words=["nothing.csv", "no such file"])
    (tmp_path / "table.xlsx").write_bytes(b"PK\x03\x04")
    refused(tmp_path / "table.xlsx", words=["table.xlsx", "no known format", "h5ad", "loom", ".csv"])
    (tmp_path / "folder").mkdir()
    refused(tmp_path / "folder", words=["folder", "neither zarr metadata nor a matrix.mtx"])
    (tmp_path / "empty.h5ad").touch()
    refused(tmp_path / "empty.h5ad", words=["empty.h5ad", "not an HDF5 file"])
    with h5py.File(tmp_path / "numbers.h5", "w") as file:
        file["numbers"] = np.arange(3)
    refused(tmp_path / "numbers.h5", words=["numbers.h5", "with numbers", "expected X and obs"])
    zarr.create_group(tmp_path / "bare.zarr")
    refused(tmp_path / "bare.zarr", words=["bare.zarr", "expected AnnData's X and obs"])


def test_a_target_in_a_folder_that_is_not_there(hashstream: Cli, small_h5ad: Path, tmp_path: Path) -> None:
    """It is made, as for all other targets."""
    assert hashstream("ingest", small_h5ad, tmp_path / "new" / "one" / "out.zarr").exit_code == 0
    assert anndata.read_zarr(tmp_path / "new" / "one" / "out.zarr").n_obs == 600
    (tmp_path / "file").touch()
    result = hashstream("ingest", small_h5ad, tmp_path / "file" / "out.zarr")
    expect_failure(result, str(tmp_path / "file"), "cannot be made")


def test_a_target_that_is_called_like_another_format(hashstream: Cli, small_h5ad: Path, tmp_path: Path) -> None:
    shutil.copy(small_h5ad, tmp_path / "same.h5ad")
    shape = ("--cells", 100, "--genes", 50, "--types", 2, "--nnz-per-cell", 10)
    for what in (("ingest", small_h5ad), ("ingest", tmp_path / "same.h5ad"), ("simulate",)):
        options = shape if what == ("simulate",) else ()
        for name, more in (("new/out.h5ad", ()), ("same.h5ad", ()), ("same.h5ad", ("--force",))):
            result = hashstream(*what, tmp_path / name, *options, *more)
            expect_failure(result, name, "a zarr folder", "hashstream export", code=2)
    expect_nothing_written(tmp_path, "same.h5ad")
    assert (tmp_path / "same.h5ad").read_bytes() == small_h5ad.read_bytes()


def test_a_loom_without_what_is_expected(refused: Callable[..., None], tmp_path: Path) -> None:
    path = write_loom(tmp_path / "a.loom")
    refused(path, words=["a.loom", "has no layers/spliced", "it has matrix"], options=("--layer", "spliced"))
    for i, names in enumerate([("row_attrs", "col_attrs"), ("matrix", "row_attrs"), ("matrix", "col_attrs")]):
        path = write_loom(tmp_path / f"part{i}.loom", names)
        refused(path, words=[path.name, "not a whole loom file", "expected matrix, row_attrs and col_attrs"])
    path = write_loom(tmp_path / "short.loom")
    with h5py.File(path, "a") as file:
        del file["col_attrs/CellID"]
        file["col_attrs/CellID"] = ["c0"]
    refused(path, words=["short.loom", "col_attrs/CellID has 1 values", "expected 4"])


def test_mtx_files_that_disagree(refused: Callable[..., None], tmp_path: Path) -> None:
    path = write_mtx(tmp_path / "fewer barcodes", barcodes=3)
    refused(path, words=["matrix.mtx", "a matrix of 3 x 4", "3 features and 3 barcodes", "do not belong together"])
    path = write_mtx(tmp_path / "more genes", genes=5)
    refused(path, words=["matrix.mtx", "a matrix of 5 x 4", "3 features and 4 barcodes"])
    path = write_mtx(tmp_path / "more entries", entries=7)
    refused(path, words=["matrix.mtx", "5 entries", "header says 7"])
    path = write_mtx(tmp_path / "no features")
    (path / "features.tsv").unlink()
    refused(path, words=["no features", "features.tsv or genes.tsv", "expected the three files"])
    path = write_mtx(tmp_path / "outside")
    write_text(path / "matrix.mtx", [*(path / "matrix.mtx").read_text().splitlines()[:-1], "4 4 9"])
    refused(path, words=["matrix.mtx, line 7", "a row up to 3"])


def test_ragged_text(refused: Callable[..., None], tmp_path: Path) -> None:
    lines = ["cell,g1,g2,g3", "c1,1,2,3", "", "c2,4,5,6", "c3,7,8", "c4,1,1,1"]
    for name in ("a.csv", "a.csv.gz"):
        refused(write_text(tmp_path / name, lines), words=[f"{name}, line 5", "2 values, expected 3"])
    lines[4] = "c3,7,8,9,10"
    refused(write_text(tmp_path / "b.csv", lines), words=["b.csv, line 5", "4 values, expected 3"])
    lines[4] = "c3,7,eight,9"
    refused(write_text(tmp_path / "c.csv", lines), words=["c.csv, line 5, column g2", "'eight' is not a number"])
    refused(write_text(tmp_path / "d.csv", ["a;b", "c;1"]), words=["d.csv, line 1", "separated by a comma"])


def test_genes_that_do_not_overlap(
    refused: Callable[..., None], small_h5ad: Path, small_adata: anndata.AnnData, tmp_path: Path
) -> None:
    other = small_adata.copy()
    other.var_names = [f"ENSG{i:011d}" for i in range(other.n_vars)]
    other.write_h5ad(tmp_path / "ids.h5ad")
    for genes in ("intersection", "union"):
        refused(
            small_h5ad,
            tmp_path / "ids.h5ad",
            words=["small.h5ad: G0000", "ids.h5ad: ENSG", "no gene in common"],
            options=("--genes", genes),
        )


@pytest.mark.parametrize("share", [0.01, 0.3, 0.6, 0.9, 0.999])
def test_a_truncated_h5ad(refused: Callable[..., None], small_h5ad: Path, tmp_path: Path, share: float) -> None:
    shutil.copy(small_h5ad, tmp_path / "cut.h5ad")
    refused(cut(tmp_path / "cut.h5ad", share), words=["cut.h5ad", "damaged or cut off"])


@pytest.mark.parametrize("share", [0.1, 0.5, 0.98])
def test_truncated_gzip(refused: Callable[..., None], tmp_path: Path, share: float) -> None:
    rng = np.random.default_rng(0)
    rows = ["\t".join(["", *(f"g{j}" for j in range(50))])]
    rows += ["\t".join([f"c{i}", *map(str, rng.integers(0, 9, 50))]) for i in range(200)]
    path = write_text(tmp_path / "a.tsv.gz", rows)
    refused(cut(path, share), words=["a.tsv.gz", "damaged or cut off"])
    folder = write_mtx(tmp_path / "m")
    matrix = write_text(folder / "matrix.mtx.gz", (folder / "matrix.mtx").read_text().splitlines())
    (folder / "matrix.mtx").unlink()
    refused(cut(matrix, share), words=["matrix.mtx.gz", "damaged or cut off"])


def test_repeated_genes_until_they_are_made_unique(
    hashstream: Cli, refused: Callable[..., None], small_adata: anndata.AnnData, tmp_path: Path
) -> None:
    twice = small_adata.copy()
    names = twice.var_names.to_numpy(dtype=object).copy()
    names[5] = names[4]
    twice.var.index = names
    twice.write_h5ad(tmp_path / "twice.h5ad")
    refused(tmp_path / "twice.h5ad", words=["twice.h5ad", "1 gene names occur more than once", "'G0004'", "unique"])
    result = hashstream("ingest", tmp_path / "twice.h5ad", tmp_path / "out.zarr", "--make-unique")
    assert result.exit_code == 0, result.output
    assert "1 gene names were made unique" in result.stderr
    got = anndata.read_zarr(tmp_path / "out.zarr")
    assert list(got.var_names[4:6]) == ["G0004", "G0004-1"]
    assert np.array_equal(got.X.toarray(), twice.X.toarray())


@pytest.fixture(scope="module")
def large() -> anndata.AnnData:
    """More values than opening looks at."""
    return make_adata(n_cells=1500, n_genes=300, seed=1)


BAD_VALUES = [(np.nan, "NaN"), (np.inf, "infinity"), (-1.0, "a negative value"), (1.5, "not a whole number")]


@pytest.mark.parametrize(("value", "words"), BAD_VALUES)
def test_values_that_are_no_counts(
    refused: Callable[..., None], large: anndata.AnnData, tmp_path: Path, value: float, words: str
) -> None:
    bad = with_value(large, 1400, value)
    assert bad.X.indptr[1400] > 100_000
    bad.write_h5ad(tmp_path / "csr.h5ad")
    refused(tmp_path / "csr.h5ad", words=["csr.h5ad: X, row 1,400", words, "cell1400", "expected counts"])
    bad.X = bad.X.tocsc()
    bad.write_h5ad(tmp_path / "csc.h5ad")
    refused(tmp_path / "csc.h5ad", words=["csc.h5ad: X", words, "expected counts"])


def test_a_row_of_the_second_source(
    refused: Callable[..., None], small_h5ad: Path, large: anndata.AnnData, tmp_path: Path
) -> None:
    with_value(large, 1400, -1).write_h5ad(tmp_path / "second.h5ad")
    refused(small_h5ad, tmp_path / "second.h5ad", words=["second.h5ad: X, row 1,400", "a negative value"])


def test_log_normalised_without_counts(
    refused: Callable[..., None], small_adata: anndata.AnnData, tmp_path: Path
) -> None:
    logged = small_adata.copy()
    logged.X = logged.X.log1p()
    logged.write_h5ad(tmp_path / "log.h5ad")
    refused(tmp_path / "log.h5ad", words=["log.h5ad: X", "not a whole number", "layers/counts", "layer"])
    refused(tmp_path / "log.h5ad", words=["log.h5ad", "has no layers/spliced"], options=("--layer", "spliced"))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (damage.repeated, ["row 100", "two values for one gene"]),
        (damage.out_of_range, ["row 100", "a gene index outside the matrix"]),
        (damage.falling_pointers, ["indptr, rows 0 to 600", "row pointers that fall"]),
        (damage.short_pointers, ["600 row pointers", "expected 601"]),
        (damage.short_data, ["damaged or cut off", "values"]),
    ],
)
def test_broken_csr(
    refused: Callable[..., None],
    small_h5ad: Path,
    tmp_path: Path,
    change: Callable[[h5py.File], None],
    words: list[str],
) -> None:
    refused(damage.edit(small_h5ad, tmp_path / "broken.h5ad", change), words=["broken.h5ad: X", *words])


def test_csc_is_encoded_after_the_advice(hashstream: Cli, small_adata: anndata.AnnData, tmp_path: Path) -> None:
    by_genes = small_adata.copy()
    by_genes.X = by_genes.X.tocsc()
    by_genes.write_h5ad(tmp_path / "csc.h5ad")
    result = hashstream("encode", tmp_path / "csc.h5ad", "-o", tmp_path / "run")
    expect_failure(result, "csc.h5ad/X", "CSC", "`hashstream ingest SOURCE ATLAS.zarr`")
    assert hashstream("ingest", tmp_path / "csc.h5ad", tmp_path / "atlas.zarr").exit_code == 0
    assert hashstream("encode", tmp_path / "atlas.zarr", "-o", tmp_path / "run").exit_code == 0


def test_cells_without_counts_are_kept_and_counted(
    hashstream: Cli, small_adata: anndata.AnnData, tmp_path: Path
) -> None:
    some = small_adata.copy()
    keep = sp.diags((np.arange(some.n_obs) % 50 != 7).astype(np.float32))
    some.X = sp.csr_matrix(keep @ some.X)
    some.X.eliminate_zeros()
    some.write_h5ad(tmp_path / "some.h5ad")
    assert hashstream("ingest", tmp_path / "some.h5ad", tmp_path / "atlas.zarr").exit_code == 0
    assert anndata.read_zarr(tmp_path / "atlas.zarr").shape == some.shape
    assert hashstream("encode", tmp_path / "atlas.zarr", "-o", tmp_path / "run").exit_code == 0
    inspected = json.loads(hashstream("inspect", tmp_path / "run", "--json").stdout)
    assert (inspected["cells"], inspected["empty_cells"]) == (600, 12)


def test_an_existing_target(hashstream: Cli, refused: Callable[..., None], small_h5ad: Path, tmp_path: Path) -> None:
    assert hashstream("ingest", small_h5ad, tmp_path / "out.zarr").exit_code == 0
    before = {p: p.read_bytes() for p in (tmp_path / "out.zarr").rglob("*") if p.is_file()}
    refused(small_h5ad, words=["out.zarr", "already there", "--force"], code=2)
    shape = ("--cells", 100, "--genes", 50, "--types", 2, "--nnz-per-cell", 10)
    result = hashstream("simulate", tmp_path / "out.zarr", *shape)
    expect_failure(result, "out.zarr", "already there", "--force", code=2)
    assert {p: p.read_bytes() for p in (tmp_path / "out.zarr").rglob("*") if p.is_file()} == before
    # A failed ingest with --force leaves what was there, too.
    refused(tmp_path / "nothing.h5ad", words=["no such file"], options=("--force",))
    assert {p: p.read_bytes() for p in (tmp_path / "out.zarr").rglob("*") if p.is_file()} == before
    assert hashstream("simulate", tmp_path / "out.zarr", *shape, "--force").exit_code == 0
    assert anndata.read_zarr(tmp_path / "out.zarr").shape == (100, 50)
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "precious.txt").write_text("mine")
    result = hashstream("ingest", small_h5ad, tmp_path / "notes", "--force")
    expect_failure(result, "notes", code=2)
    assert (tmp_path / "notes" / "precious.txt").read_text() == "mine"


def test_usage(hashstream: Cli, refused: Callable[..., None], small_h5ad: Path, tmp_path: Path) -> None:
    refused(small_h5ad, words=["--genes"], code=2, options=("--genes", "all"))
    refused(small_h5ad, words=["no amount of memory"], code=2, options=("--max-memory", "much"))
    refused(small_h5ad, words=["allow at least", "MiB"], code=2, options=("--max-memory", "1MiB"))
    shutil.copy(small_h5ad, tmp_path / "same")
    result = hashstream("ingest", tmp_path / "same", tmp_path / "same", "--force")
    expect_failure(result, "same is source and target", code=2)
    assert (tmp_path / "same").read_bytes() == small_h5ad.read_bytes()


# ----------------------------------------------- atlases damaged afterwards


@pytest.fixture(scope="module")
def atlas(large: anndata.AnnData, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A canonical atlas of several chunks, beside a hasher of it."""
    from hashstream.stages.fit import fit
    from hashstream.stages.ingest import ingest

    folder = tmp_path_factory.mktemp("canonical")
    large.write_h5ad(folder / "a.h5ad")
    ingest([folder / "a.h5ad"], folder / "atlas.zarr")
    assert zarr.open_array(folder / "atlas.zarr" / "X" / "data", mode="r").nchunks >= 1
    fit(folder / "atlas.zarr", folder / "hasher")
    return folder / "atlas.zarr"


@pytest.fixture
def damaged(hashstream: Cli, atlas: Path, tmp_path: Path) -> Callable[..., None]:
    """Encode of a changed copy of the atlas fails with all the words in its message, and writes nothing."""

    def check(change: Callable[[Path], None], *words: str) -> None:
        copy = tmp_path / "atlas.zarr"
        shutil.rmtree(copy, ignore_errors=True)
        shutil.copytree(atlas, copy)
        change(copy)
        result = hashstream("encode", copy, "-o", tmp_path / "run", "--hasher", atlas.parent / "hasher")
        expect_failure(result, "atlas.zarr/X", *words)
        expect_nothing_written(tmp_path, "atlas.zarr")

    return check


def flip(path: Path, at: int) -> None:
    content = bytearray(path.read_bytes())
    content[at % len(content)] ^= 1 << (at % 8)
    path.write_bytes(content)


@pytest.mark.parametrize("name", ["data", "indices"])
@pytest.mark.parametrize("where", ["frame", "middle", "table"])
def test_a_flipped_bit(damaged: Callable[..., None], atlas: Path, name: str, where: str) -> None:
    size = (atlas / "X" / name / "c" / "0").stat().st_size
    table = size - 128 * 16 - 4  # offsets and sizes of 128 chunks and their CRC; the first is in use
    rng = np.random.default_rng(len(name) + len(where))
    places = {
        "frame": rng.integers(0, 64, 3),
        "middle": rng.integers(64, table - 64, 8),
        "table": [table + 1, table + 9, size - 2],
    }[where]
    # Bits 3 and 4 of byte 4 of a Zstandard frame mean nothing: they may flip.
    for at in (int(place) for place in places if int(place) != 4):
        damaged(
            lambda copy, at=at: flip(copy / "X" / name / "c" / "0", at), "rows ", "cannot be read", "damaged", "ingest"
        )


def test_a_flipped_bit_of_the_row_pointers(damaged: Callable[..., None], atlas: Path) -> None:
    size = (atlas / "X" / "indptr" / "c" / "0").stat().st_size
    for at in (30, size // 2, size - 3):
        damaged(lambda copy, at=at: flip(copy / "X" / "indptr" / "c" / "0", at), "indptr", "damaged")


@pytest.mark.parametrize("name", ["data", "indices", "indptr"])
def test_a_cut_chunk(damaged: Callable[..., None], name: str) -> None:
    for share in (0.0, 0.4, 0.99):
        damaged(lambda copy, share=share: cut(copy / "X" / name / "c" / "0", share) and None, "rows 0 to", "damaged")


@pytest.mark.parametrize("name", ["data", "indices", "indptr"])
def test_a_lost_chunk(damaged: Callable[..., None], name: str) -> None:
    damaged(lambda copy: (copy / "X" / name / "c" / "0").unlink(), f"X/{name}", "chunks are missing", "damaged")


@pytest.mark.parametrize("name", ["data", "indices", "indptr"])
def test_a_damaged_atlas_is_no_source_either(
    refused: Callable[..., None], atlas: Path, tmp_path: Path, name: str
) -> None:
    copy = tmp_path / "atlas.zarr"
    shutil.copytree(atlas, copy)
    chunk = copy / "X" / name / "c" / "0"
    flip(chunk, chunk.stat().st_size // 3)
    refused(copy, words=["atlas.zarr: X", "cannot be read", "damaged or cut off"])
    cut(chunk, 0.4)
    refused(copy, words=["atlas.zarr: X", "cannot be read", "damaged or cut off"])
    chunk.unlink()
    refused(copy, words=["atlas.zarr: X", "damaged"])


def test_row_pointers_of_another_matrix(damaged: Callable[..., None]) -> None:
    def change(values: Callable[[np.ndarray], np.ndarray]) -> Callable[[Path], None]:
        def apply(copy: Path) -> None:
            array = zarr.open_array(copy / "X" / "indptr", mode="r+")
            array[:] = values(array[:])

        return apply

    damaged(change(lambda p: p + 1), "indptr runs from 1", "expected 0 to")
    damaged(change(lambda p: np.minimum(p, p[-1] - 1)), "indptr runs from 0", "expected 0 to")
    damaged(change(lambda p: np.where(np.arange(len(p)) == 700, p[702], p)), "indptr", "row 700")

    def shorten(copy: Path) -> None:
        zarr.open_array(copy / "X" / "indptr", mode="r+").resize((1500,))

    damaged(shorten, "indptr has 1500 entries", "expected 1501")


# ------------------------------------------------------------------- a run


def test_a_run_of_another_format_version(hashstream: Cli, small_h5ad: Path, tmp_path: Path) -> None:
    run, other = tmp_path / "run", tmp_path / "other"
    assert hashstream("encode", small_h5ad, "-o", run).exit_code == 0
    shutil.copytree(run, other)
    meta = json.loads((run / "run.json").read_text())
    (run / "run.json").write_text(json.dumps({**meta, "format_version": meta["format_version"] + 1}))
    before = {p: p.read_bytes() for p in run.rglob("*") if p.is_file()}
    for verb in (
        ("cluster", run),
        ("annotate", run, "--reference", other, "--labels", "cell_type"),
        ("annotate", other, "--reference", run, "--labels", "cell_type"),
        ("evaluate", run, "--truth", "cell_type"),
        ("export", run, "--to", tmp_path / "out.h5ad"),
        ("inspect", run),
    ):
        words = f"format version {meta['format_version'] + 1}"
        expect_failure(hashstream(*verb), str(run), words, f"reads {meta['format_version']}")
    assert {p: p.read_bytes() for p in run.rglob("*") if p.is_file()} == before
    expect_nothing_written(tmp_path, "run", "other")
    assert Run.open(other).n_cells == 600
