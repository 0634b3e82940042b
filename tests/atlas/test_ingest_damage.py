"""Damaged and impossible sources: each is refused in words."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path

import anndata as ad
import h5py
import numpy as np
import pytest
import scipy.sparse as sp
import zarr

import hashstream.atlas.ingest._arrays as arrays
from hashstream.atlas.ingest import ingest
from hashstream.errors import InputError
from tests.atlas.ingest_sources import (
    BIG,
    G,
    counts,
    equal,
    read,
    table,
    write_loom,
    write_mtx,
    write_tenx,
    write_zarr,
)
from tests.synthetic import mask_names


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
@pytest.mark.parametrize("masked", [False, True])
def test_a_lost_chunk_of_names(tmp_path: Path, version: int, masked: bool) -> None:
    with ad.settings.override(allow_write_nullable_strings=False):
        write_zarr(table(), tmp_path / "a.zarr", version)
    names = tmp_path / "a.zarr" / "obs" / "_index"
    if masked:
        mask_names(zarr.open_group(tmp_path / "a.zarr", mode="r+", use_consolidated=False), "obs/_index")
        for metadata in ("zarr.json", ".zmetadata"):  # lists what was there
            (tmp_path / "a.zarr" / metadata).unlink(missing_ok=True)
        zarr.open_group(tmp_path / "a.zarr", mode="a", zarr_format=version)  # type: ignore[arg-type]
        names /= "values"
    (names / ("c/0" if version == 3 else "0")).unlink()
    with pytest.raises(InputError, match="obs/_index(/values)?: 1 of 1 chunks are missing"):
        ingest(tmp_path / "a.zarr", tmp_path / "out.zarr", max_memory_bytes=BIG)


def test_a_table_that_says_it_holds_billions(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A cut chunk of names can: how many there are is the first that it says."""
    write_zarr(table(), tmp_path / "a.zarr", 2)

    def too_many(node: object) -> object:
        raise MemoryError("Unable to allocate 30.9 GiB")

    monkeypatch.setattr("hashstream.atlas.ingest._anndata.read_element", too_many)
    with pytest.raises(InputError, match=r"obs: takes more memory than there is \(Unable to allocate 30.9 GiB\)"):
        ingest(tmp_path / "a.zarr", tmp_path / "out.zarr", max_memory_bytes=BIG)


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


def test_bad_tenx(tmp_path: Path) -> None:
    write_tenx(tmp_path / "a.h5", counts(), 3)
    with h5py.File(tmp_path / "a.h5", "a") as file:
        del file["matrix/barcodes"]
        file["matrix/barcodes"] = np.array(["a"], dtype="S")
    with pytest.raises(InputError, match="1 barcodes, but the shape says 60"):
        ingest(tmp_path / "a.h5", tmp_path / "out.zarr", max_memory_bytes=BIG)
    with h5py.File(tmp_path / "a.h5", "a") as file:  # names that nobody could hold: their number is looked at first
        del file["matrix/barcodes"]
        file["matrix"].create_dataset("barcodes", shape=(10**12,), dtype="S16", chunks=(1000,))
    with pytest.raises(InputError, match="1,000,000,000,000 barcodes, but the shape says 60"):
        ingest(tmp_path / "a.h5", tmp_path / "out.zarr", max_memory_bytes=BIG)
    write_loom(tmp_path / "c.loom", counts())
    with h5py.File(tmp_path / "c.loom", "a") as file:
        file["col_attrs"].create_dataset("depth", shape=(10**12,), dtype="i8", chunks=(1000,))
    with pytest.raises(InputError, match="depth has 1,000,000,000,000 values, expected 60"):
        ingest(tmp_path / "c.loom", tmp_path / "out.zarr", max_memory_bytes=BIG)
    write_tenx(tmp_path / "b.h5", counts(), 2)
    with h5py.File(tmp_path / "b.h5", "a") as file:
        file.copy("GRCh38", "mm10")
    with pytest.raises(InputError, match="one matrix for each of GRCh38, mm10"):
        ingest(tmp_path / "b.h5", tmp_path / "out.zarr", max_memory_bytes=BIG)


BAD_MTX = {
    "features": (lambda t: t, "feat", "a matrix of 25 x 60, but 24 features and 60 barcodes"),
    "cut": (lambda t: "\n".join(t.split("\n")[:50]) + "\n", "mtx", f"47 entries, but its header says {counts().nnz}"),
    "half a line": (lambda t: "\n".join(t.split("\n")[:50]) + "\n3", "mtx", "line 51: expected a row up to 25"),
    "outside": (
        lambda t: t.replace("\n5 ", "\n26 ", 1),
        "mtx",
        r"line \d+: expected a row up to 25, a column up to",
    ),
    "half a row": (lambda t: t.replace("\n5 ", "\n5.5 ", 1), "mtx", r"line \d+: expected a row"),
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
