"""Chunks that a zarr store lacks: right where they are zeros, a loss where they are not."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
import zarr

from hashstream.atlas import open_atlas
from hashstream.atlas.ingest import ingest
from hashstream.atlas.missing import VARIABLE, _files_below
from hashstream.errors import InputError, SettingsError
from hashstream.stages.encode import encode
from hashstream.stages.fit import fit
from tests.synthetic import make_adata

BIG = 2**40


def without_counts(n_cells: int, rows: slice, seed: int = 0) -> ad.AnnData:
    """An atlas of which some cells have no counts."""
    adata = make_adata(n_cells=n_cells, seed=seed)
    counts = sp.lil_matrix(adata.X)
    counts[rows] = 0
    adata.X = sp.csr_matrix(counts)
    return adata


def write_zarr(adata: ad.AnnData, path: Path, version: int, pointers: int) -> Path:
    """A store with chunks of so many row pointers."""
    with ad.settings.override(zarr_write_format=version), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        adata.write_zarr(path)
        x: Any = zarr.open_group(path, mode="r+", use_consolidated=False)["X"]
        values, attributes = x["indptr"][:], dict(x["indptr"].attrs)
        array = x.create_array(
            "indptr", shape=values.shape, dtype=values.dtype, chunks=(pointers,), fill_value=0, overwrite=True
        )
        array[:] = values
        array.attrs.update(attributes)
        zarr.consolidate_metadata(path)
    return path


def pointer_chunk(path: Path, number: int) -> Path:
    folder = path / "X" / "indptr"
    return folder / "c" / str(number) if (folder / "zarr.json").exists() else folder / str(number)


def counts_of(path: Path) -> np.ndarray:
    chunk = open_atlas(path).stores[0].matrix.read_rows(0, open_atlas(path).n_cells)
    return sp.csr_matrix((chunk.data, chunk.indices.astype(np.int64), chunk.indptr), (chunk.n_rows, 300)).toarray()


# ------------------------------------------------------------ row pointers


@pytest.mark.parametrize("version", [2, 3])
@pytest.mark.parametrize("n_empty", [99, 100, 399, 1000])
def test_first_cells_without_counts_need_no_chunk_of_pointers(tmp_path: Path, version: int, n_empty: int) -> None:
    """zarr stores no chunk of zeros: the pointers of the first cells are zeros where these have no counts."""
    adata = without_counts(1200, slice(0, n_empty))
    path = write_zarr(adata, tmp_path / "a.zarr", version, 100)
    n_missing = (n_empty + 1) // 100
    assert [pointer_chunk(path, i).exists() for i in range(13)] == [i >= n_missing for i in range(13)]
    assert np.array_equal(counts_of(path), adata.X.toarray())
    ingest(path, tmp_path / "out.zarr", max_memory_bytes=BIG)
    assert np.array_equal(ad.read_zarr(tmp_path / "out.zarr").X.toarray(), adata.X.toarray())


def test_our_own_atlas_of_many_first_cells_without_counts(tmp_path: Path) -> None:
    n_empty = 2**17 + 10
    some = make_adata(n_cells=200)
    counts = sp.vstack([sp.csr_matrix((n_empty, 300), dtype=np.float32), some.X], format="csr")
    ad.AnnData(counts, var=some.var).write_h5ad(tmp_path / "a.h5ad")
    ingest(tmp_path / "a.h5ad", tmp_path / "a.zarr", max_memory_bytes=BIG)
    assert not pointer_chunk(tmp_path / "a.zarr", 0).exists()
    some.write_h5ad(tmp_path / "some.h5ad")
    hasher = fit(tmp_path / "some.h5ad", tmp_path / "hasher")
    run = encode(tmp_path / "a.zarr", tmp_path / "run", hasher=hasher)
    assert run is not None
    assert run.meta["n_empty_cells"] == n_empty
    ingest(tmp_path / "a.zarr", tmp_path / "b.zarr", max_memory_bytes=BIG)
    assert ad.read_zarr(tmp_path / "b.zarr").X.nnz == some.X.nnz


@pytest.mark.parametrize("name", ["a.h5ad", "a.zarr", "ingested.zarr"])
def test_an_atlas_without_any_count_is_not_called_damaged(tmp_path: Path, name: str) -> None:
    adata = without_counts(600, slice(None))
    adata.write_h5ad(tmp_path / "a.h5ad")
    write_zarr(adata, tmp_path / "a.zarr", 3, 100)
    ingest(tmp_path / "a.zarr", tmp_path / "ingested.zarr", max_memory_bytes=BIG)
    with pytest.raises(InputError, match=rf"{name}: every sampled cell has zero counts"):
        encode(tmp_path / name, tmp_path / "run")


def test_first_genes_of_no_cell_in_a_source_stored_by_genes(tmp_path: Path) -> None:
    adata = make_adata()
    counts = sp.lil_matrix(adata.X)
    counts[:, :70] = 0
    adata.X = sp.csc_matrix(counts)
    path = write_zarr(adata, tmp_path / "a.zarr", 3, 30)
    assert not pointer_chunk(path, 1).exists()
    ingest(path, tmp_path / "out.zarr", max_memory_bytes=BIG)
    assert np.array_equal(ad.read_zarr(tmp_path / "out.zarr").X.toarray(), counts.toarray())
    pointer_chunk(path, 2).unlink()
    with pytest.raises(InputError, match=r"X/indptr: 3 of 11 chunks are missing"):
        ingest(path, tmp_path / "other.zarr", max_memory_bytes=BIG)


@pytest.mark.parametrize("version", [2, 3])
@pytest.mark.parametrize("n_empty", [0, 150])
@pytest.mark.parametrize("lost", [(0,), (1,), (2,), (1, 2), (5,), (5, 6), (11,), (12,), (0, 1, 2, 3), range(13)])
def test_lost_chunks_of_pointers(tmp_path: Path, version: int, n_empty: int, lost: tuple[int, ...]) -> None:
    """The first or a later one; also of an atlas in which the very first is rightly not there."""
    path = write_zarr(without_counts(1200, slice(0, n_empty)), tmp_path / "a.zarr", version, 100)
    there = [pointer_chunk(path, i) for i in lost if pointer_chunk(path, i).exists()]
    for file in there:
        file.unlink()
    if not there:  # the one that is rightly not there
        assert open_atlas(path).n_cells == 1200
        return
    n_missing = len({*lost, *range(n_empty // 100)})
    # Neither may take what is left for cells without counts: not even the sample that a fit draws.
    for act in (
        lambda: open_atlas(path),
        lambda: fit(path, tmp_path / "hasher"),
        lambda: encode(path, tmp_path / "run"),
    ):
        with pytest.raises(InputError, match=rf"a.zarr/X/indptr: {n_missing} of 13 chunks are missing.*damaged"):
            act()
    with pytest.raises(InputError, match=r"a.zarr: X.*damaged"):
        ingest(path, tmp_path / "out.zarr", max_memory_bytes=BIG)
    assert [p.name for p in tmp_path.iterdir()] == ["a.zarr"]


@pytest.mark.parametrize("name", ["data", "indices"])
def test_lost_chunks_of_values(tmp_path: Path, name: str) -> None:
    path = write_zarr(without_counts(600, slice(0, 150)), tmp_path / "a.zarr", 3, 100)
    (path / "X" / name / "c" / "0").unlink()
    with pytest.raises(InputError, match=rf"X/{name}: 1 of 2 chunks are missing"):
        open_atlas(path)


# ------------------------------------------------------- a dense matrix


def dense_atlas(path: Path) -> tuple[Path, np.ndarray]:
    """A dense store whose second block of cells has no counts, so that its chunk is not stored."""
    counts = make_adata(n_cells=600).X.toarray()
    counts[200:400] = 0
    with ad.settings.override(zarr_write_format=3), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        names = pd.DataFrame(index=[f"G{j}" for j in range(300)])
        ad.AnnData(counts, var=names).write_zarr(path, chunks=(200, 300))
    assert (path / "X" / "c" / "0" / "0").exists()
    assert not (path / "X" / "c" / "1" / "0").exists()
    return path, counts


def test_a_dense_matrix_with_a_block_of_zeros_is_let_in_on_request(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, counts = dense_atlas(tmp_path / "a.zarr")
    both = rf"cells 200 to 400.*files of the store are lost: copy it again; or .* no counts there.*{VARIABLE}=zeros"
    for act in (lambda: open_atlas(path), lambda: ingest(path, tmp_path / "out.zarr", max_memory_bytes=BIG)):
        with pytest.raises(InputError, match=both):
            act()
    monkeypatch.setenv(VARIABLE, "zeros")
    assert np.array_equal(counts_of(path), counts)
    ingest(path, tmp_path / "out.zarr", max_memory_bytes=BIG)
    assert np.array_equal(ad.read_zarr(tmp_path / "out.zarr").X.toarray(), counts)
    run = encode(path, tmp_path / "run")
    assert run is not None
    assert run.meta["n_empty_cells"] == 200
    monkeypatch.setenv(VARIABLE, "yes")
    with pytest.raises(SettingsError, match=rf"{VARIABLE} is 'yes'; expected \"zeros\""):
        open_atlas(path)


def test_a_dense_matrix_without_any_chunk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, _ = dense_atlas(tmp_path / "a.zarr")
    for number in (0, 2):
        (path / "X" / "c" / str(number) / "0").unlink()
    with pytest.raises(InputError, match=rf"none of 3 chunks is there.*lost.*all zeros.*{VARIABLE}=zeros"):
        open_atlas(path)
    monkeypatch.setenv(VARIABLE, "zeros")
    with pytest.raises(InputError, match="every sampled cell has zero counts"):
        encode(path, tmp_path / "run")


def test_the_variable_lets_no_sparse_matrix_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_zarr(make_adata(), tmp_path / "a.zarr", 3, 100)
    monkeypatch.setenv(VARIABLE, "zeros")
    pointer_chunk(path, 3).unlink()
    with pytest.raises(InputError, match="X/indptr: 1 of 7 chunks are missing"):
        open_atlas(path)
    (path / "X" / "data" / "c" / "0").unlink()
    with pytest.raises(InputError, match="X/data: 1 of 2 chunks are missing"):
        open_atlas(path)


def test_links_are_what_they_lead_to(tmp_path: Path) -> None:
    """As of datalad and git-annex: a link whose file was not fetched is a lost chunk, one to another disk is none."""
    folder = tmp_path / "array"
    (tmp_path / "disk" / "0").mkdir(parents=True)
    (folder / "c").mkdir(parents=True)
    (tmp_path / "disk" / "0" / "7").write_text("")
    (folder / "zarr.json").write_text("")
    (folder / "c" / "0").symlink_to(tmp_path / "disk" / "0")
    (folder / "c" / "1").symlink_to(tmp_path / "not fetched")
    assert sorted(_files_below(folder)) == ["c/0/7", "zarr.json"]
    assert [*_files_below(tmp_path / "nothing")] == []
