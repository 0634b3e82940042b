"""Encode: the same bits whatever the settings, and a run that says what it is."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import anndata
import numpy as np
import pyarrow.parquet as pq
import pytest
import scipy.sparse as sp

from hashstream.buckets import BucketIndex
from hashstream.errors import InputError, SettingsError, TargetExistsError
from hashstream.hashing import Hasher, PcaItqSettings
from hashstream.kernels import reference
from hashstream.runtime.events import Silent
from hashstream.runtime.run import CODE_CHUNK_ROWS, Run
from hashstream.stages.encode import encode
from hashstream.stages.encode_plan import EncodeSettings
from hashstream.stages.fit import fit
from tests.stages.thin_atlas import write_thin_atlas


def content(run: Path) -> dict[str, bytes]:
    """Bytes of every file of a run but the records, which name the source and the time."""
    records = ("run.json", "hasher.json")
    return {str(p.relative_to(run)): p.read_bytes() for p in run.rglob("*") if p.is_file() and p.name not in records}


@pytest.fixture(scope="module")
def run(small_h5ad: Path, tmp_path_factory: pytest.TempPathFactory) -> Run:
    return encode(small_h5ad, tmp_path_factory.mktemp("run") / "run")


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("chunk_rows", [1, 7, 1000, 50_000])
def test_same_bytes_for_chunks_and_threads(
    run: Run, small_h5ad: Path, tmp_path: Path, threads: int, chunk_rows: int
) -> None:
    other = encode(small_h5ad, tmp_path / "run", settings=EncodeSettings(threads=threads, chunk_rows=chunk_rows))
    assert content(other.path) == content(run.path)


def test_same_bytes_where_a_shard_of_codes_has_several_chunks(tmp_path: Path) -> None:
    atlas = write_thin_atlas(tmp_path / "atlas.zarr", 4 * CODE_CHUNK_ROWS + 1000)
    hasher = fit(atlas, tmp_path / "hasher", sample_cells=2000)
    settings = EncodeSettings(max_buckets=1000)
    runs = [content(encode(atlas, tmp_path / f"{i}", hasher=hasher, settings=settings).path) for i in range(4)]
    assert all(run == runs[0] for run in runs)


def write(adata: anndata.AnnData, path: Path, form: str) -> Path:
    if form == "h5ad dense":
        adata = adata.copy()
        adata.X = adata.X.toarray()
    if form.startswith("h5ad"):
        adata.write_h5ad(path.with_suffix(".h5ad"), compression="gzip" if "gzip" in form else None)
        return path.with_suffix(".h5ad")
    anndata.settings.zarr_write_format = 2 if form == "zarr v2" else 3
    try:
        adata.write_zarr(path.with_suffix(".zarr"))
    finally:
        anndata.settings.reset("zarr_write_format")
    return path.with_suffix(".zarr")


@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning")
@pytest.mark.parametrize("form", ["h5ad gzip", "h5ad dense", "zarr v2", "zarr v3"])
def test_same_bytes_for_formats(run: Run, small_adata: anndata.AnnData, tmp_path: Path, form: str) -> None:
    source = write(small_adata, tmp_path / "atlas", form)
    assert content(encode(source, tmp_path / "run").path)["codes.zarr/c/0/0"] == content(run.path)["codes.zarr/c/0/0"]
    assert (
        content(encode(source, tmp_path / "run", force=True).path)["buckets.parquet"]
        == (run.path / "buckets.parquet").read_bytes()
    )


def test_same_bytes_for_genes_in_another_order(run: Run, small_adata: anndata.AnnData, tmp_path: Path) -> None:
    order = np.random.default_rng(1).permutation(small_adata.n_vars)
    shuffled = small_adata[:, order].copy()
    shuffled.X.sort_indices()
    shuffled.write_h5ad(tmp_path / "shuffled.h5ad")
    assert content(encode(tmp_path / "shuffled.h5ad", tmp_path / "run").path) == content(run.path)


def test_counts_in_a_layer_or_in_raw_are_found(run: Run, small_adata: anndata.AnnData, tmp_path: Path) -> None:
    logged = small_adata.copy()
    logged.layers["counts"] = small_adata.X.copy()
    logged.X = sp.csr_matrix(np.log1p(small_adata.X.toarray()))
    logged.write_h5ad(tmp_path / "layer.h5ad")
    with_raw = small_adata.copy()
    with_raw.raw = small_adata
    with_raw.X = logged.X
    with_raw.write_h5ad(tmp_path / "raw.h5ad")
    for name, where in (("layer", "layers/counts"), ("raw", "raw/X")):
        other = encode(tmp_path / f"{name}.h5ad", tmp_path / f"run-{name}")
        assert other.meta["input"]["matrix"] == [where]
        assert np.array_equal(other.codes(), run.codes())


def test_two_stores_are_one_atlas(small_adata: anndata.AnnData, run: Run, tmp_path: Path) -> None:
    small_adata[:250].write_h5ad(tmp_path / "a.h5ad")
    second = small_adata[250:, ::-1].copy()
    second.X.sort_indices()
    second.write_h5ad(tmp_path / "b.h5ad")
    sources = [tmp_path / "a.h5ad", tmp_path / "b.h5ad"]
    other = encode(sources, tmp_path / "run", hasher=run.hasher(), settings=EncodeSettings(chunk_rows=100))
    assert content(other.path) == content(run.path)


def test_codes_and_buckets_follow_their_definition(run: Run, small_adata: anndata.AnnData) -> None:
    hasher = run.hasher()
    bound = hasher.bind(small_adata.var, where="test")
    x = small_adata.X.tocsr()
    expected = reference.encode_rows(x.indptr.astype(np.int64), x.indices, x.data, bound.match.gene_map, bound.weights)
    assert np.array_equal(run.codes(), expected.codes)
    tokens = run.tokens()
    found, counts = np.unique(expected.codes, return_counts=True)
    assert np.array_equal(tokens.codes[:, 0], found)
    assert np.array_equal(tokens.counts, counts)
    rows = np.concatenate(list(run.cell_buckets()))
    assert np.array_equal(rows, BucketIndex(tokens).rows(run.codes()))
    half_of = np.array([reference.half_of(row) for row in range(run.n_cells)])
    assert np.array_equal(tokens.half_counts, np.bincount(rows[half_of == 0], minlength=tokens.n_tokens))
    for bucket in (0, len(found) // 2, int(np.argmax(counts))):
        mean = expected.embedding[rows == bucket].astype(np.float64).mean(axis=0)
        np.testing.assert_allclose(tokens.means[bucket], mean, atol=1e-5)
        for half in (0, 1):
            mine = (rows == bucket) & (half_of == half)
            if mine.any():
                mean = expected.embedding[mine].astype(np.float64).mean(axis=0)
            np.testing.assert_allclose(tokens.half_means[bucket, half], mean, atol=1e-5)
            mean = tokens.means[bucket]


def test_the_columns_of_buckets_fit_each_other(small_h5ad: Path, tmp_path: Path) -> None:
    run = encode(small_h5ad, tmp_path / "run", settings=EncodeSettings(max_buckets=40))
    table = pq.read_table(run.path / "buckets.parquet")
    matrix = {name: np.array(table[name].to_pylist()) for name in table.column_names}
    mean = matrix["embedding_sum"] / (matrix["count"][:, None] * 2.0**20)
    assert np.array_equal(matrix["embedding_mean"].astype(np.float32), mean.astype(np.float32))
    assert 200 < matrix["half_count"].sum() < 400
    assert (matrix["half_count"] <= matrix["count"]).all()
    empty = matrix["half_count"] == 0
    assert not matrix["half_sum"][empty].any()
    tokens, few = run.tokens(), run.tokens(halves=False)
    for name in ("codes", "counts", "means"):
        assert np.array_equal(getattr(few, name), getattr(tokens, name))
        assert getattr(few, name).dtype == getattr(tokens, name).dtype
    assert few.bucket_bits == tokens.bucket_bits
    assert few.half_counts is None
    assert few.half_means is None
    counts = np.stack([tokens.half_counts, tokens.counts - tokens.half_counts], axis=1)
    weighted = (tokens.half_means * counts[:, :, None]).sum(axis=1) / tokens.counts[:, None]
    np.testing.assert_allclose(weighted, tokens.means, atol=1e-5)


def test_a_run_of_another_format_version_is_refused(small_h5ad: Path, tmp_path: Path) -> None:
    run = encode(small_h5ad, tmp_path / "run", fit_settings=PcaItqSettings(n_bits=16))
    meta = json.loads((run.path / "run.json").read_text())
    (run.path / "run.json").write_text(json.dumps({**meta, "format_version": 1}))
    with pytest.raises(InputError, match=r"format version 1; this version of HashStream reads 4.*Encode again"):
        Run.open(run.path)


def test_the_embedding_is_the_principal_components(run: Run, small_adata: anndata.AnnData) -> None:
    hasher = run.hasher()
    x = small_adata.X.toarray()
    y = np.log1p(x * 1e4 / x.sum(axis=1, keepdims=True))[
        :, [list(small_adata.var_names).index(g) for g in hasher.gene_names]
    ]
    z = np.minimum((y - y.mean(axis=0)) / y.std(axis=0, ddof=1), 10)
    scores = np.linalg.svd(z - z.mean(axis=0), full_matrices=False)
    expected = np.abs(scores[0][:, :10] * scores[1][:10])
    bound = hasher.bind(small_adata.var, where="test")
    csr = small_adata.X.tocsr()
    got = reference.encode_rows(csr.indptr.astype(np.int64), csr.indices, csr.data, bound.match.gene_map, bound.weights)
    deviation = np.abs(got.embedding[:, :10]).std(axis=0) / expected.std(axis=0)
    np.testing.assert_allclose(np.abs(got.embedding[:, :10]), expected * deviation, atol=2e-2 * expected.max())


def test_few_buckets_shorten_the_prefix(small_h5ad: Path, run: Run, tmp_path: Path) -> None:
    few = encode(small_h5ad, tmp_path / "few", settings=EncodeSettings(max_buckets=40))
    assert few.n_buckets <= 40
    assert few.bucket_bits < run.bucket_bits
    one_longer = np.unique(run.codes()[:, 0] & np.uint64((1 << (few.bucket_bits + 1)) - 1))
    assert len(one_longer) > 40
    assert np.array_equal(few.codes(), run.codes())


def test_a_store_of_far_fewer_genes_is_said(run: Run, small_adata: anndata.AnnData, tmp_path: Path) -> None:
    class Notes(Silent):
        def __init__(self) -> None:
            self.notes: list[str] = []

        def note(self, message: str) -> None:
            self.notes.append(message)

    said = []
    for n_genes in (220, 280):
        small_adata[:, :n_genes].write_h5ad(tmp_path / "fewer.h5ad")
        notes = Notes()
        encode(tmp_path / "fewer.h5ad", tmp_path / f"{n_genes}", hasher=run.hasher(), progress=notes)
        said.append([note for note in notes.notes if "depend on which these are" in note])
    assert len(said[0]) == 1
    assert "220 genes, but the hasher was fitted where there were 300" in said[0][0]
    assert said[1] == []


def test_missing_genes_are_taken_as_average(run: Run, small_adata: anndata.AnnData, tmp_path: Path) -> None:
    hasher = run.hasher()
    dropped = set(hasher.gene_names[:30])
    kept = small_adata[:, [g not in dropped for g in small_adata.var_names]].copy()
    kept.write_h5ad(tmp_path / "fewer.h5ad")
    other = encode(tmp_path / "fewer.h5ad", tmp_path / "run", hasher=hasher)
    assert other.meta["input"]["gene_overlap"] == [round(1 - 30 / hasher.n_genes, 6)]
    agreement = np.mean(np.bitwise_count(other.codes() ^ run.codes())) / run.n_bits
    assert agreement < 0.2


def test_empty_cells_are_kept_and_counted(small_adata: anndata.AnnData, tmp_path: Path) -> None:
    counts = small_adata.X.tolil()
    counts[3] = 0
    counts[17] = 0
    anndata.AnnData(counts.tocsr(), obs=small_adata.obs, var=small_adata.var).write_h5ad(tmp_path / "empty.h5ad")
    run = encode(tmp_path / "empty.h5ad", tmp_path / "run")
    assert run.meta["n_empty_cells"] == 2
    assert run.n_cells == small_adata.n_obs
    assert np.array_equal(run.codes()[3], run.codes()[17])


def test_long_codes_use_more_words(small_h5ad: Path, tmp_path: Path) -> None:
    run = encode(small_h5ad, tmp_path / "run", fit_settings=PcaItqSettings(n_bits=100))
    assert run.codes().shape == (600, 2)
    assert int(run.codes()[:, 1].max()).bit_length() <= 36


def test_record(run: Run, small_h5ad: Path) -> None:
    meta = json.loads((run.path / "run.json").read_text())
    assert meta["input"]["paths"] == [str(small_h5ad)]
    assert meta["n_cells"] == 600
    assert meta["peak_rss_bytes"] > 1e7
    assert meta["hasher"]["fingerprint"] == Hasher.load(run.path / "hasher").fingerprint()
    assert not (run.path / "parts").exists()


def test_an_existing_run_is_kept_unless_forced(small_h5ad: Path, tmp_path: Path) -> None:
    encode(small_h5ad, tmp_path / "run")
    before = content(tmp_path / "run")
    with pytest.raises(TargetExistsError, match="--force"):
        encode(small_h5ad, tmp_path / "run")
    with pytest.raises(InputError):
        encode(tmp_path / "nothing.h5ad", tmp_path / "run", force=True)
    assert content(tmp_path / "run") == before
    encode(small_h5ad, tmp_path / "run", force=True, fit_settings=PcaItqSettings(n_bits=16))
    assert Run.open(tmp_path / "run").n_bits == 16


def test_settings_that_cannot_be_met() -> None:
    with pytest.raises(SettingsError, match="max_buckets"):
        EncodeSettings(max_buckets=0)
    with pytest.raises(SettingsError, match="multiple"):
        EncodeSettings(partition_rows=1000)


@pytest.mark.real_data
def test_same_bytes_on_real_data(real_data: Callable[[str], Path], tmp_path: Path) -> None:
    from hashstream.stages.ingest import ingest

    source = real_data("kang_pbmc_ifnb_14k_hvg1000.h5ad")
    first = encode(source, tmp_path / "first", settings=EncodeSettings(threads=1, chunk_rows=1_000))
    assert first is not None
    second = encode(source, tmp_path / "second", settings=EncodeSettings(threads=2, chunk_rows=50_000))
    assert second is not None
    assert content(second.path) == content(first.path)
    ingest([source], tmp_path / "kang.zarr")
    third = encode(tmp_path / "kang.zarr", tmp_path / "third")
    assert third is not None
    assert content(third.path) == content(first.path)


def test_a_single_bucket_is_refused() -> None:
    with pytest.raises(SettingsError, match="2 or more"):
        EncodeSettings(max_buckets=1)


@pytest.mark.parametrize("counts", [np.ones((1, 5)), np.full((6, 4), 3.0)], ids=["one cell", "all equal"])
def test_cells_that_nothing_can_be_learned_from(tmp_path: Path, counts: np.ndarray) -> None:
    anndata.AnnData(sp.csr_matrix(counts.astype(np.float32))).write_h5ad(tmp_path / "few.h5ad")
    with pytest.raises(SettingsError, match="no code can be learned"):
        encode(tmp_path / "few.h5ad", tmp_path / "run", fit_settings=PcaItqSettings(n_bits=1))
