"""Opening and streaming: lazily, in any chunking, with both zarr pipelines."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import anndata
import numpy as np
import pytest
import scipy.sparse as sp

from hashstream.atlas import Atlas, open_atlas, plan_ranges, stream_chunks
from hashstream.atlas.stream import CHUNK_THREADS
from hashstream.errors import InputError
from hashstream.runtime.pipeline import PIPELINE_VARIABLE, use_fastest_pipeline
from hashstream.stages.encode import encode
from hashstream.stages.fit import fit
from tests.stages.thin_atlas import write_thin_atlas


@pytest.fixture(params=["zarrs", "zarr"])
def pipeline(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    import zarr

    if request.param == "zarrs":
        pytest.importorskip("zarrs")
    monkeypatch.setenv(PIPELINE_VARIABLE, request.param)
    use_fastest_pipeline.cache_clear()
    with zarr.config.set({"codec_pipeline.path": "zarr.core.codec_pipeline.BatchedCodecPipeline"}):
        assert use_fastest_pipeline() == request.param
        yield request.param
    use_fastest_pipeline.cache_clear()


def stores(adata: anndata.AnnData, folder: Path) -> dict[str, Path]:
    """The same counts in every layout that can be streamed."""
    paths = {"h5ad": folder / "a.h5ad", "dense": folder / "d.h5ad", "v2": folder / "v2.zarr", "v3": folder / "v3.zarr"}
    adata.write_h5ad(paths["h5ad"], compression="gzip")
    dense = adata.copy()
    dense.X = dense.X.toarray()
    dense.write_h5ad(paths["dense"])
    for version in (2, 3):
        with anndata.settings.override(zarr_write_format=version):
            adata.write_zarr(paths[f"v{version}"], chunks=(100, 100))
    return paths


def streamed(atlas: Atlas, chunk_rows: int, **where: int) -> sp.csr_matrix:
    ranges = plan_ranges(atlas, chunk_rows=chunk_rows, **where)
    # The arrays of a chunk are used again for the next one.
    chunks = [replace(c, indices=c.indices.copy(), data=c.data.copy()) for _, c in stream_chunks(atlas, ranges)]
    assert all(c.n_rows <= chunk_rows for c in chunks)
    shape = (sum(c.n_rows for c in chunks), chunks[0].n_genes)
    data = np.concatenate([c.data for c in chunks])
    indices = np.concatenate([c.indices for c in chunks]).astype(np.int64)
    lengths = np.concatenate([np.diff(c.indptr) for c in chunks])
    return sp.csr_matrix((data, indices, np.concatenate([[0], np.cumsum(lengths)])), shape=shape)


@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning")
@pytest.mark.parametrize("chunk_rows", [1, 37, 64, 10_000])
def test_streams_what_anndata_reads(
    small_adata: anndata.AnnData, tmp_path: Path, chunk_rows: int, pipeline: str
) -> None:
    del pipeline
    part = small_adata[:200].copy()
    for name, path in stores(part, tmp_path).items():
        atlas = open_atlas(path)
        assert (streamed(atlas, chunk_rows) != part.X).nnz == 0, name
        assert (streamed(atlas, chunk_rows, start=13, stop=150) != part.X[13:150]).nnz == 0, name
        store = atlas.stores[0]
        assert store.obs_columns() == ["cell_type", "batch"]
        assert store.obs_column("batch").tolist() == part.obs["batch"].tolist()
        assert list(store.gene_names) == list(part.var_names)
        assert list(store.obs_names()) == list(part.obs_names)


@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning")
def test_names_of_cells_come_in_blocks(
    small_adata: anndata.AnnData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("hashstream.atlas.obs._NAMES_AT_ONCE", 64)
    part = small_adata[:200].copy()
    part.obs.index.name = "barcode"
    part.write_h5ad(tmp_path / "plain.h5ad")
    assert [len(b) for b in open_atlas(tmp_path / "plain.h5ad").stores[0].iter_obs_names()] == [64, 64, 64, 8]
    part.write_zarr(tmp_path / "plain.zarr")  # has one chunk, which is decoded once
    assert [len(b) for b in open_atlas(tmp_path / "plain.zarr").stores[0].iter_obs_names()] == [200]
    for name, path in stores(part, tmp_path).items():
        blocks = list(open_atlas(path).stores[0].iter_obs_names())
        assert np.concatenate(blocks).tolist() == list(part.obs_names), name


def test_an_error_of_planning_comes_after_the_chunks_before_it_and_stops_the_threads(small_h5ad: Path) -> None:
    atlas = open_atlas(small_h5ad)

    def ranges() -> Iterator:
        yield from list(plan_ranges(atlas, chunk_rows=50))[:3]
        raise InputError("here")

    seen = 0
    stream = stream_chunks(atlas, ranges())
    with pytest.raises(InputError, match="here"):  # noqa: PT012 - the loop is what is tested
        for _ in stream:
            seen += 1
    assert seen == 3
    assert not [t for t in threading.enumerate() if t.name.startswith(CHUNK_THREADS)]


def test_leaving_early_stops_the_threads(small_h5ad: Path) -> None:
    atlas = open_atlas(small_h5ad)
    stream = stream_chunks(atlas, plan_ranges(atlas, chunk_rows=1), n_threads=1)
    next(stream)
    stream.close()
    assert not [t for t in threading.enumerate() if t.name.startswith(CHUNK_THREADS)]


@pytest.mark.parametrize("array", ["indices", "data"])
@pytest.mark.parametrize("n_threads", [1, 2, 4])
def test_a_damaged_chunk_ends_the_stream(tmp_path: Path, array: str, n_threads: int) -> None:
    path = write_thin_atlas(tmp_path / "atlas.zarr", 20_000)
    atlas = open_atlas(path)  # which looks at some rows
    shard = path / "X" / array / "c" / "0"
    raw = bytearray(shard.read_bytes())
    raw[len(raw) // 2] ^= 1
    shard.write_bytes(raw)
    # Cuts within stored chunks: every chunk waits for what the one before it leaves.
    stream = stream_chunks(atlas, plan_ranges(atlas, chunk_rows=700), n_threads=n_threads)
    ends = []
    with pytest.raises(InputError, match=r"atlas.zarr.*rows \d+ to \d+ cannot be read"):  # noqa: PT012 - the loop
        for rows, _ in stream:
            ends.append(rows.stop)
    assert 0 < len(ends) < 28
    assert not [t for t in threading.enumerate() if t.name.startswith(CHUNK_THREADS)]


def test_fingerprint_notices_a_changed_value(small_adata: anndata.AnnData, tmp_path: Path) -> None:
    small_adata.write_h5ad(tmp_path / "a.h5ad")
    changed = small_adata.copy()
    changed.X.data[0] += 1
    changed.write_h5ad(tmp_path / "b.h5ad")
    a, b = (open_atlas(tmp_path / f"{n}.h5ad").fingerprint() for n in "ab")
    assert a == open_atlas(tmp_path / "a.h5ad").fingerprint()
    assert a != b


def test_several_stores_follow_each_other(small_adata: anndata.AnnData, tmp_path: Path) -> None:
    small_adata[:100].write_h5ad(tmp_path / "a.h5ad")
    small_adata[100:].write_h5ad(tmp_path / "b.h5ad")
    atlas = open_atlas([tmp_path / "a.h5ad", tmp_path / "b.h5ad"])
    assert atlas.n_cells == 600
    assert atlas.obs_column("cell_type").tolist() == small_adata.obs["cell_type"].tolist()
    assert (streamed(atlas, 64) != small_adata.X).nnz == 0
    ranges = list(plan_ranges(atlas, chunk_rows=64))
    assert [r.stop for r in ranges if r.store == 0][-1] == 100
    with pytest.raises(InputError, match="no column 'nothing'"):
        atlas.obs_column("nothing")


def test_a_store_that_is_given_twice_is_refused(
    small_h5ad: Path, small_adata: anndata.AnnData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However it is called: its cells would count twice."""
    small_adata.write_h5ad(tmp_path / "a.h5ad")
    (tmp_path / "link.h5ad").symlink_to(tmp_path / "a.h5ad")
    monkeypatch.chdir(tmp_path)
    for again in (tmp_path / "a.h5ad", "a.h5ad", "link.h5ad", str(tmp_path / "b" / ".." / "a.h5ad")):
        with pytest.raises(InputError, match=r"(a|link)\.h5ad: given twice.*name each store once"):
            open_atlas([tmp_path / "a.h5ad", small_h5ad, again])
    with pytest.raises(InputError, match=r"s3://cells/a\.zarr: given twice, so that"):
        open_atlas(["s3://cells/a.zarr", "s3://cells/a.zarr/"])
    with pytest.raises(InputError, match="given twice"):
        fit([small_h5ad, small_h5ad], tmp_path / "hasher")
    with pytest.raises(InputError, match="given twice"):
        encode([small_h5ad, small_h5ad], tmp_path / "run")
    assert open_atlas([tmp_path / "a.h5ad", small_h5ad]).n_cells == 1200


