"""What a stored matrix may say of its shape, and the types its arrays may have."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import anndata
import h5py
import numpy as np
import pytest
import zarr
from anndata.io import read_elem
from zarr.codecs import ZstdCodec

from hashstream.atlas import open_atlas
from hashstream.atlas.ingest import ingest
from hashstream.atlas.layout import stated_shape
from hashstream.errors import InputError
from hashstream.stages.encode import encode
from hashstream.stages.encode_plan import EncodeSettings
from tests import damage
from tests.synthetic import make_adata


@pytest.mark.parametrize("shape", [None, [3], [3, 4, 5], [3, -1], [3.5, 4], ["a", "b"], "34", [True, 4], 7])
def test_a_shape_that_is_none(shape: Any) -> None:
    with pytest.raises(InputError, match=r"atlas/X: .*expected two whole numbers"):
        stated_shape(shape, "atlas/X")


def test_a_shape() -> None:
    assert stated_shape(np.array([3, 4]), "X") == (3, 4)


def replaced(name: str, change: Callable[[Any], Any]) -> Callable[[h5py.File], None]:
    def edit(file: h5py.File) -> None:
        values = change(file[f"X/{name}"][:])
        del file[f"X/{name}"]
        file[f"X/{name}"] = values

    return edit


@pytest.mark.parametrize(
    ("name", "change", "words"),
    [
        ("indices", lambda v: v.astype(np.float64), "values of type float64; expected integers"),
        ("indptr", lambda v: v.astype("S8"), "expected integers"),
        ("data", lambda v: v.astype(np.complex64), "expected counts"),
        ("data", lambda v: v[:, None], "expected an array of one dimension"),
        ("indptr", lambda v: v[0], "expected an array of one dimension"),
    ],
)
def test_arrays_that_are_none(
    small_h5ad: Path, tmp_path: Path, name: str, change: Callable[[Any], Any], words: str
) -> None:
    path = damage.edit(small_h5ad, tmp_path / "odd.h5ad", replaced(name, change))
    with pytest.raises(InputError, match=rf"odd.h5ad.*X/{name}.*{words}"):
        open_atlas(path)
    with pytest.raises(InputError, match=rf"odd.h5ad: X/{name}.*{words}"):
        ingest(path, tmp_path / "atlas.zarr")


def test_indices_of_the_other_byte_order(small_h5ad: Path, small_adata: anndata.AnnData, tmp_path: Path) -> None:
    path = damage.edit(small_h5ad, tmp_path / "big.h5ad", replaced("indices", lambda v: v.astype(">i4")))
    ingest(path, tmp_path / "atlas.zarr")
    assert (anndata.read_zarr(tmp_path / "atlas.zarr").X != small_adata.X).nnz == 0


@pytest.mark.filterwarnings("ignore:Consolidated metadata")
@pytest.mark.parametrize("wrong", [-1, 300, 65_535, 65_536 + 5, 2**32 + 5])
def test_columns_that_are_none_are_no_others_in_two_bytes(
    small_adata: anndata.AnnData, tmp_path: Path, wrong: int
) -> None:
    counts = small_adata[100:].X.astype(np.int32)
    with anndata.settings.override(zarr_write_format=3, auto_shard_zarr_v3=True):
        anndata.AnnData(counts, var=small_adata.var).write_zarr(tmp_path / "a.zarr")
    root = zarr.open_group(tmp_path / "a.zarr", mode="r+", use_consolidated=False)
    indices = counts.indices.astype(np.int64)
    indices[int(counts.indptr[4])] = wrong
    del root["X/indices"]
    root["X"].create_array("indices", data=indices, chunks=(1000,), compressors=ZstdCodec())
    zarr.consolidate_metadata(tmp_path / "a.zarr")
    with pytest.raises(InputError, match=r"row 4 has a gene index outside the matrix"):
        encode(tmp_path / "a.zarr", tmp_path / "run", settings=EncodeSettings(min_overlap=0.0))


@pytest.mark.parametrize("file", ["X/zarr.json", "obs/zarr.json", "var/zarr.json"])
def test_metadata_that_make_no_sense(small_h5ad: Path, tmp_path: Path, file: str) -> None:
    ingest(small_h5ad, tmp_path / "atlas.zarr")
    (tmp_path / "atlas.zarr" / file).write_text("{")
    with pytest.raises(InputError, match=r"atlas.zarr: .*damaged"):
        open_atlas(tmp_path / "atlas.zarr")
    with pytest.raises(InputError, match=r"atlas.zarr.*damaged"):
        ingest(tmp_path / "atlas.zarr", tmp_path / "again.zarr")


def test_cells_of_another_number(small_h5ad: Path, tmp_path: Path) -> None:
    def fewer(file: h5py.File) -> None:
        kept = len(read_elem(file["obs/_index"])) - 1
        del file["obs/_index"]
        file["obs/_index"] = [f"c{i}" for i in range(kept)]

    path = damage.edit(small_h5ad, tmp_path / "fewer.h5ad", fewer)
    with pytest.raises(InputError, match=r"fewer.h5ad: obs lists 599 cells but X has 600 rows"):
        open_atlas(path)


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("name", ["obs/_index", "var/_index", "X/data"])
def test_an_array_that_states_more_chunks_than_memory_holds(name: str, tmp_path: Path) -> None:
    """Their names are not listed, nor is the array read; by `ingest` as by `open_atlas`."""
    path = tmp_path / "store.zarr"
    with anndata.settings.override(zarr_write_format=3, allow_write_nullable_strings=False):
        make_adata(n_cells=20, n_genes=30).write_zarr(path)
    root = json.loads((path / "zarr.json").read_text())
    del root["consolidated_metadata"]  # which would be read instead of what each array states
    (path / "zarr.json").write_text(json.dumps(root))
    metadata = path / name / "zarr.json"
    content = json.loads(metadata.read_text())
    content["shape"] = [2**40]
    content["chunk_grid"]["configuration"]["chunk_shape"] = [1]
    metadata.write_text(json.dumps(content))
    for read in (lambda: ingest([path], tmp_path / "atlas.zarr"), lambda: open_atlas(path).fingerprint()):
        # Newer zarr refuses so many in its own words.
        with pytest.raises(InputError, match=r"1,099,511,627,776|1099511627776|store.zarr: .*Chunk edge length 1"):
            read()