def test_a_layer_can_be_named(small_adata: anndata.AnnData, tmp_path: Path) -> None:
    two = small_adata.copy()
    two.layers["other"] = two.X * 2
    two.write_h5ad(tmp_path / "a.h5ad")
    assert (streamed(open_atlas(tmp_path / "a.h5ad", layer="other"), 100) != two.layers["other"]).nnz == 0
    with pytest.raises(InputError, match=r"no matrix at layers/absent; the store has X, layers/other"):
        open_atlas(tmp_path / "a.h5ad", layer="absent")


@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning")
@pytest.mark.parametrize("chunk_bytes", [1, 5_000, 60_000, 10**9])
def test_chunks_keep_to_their_bytes(small_adata: anndata.AnnData, tmp_path: Path, chunk_bytes: int) -> None:
    for name, path in stores(small_adata, tmp_path).items():
        atlas = open_atlas(path)
        ranges = list(plan_ranges(atlas, chunk_bytes=chunk_bytes, start=5, stop=590))
        assert [r.start for r in ranges] == [5, *(r.stop for r in ranges[:-1])], name
        assert ranges[-1].stop == 590
        if name == "dense":
            continue
        for r in ranges:
            chunk = atlas.stores[0].matrix.read_rows(r.start, r.stop)
            assert r.stop - r.start == 1 or chunk.indices.nbytes + chunk.data.nbytes <= chunk_bytes
