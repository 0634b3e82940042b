"""The canonical atlas: what is written is what anndata reads, and a kill changes nothing."""

from __future__ import annotations

import hashlib
import json
import os
import random
import signal
import subprocess
import sys
import time
from itertools import pairwise
from pathlib import Path

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
import zarr
from hypothesis import given, settings
from hypothesis import strategies as st

import hashstream.atlas._csr_files as csr_files
from hashstream.atlas._shards import crc32c
from hashstream.atlas.chunk import CsrChunk
from hashstream.atlas.write import AtlasWriter
from hashstream.errors import HashStreamError, InputError, SettingsError, TargetExistsError
from hashstream.runtime.files import partial_path


def counts(n_cells: int, n_genes: int, high: int = 200, seed: int = 0, density: float = 0.2) -> sp.csr_matrix:
    rng = np.random.default_rng(seed)
    x = sp.csr_matrix(rng.random((n_cells, n_genes)) < density, dtype=np.float64)
    x.data = rng.integers(1, high + 1, x.nnz)
    x.sort_indices()
    return x


def chunks(x: sp.csr_matrix, rows: int, start: int = 0) -> list[CsrChunk]:
    out = []
    for a in range(start, x.shape[0], rows):
        part = x[a : a + rows]
        out.append(CsrChunk(a, part.indptr.astype(np.int64), part.indices, part.data, x.shape[1]))
    return out


def var(n_genes: int) -> pd.DataFrame:
    return pd.DataFrame(index=[f"g{i}" for i in range(n_genes)])


def write(path: Path, x: sp.csr_matrix, rows: int = 37, obs: object = None, **options: object) -> Path:
    with AtlasWriter(path, n_genes=x.shape[1], **options) as writer:
        for chunk in chunks(x, rows):
            writer.append(chunk)
        return writer.finish(obs=obs, var=var(x.shape[1]))


def digest(folder: Path) -> dict[str, str]:
    files = sorted(p for p in folder.rglob("*") if p.is_file())
    return {str(p.relative_to(folder)): hashlib.sha256(p.read_bytes()).hexdigest() for p in files}


def same(a: sp.csr_matrix, b: sp.csr_matrix) -> bool:
    return a.shape == b.shape and all(
        np.array_equal(getattr(a, name), getattr(b, name)) for name in ("indptr", "indices", "data")
    )


@pytest.fixture(params=["zarr-python", "zarrs"])
def pipeline(request: pytest.FixtureRequest):
    if request.param == "zarrs":
        pytest.importorskip("zarrs")
        with zarr.config.set({"codec_pipeline.path": "zarrs.ZarrsCodecPipeline"}):
            yield request.param
    else:
        yield request.param


@pytest.mark.parametrize("rows", [1, 7, 500])
def test_anndata_reads_what_was_written(tmp_path: Path, pipeline: str, rows: int) -> None:
    x = counts(500, 300)
    obs = pd.DataFrame(
        {
            "type": pd.Categorical(np.where(np.arange(500) % 3 == 0, "b", "a"), categories=["b", "a", "unused"]),
            "n": np.arange(500, dtype=np.int32),
            "score": np.linspace(0, 1, 500),
            "flag": np.arange(500) % 2 == 0,
            "name": [f"n{i}" for i in range(500)],
            "maybe": pd.array([1, None] * 250, dtype="Int64"),
        },
        index=[f"cell{i}" for i in range(500)],
    )
    path = write(tmp_path / "a.zarr", x, rows, obs, chunk_rows=64)
    got = ad.read_zarr(path)
    assert same(got.X, x)
    pd.testing.assert_frame_equal(got.obs, obs)
    assert list(got.var_names) == [f"g{i}" for i in range(300)]
    assert got.X.indices.dtype == got.X.indptr.dtype == np.int32
    assert np.array_equal((got.X @ np.ones(300)), x @ np.ones(300))
    assert np.array_equal(got[:, [5, 2]].X.toarray(), x[:, [5, 2]].toarray())


@pytest.mark.parametrize("most", [2**31 - 1, 60_000, 10])
def test_slices_of_what_anndata_reads_are_right(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, most: int) -> None:
    """SciPy counts in the type of the indices, and has some functions only for row pointers of the same type."""
    monkeypatch.setattr("hashstream.atlas._csr_files.MOST_INT32", most)
    x = counts(2000, 500)  # 200,000 values
    got = ad.read_zarr(write(tmp_path / "a.zarr", x, 300, chunk_rows=10, shard_chunks=3))
    assert got.X.indices.dtype == got.X.indptr.dtype == (np.int32 if most > x.nnz else np.int64)
    genes = list(range(499, -1, -2))
    assert np.array_equal(got[:1500, genes].X.toarray(), x[:1500, genes].toarray())
    assert np.array_equal(got[::2].copy().X.toarray(), x[::2].toarray())
    got.X.eliminate_zeros()
    assert same(got.X, x)
    assert sorted(p.name for p in (tmp_path / "a.zarr" / "X").iterdir()) == ["data", "indices", "indptr", "zarr.json"]
    whole = write(tmp_path / "b.zarr", x, 2000, chunk_rows=10, shard_chunks=3)
    assert digest(whole) == digest(tmp_path / "a.zarr")


def test_several_chunks_and_shards(tmp_path: Path, pipeline: str) -> None:
    x = counts(2000, 300)  # 120,000 values in chunks of 16,384
    path = write(tmp_path / "a.zarr", x, 333, chunk_rows=10, shard_chunks=3)
    array = zarr.open_group(path, mode="r")["X/indices"]
    assert array.chunks == (2**14,)
    assert array.shards == (3 * 2**14,)
    assert array.dtype == np.int32
    assert len(list((path / "X" / "indices" / "c").iterdir())) == 3
    assert np.array_equal(array[20_000:90_000], x.indices[20_000:90_000])
    assert same(ad.read_zarr(path).X, x)


def test_chunks_hold_about_the_asked_rows(tmp_path: Path) -> None:
    x = counts(3000, 200, density=0.3)  # 60 values a row
    path = write(tmp_path / "a.zarr", x, 100, chunk_rows=1024)
    assert zarr.open_group(path, mode="r")["X/data"].chunks == (2**16,)


@settings(max_examples=12, deadline=None)
@given(cuts=st.lists(st.integers(0, 600), max_size=8), chunk_rows=st.sampled_from([1, 50, 1024]))
def test_bytes_do_not_depend_on_the_blocks(
    cuts: list[int], chunk_rows: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    x = counts(600, 120, high=300)
    folder = tmp_path_factory.mktemp("w")
    one = write(folder / "one.zarr", x, 600, chunk_rows=chunk_rows)
    bounds = [0, *sorted(cuts), 600]
    with AtlasWriter(folder / "many.zarr", n_genes=120, chunk_rows=chunk_rows, threads=1) as writer:
        for a, b in pairwise(bounds):
            part = x[a:b]
            writer.append(CsrChunk(a, part.indptr.astype(np.int64), part.indices, part.data, 120))
        many = writer.finish(var=var(120))
    assert digest(one) == digest(many)


@pytest.mark.parametrize(
    ("high", "dtype"), [(255, "uint8"), (256, "uint16"), (65_535, "uint16"), (65_536, "uint32"), (2**32 - 1, "uint32")]
)
def test_values_take_the_narrowest_dtype(tmp_path: Path, high: int, dtype: str) -> None:
    x = counts(1500, 100, high=100, density=0.5)  # 75,000 values: four chunks are out before the last
    x.data[-1] = high
    path = write(tmp_path / "a.zarr", x, 100, chunk_rows=10, shard_chunks=2)
    got = ad.read_zarr(path).X
    assert got.data.dtype == dtype
    assert same(got, x)
    assert sorted(p.name for p in (path / "X").iterdir()) == ["data", "indices", "indptr", "zarr.json"]
    known = write(tmp_path / "b.zarr", x, 100, chunk_rows=10, shard_chunks=2, data_dtype=dtype)
    assert digest(path) == digest(known)


def test_fractions_become_float32_and_whole_floats_counts(tmp_path: Path) -> None:
    x = counts(1500, 100, high=100, density=0.5).astype(np.float64)
    assert ad.read_zarr(write(tmp_path / "a.zarr", x)).X.data.dtype == np.uint8
    x.data[-1] = 0.5
    got = ad.read_zarr(write(tmp_path / "b.zarr", x)).X
    assert got.data.dtype == np.float32
    assert same(got, x)


@pytest.mark.parametrize("order", [1, -1])
def test_what_no_dtype_holds_is_refused(tmp_path: Path, order: int) -> None:
    """2^24 + 1 is no float32, and a half no integer; which comes first does not matter."""
    large, half = (sp.csr_matrix(np.array([[3, value]])) for value in (2**24 + 1, 0.5))
    with pytest.raises(InputError, match="no dtype of an atlas holds both"):
        write(tmp_path / "a.zarr", sp.vstack([large, half][::order]).tocsr(), 1)
    exact = sp.csr_matrix(np.array([[3.0, 2**20], [1.0, 0.5]]))
    assert same(ad.read_zarr(write(tmp_path / "b.zarr", exact[::-1].tocsr(), 1)).X, exact[::-1].tocsr())


@pytest.mark.parametrize("dtype", [np.float64, np.int64])
def test_counts_beyond_every_dtype(tmp_path: Path, dtype: type) -> None:
    with pytest.raises(InputError, match=r"expected counts below 2\^32"):
        write(tmp_path / "a.zarr", sp.csr_matrix(np.array([[3, 2**32 + 10]], dtype=dtype)))


def test_many_genes_take_signed_indices(tmp_path: Path) -> None:
    x = sp.csr_matrix((np.array([1, 2]), np.array([3, 69_999]), np.array([0, 1, 2])), shape=(2, 70_000))
    got = ad.read_zarr(write(tmp_path / "a.zarr", x)).X
    assert got.indices.dtype == np.int32
    assert same(got, x)


def test_no_rows(tmp_path: Path) -> None:
    got = ad.read_zarr(write(tmp_path / "a.zarr", sp.csr_matrix((0, 5))))
    assert got.shape == (0, 5)


def test_names_are_made_for_a_mapping_of_columns(tmp_path: Path) -> None:
    x = counts(20, 10)
    got = ad.read_zarr(write(tmp_path / "a.zarr", x, obs={"t": pd.Categorical(["u", "v"] * 10), "n": np.arange(20)}))
    assert list(got.obs_names) == [str(i) for i in range(20)]
    assert list(got.obs["t"][:2]) == ["u", "v"]


def test_obs_in_blocks_unites_categories(tmp_path: Path) -> None:
    x = counts(30, 10)
    with AtlasWriter(tmp_path / "a.zarr", n_genes=10) as writer:
        for chunk, kind in zip(chunks(x, 10), ["u", "v", "u"], strict=True):
            obs = pd.DataFrame(
                {"t": pd.Categorical([kind] * 10)}, index=[f"{kind}{i + chunk.start}" for i in range(10)]
            )
            writer.append(chunk, obs)
        writer.finish(var=var(10), uns={"a": {"b": 3}})
    got = ad.read_zarr(tmp_path / "a.zarr")
    assert list(got.obs["t"].cat.categories) == ["u", "v"]
    assert got.obs_names[15] == "v15"
    assert got.uns["a"]["b"] == 3


def test_target_is_replaced_only_when_asked(tmp_path: Path) -> None:
    x = counts(20, 10)
    path = write(tmp_path / "a.zarr", x)
    with pytest.raises(TargetExistsError, match="already there"):
        write(path, x)
    write(path, x[:5], overwrite=True)
    assert ad.read_zarr(path).n_obs == 5
    assert [p.name for p in tmp_path.iterdir()] == ["a.zarr"]
    other = tmp_path / "notes"
    other.mkdir()
    (other / "todo.txt").write_text("")
    with pytest.raises(TargetExistsError, match="is no zarr store"):
        write(other, x, overwrite=True)


def test_nothing_is_at_the_target_before_the_end(tmp_path: Path) -> None:
    x = counts(20, 10)
    with AtlasWriter(tmp_path / "a.zarr", n_genes=10) as writer:
        writer.append(chunks(x, 20)[0])
    assert not (tmp_path / "a.zarr").exists()
    writer.discard()
    assert list(tmp_path.iterdir()) == []


def test_bad_blocks(tmp_path: Path) -> None:
    def block(indptr: list[int], indices: list[int], data: list[float], start: int = 0, genes: int = 5) -> CsrChunk:
        return CsrChunk(start, np.array(indptr, np.int64), np.array(indices, np.int64), np.array(data), genes)

    with AtlasWriter(tmp_path / "a.zarr", n_genes=5) as writer:
        for bad, kind, words in [
            (block([0, 1], [5], [1]), InputError, "column indices from 5 to 5"),
            (block([0, 1], [-1], [1]), InputError, "column indices from -1"),
            (block([0, 2], [1], [1]), InputError, "row pointers"),
            (block([0, 2, 1], [1, 2], [1, 1]), InputError, "row pointers"),
            (block([0, 1], [1], [1], genes=6), InputError, "6 genes, expected 5"),
            (block([0, 1], [1], [1], start=3), SettingsError, "expected row 0 next, not 3"),
        ]:
            with pytest.raises(kind, match=words):
                writer.append(bad)
    with AtlasWriter(tmp_path / "b.zarr", n_genes=5, chunk_rows=1) as writer:
        for value, words in [(np.nan, "not finite"), (np.inf, "not finite")]:
            with pytest.raises(InputError, match=words):
                writer.append(block([0, 1], [1], [value]))
            writer.discard()
            writer = AtlasWriter(tmp_path / "b.zarr", n_genes=5, chunk_rows=1)
        writer.discard()


def test_tables_of_the_wrong_length(tmp_path: Path) -> None:
    with pytest.raises(HashStreamError, match=r"obs \(n\) has 3 rows, expected 20"):
        write(tmp_path / "a.zarr", counts(20, 10), obs={"n": np.arange(3)})


def test_resume_refuses_other_settings(tmp_path: Path) -> None:
    x = counts(2000, 100)
    path = tmp_path / "a.zarr"
    with AtlasWriter(path, n_genes=100, chunk_rows=1, checkpoint_elements=1, fingerprint="a") as writer:
        writer.append(chunks(x, 2000)[0])
    with pytest.raises(SettingsError, match="fingerprint differ"):
        AtlasWriter(path, n_genes=100, chunk_rows=1, resume=True, fingerprint="b")
    (partial_path(path) / "state.json").write_text("{")
    with pytest.raises(InputError, match="cannot be read"):
        AtlasWriter(path, n_genes=100, chunk_rows=1, resume=True, fingerprint="a")


@settings(max_examples=8, deadline=None)
@given(
    stops=st.lists(st.integers(1, 1999), max_size=3),
    rows=st.integers(20, 400),
    most=st.sampled_from([csr_files.MOST_INT32, 25_000]),
)
def test_stopped_and_resumed_gives_the_same_bytes(
    stops: list[int], rows: int, most: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    x = counts(2000, 100, high=300)
    x.data[: x.nnz // 2] = 1  # the dtype widens half way
    x.data[x.indptr[1000] : x.indptr[1200]] = 0
    x.eliminate_zeros()
    folder = tmp_path_factory.mktemp("r")
    options = {"n_genes": 100, "chunk_rows": 10, "shard_chunks": 2}

    def obs_of(chunk: CsrChunk) -> pd.DataFrame:
        names = [f"c{i}" for i in range(chunk.start, chunk.stop)]
        return pd.DataFrame({"t": pd.Categorical([f"t{i // 700}" for i in range(chunk.start, chunk.stop)])}, names)

    def run(path: Path, stop: int | None, resume: bool) -> None:
        with AtlasWriter(path, resume=resume, checkpoint_elements=1, **options) as writer:
            for chunk in chunks(x, rows, writer.rows_done):
                writer.append(chunk, obs_of(chunk))
                if stop is not None and chunk.stop >= stop:
                    return
            writer.finish(var=var(100))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(csr_files, "MOST_INT32", most)  # indices widen after a good half, or never
        run(folder / "whole.zarr", None, False)
        for stop in sorted(stops):
            run(folder / "parts.zarr", stop, True)
        run(folder / "parts.zarr", None, True)
    assert digest(folder / "whole.zarr") == digest(folder / "parts.zarr")
    assert same(ad.read_zarr(folder / "parts.zarr").X, x)


SCRIPT = """
import sys
import numpy as np, pandas as pd
from hashstream.atlas.chunk import CsrChunk
from hashstream.atlas import _csr_files
from hashstream.atlas.write import AtlasWriter
_csr_files.MOST_INT32 = 60_000
n, genes = 3000, 100
with AtlasWriter(sys.argv[1], n_genes=genes, chunk_rows=10, shard_chunks=3, resume=True,
                 checkpoint_elements=10_000) as w:
    print(w.rows_done, flush=True)
    for a in range(w.rows_done, n, 1):
        rng = np.random.default_rng(a)
        k = int(rng.integers(0, 60))
        idx = np.sort(rng.choice(genes, k, replace=False))
        data = rng.integers(1, 100 if a < 1500 else 1000, k)
        w.append(CsrChunk(a, np.array([0, k]), idx, data, genes))
    w.finish(obs={"n": np.arange(n)}, var=pd.DataFrame(index=[str(i) for i in range(genes)]))
"""


def test_killed_and_resumed_gives_the_same_bytes(tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)
    subprocess.run([sys.executable, script, tmp_path / "whole.zarr"], check=True, stdout=subprocess.PIPE)
    rng = random.Random(os.getpid())
    resumed_at = []
    for kill in [True, True, False]:
        if (tmp_path / "parts.zarr").exists():
            break
        with subprocess.Popen([sys.executable, script, tmp_path / "parts.zarr"], stdout=subprocess.PIPE) as process:
            assert process.stdout is not None
            resumed_at.append(int(process.stdout.readline()))
            if kill:
                time.sleep(rng.uniform(0, 0.3))
                process.send_signal(signal.SIGKILL)
    assert resumed_at == sorted(resumed_at)
    assert digest(tmp_path / "whole.zarr") == digest(tmp_path / "parts.zarr")


def test_a_killed_finish_can_be_resumed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    x = counts(2000, 100, high=300)
    write(tmp_path / "whole.zarr", x, chunk_rows=10, checkpoint_elements=1)
    with monkeypatch.context() as patch:
        patch.setattr(AtlasWriter, "_put_in_place", lambda self: 1 / 0)
        patch.setattr(Path, "unlink", lambda self, missing_ok=False: 1 / 0)  # dies with the state still there
        with pytest.raises(ZeroDivisionError):
            write(tmp_path / "parts.zarr", x, chunk_rows=10, checkpoint_elements=1)
    with AtlasWriter(tmp_path / "parts.zarr", n_genes=100, chunk_rows=10, checkpoint_elements=1, resume=True) as writer:
        assert writer.rows_done > 1000
        for chunk in chunks(x, 100, writer.rows_done):
            writer.append(chunk)
        writer.finish(var=var(100))
    assert digest(tmp_path / "whole.zarr") == digest(tmp_path / "parts.zarr")


def test_what_a_killed_write_kept_is_checked(tmp_path: Path) -> None:
    x = counts(2000, 100, high=300)
    options = {"n_genes": 100, "chunk_rows": 10, "checkpoint_elements": 1}
    with AtlasWriter(tmp_path / "a.zarr", **options) as writer:  # which is not finished
        for chunk in chunks(x[:1000], 100, 0):
            writer.append(chunk)
    folder = partial_path(tmp_path / "a.zarr")
    state = json.loads((folder / "state.json").read_text())

    def refused(name: str, content: bytes, words: str) -> None:
        whole = (folder / name).read_bytes()
        (folder / name).write_bytes(content)
        with pytest.raises(InputError, match=f"{name}.*{words}.*without --resume"):
            AtlasWriter(tmp_path / "a.zarr", resume=True, **options)
        (folder / name).write_bytes(whole)

    for part in ("data", "indices"):
        name = f"X/{state[part]['folder']}/c/{state[part]['shard']}"
        size = sum(state[part]["index"][-1])
        shard = bytearray((folder / name).read_bytes())
        assert len(shard) >= size > 100
        refused(name, bytes(shard[: size - 1]), "damaged .ends after")
        for at in (0, size // 2, size - 1):
            flipped = bytearray(shard)
            flipped[at] ^= 8
            refused(name, bytes(flipped), "damaged")
    pointers = (folder / "indptr.spill").read_bytes()
    refused("indptr.spill", pointers[: 8 * state["rows_done"]], "damaged")
    refused("indptr.spill", pointers[:800] + b"\0" + pointers[801:], "damaged")
    for key in ("data", "rows_done", "pointers_crc32", "chunk_elements", "settings"):
        refused("state.json", json.dumps({name: value for name, value in state.items() if name != key}).encode(), "")
    refused("state.json", json.dumps({**state, "data": {**state["data"], "index": [3]}}).encode(), "")
    refused("state.json", b"[]", "")
    with AtlasWriter(tmp_path / "a.zarr", resume=True, **options) as writer:
        for chunk in chunks(x, 100, writer.rows_done):
            writer.append(chunk)
        writer.finish(var=var(100))
    write(tmp_path / "whole.zarr", x, chunk_rows=10, checkpoint_elements=1)
    assert digest(tmp_path / "whole.zarr") == digest(tmp_path / "a.zarr")


def test_metadata_is_what_anndata_writes(tmp_path: Path) -> None:
    path = write(tmp_path / "a.zarr", counts(20, 10), obs={"t": pd.Categorical(["u", "v"] * 10)})
    for name, kind in [
        ("", "anndata"),
        ("X", "csr_matrix"),
        ("obs", "dataframe"),
        ("obs/t", "categorical"),
        ("obs/_index", "string-array"),
        ("uns", "dict"),
        ("layers", "dict"),
    ]:
        meta = json.loads((path / name / "zarr.json").read_text())
        assert meta["attributes"]["encoding-type"] == kind


def test_crc32c_of_the_published_vectors() -> None:
    assert crc32c(b"123456789") == 0xE3069283
    assert crc32c(bytes(32)) == 0x8A9136AA


@pytest.mark.parametrize("name", ["X/data", "X/indices", "X/indptr", "obs/n", "var/_index", "uns/list"])
def test_a_flipped_bit_never_gives_other_values(tmp_path: Path, pipeline: str, name: str) -> None:
    """Every stored byte is under a checksum, in slices of a part of a chunk too."""
    x = counts(300, 300, density=0.4)  # three chunks
    with AtlasWriter(tmp_path / "a.zarr", n_genes=300, chunk_rows=1, shard_chunks=2) as writer:
        writer.append(chunks(x, 300)[0])
        obs = pd.DataFrame({"t": pd.Categorical(["u", "v"] * 150), "n": np.sqrt(np.arange(300))})
        writer.finish(obs=obs, var=var(300), uns={"list": np.arange(30), "one": 3, "text": "yes"})
    assert ad.read_zarr(tmp_path / "a.zarr").uns["text"] == "yes"
    folder = tmp_path / "a.zarr" / name
    file = min(p for p in folder.rglob("*") if p.is_file() and p.name != "zarr.json")
    good = file.read_bytes()
    array = zarr.open_array(folder, mode="r")
    whole = array[:]
    n = min(len(whole), array.chunks[0])
    slices = [slice(0, n), slice(n // 3, n // 2), slice(n - 1, n)]
    wanted = [array[s] for s in slices]
    rng = np.random.default_rng(0)
    ends = [*range(24), *range(len(good) - 12, len(good))]  # headers and the shard's index
    raised = []
    for at in {*(i for i in ends if 0 <= i < len(good)), *rng.integers(0, len(good), 40).tolist()}:
        bad = bytearray(good)
        bad[at] ^= 1 << int(rng.integers(8))
        file.write_bytes(bad)
        try:
            assert np.array_equal(array[:], whole), at
            raised.append(False)
        except (OSError, RuntimeError, ValueError):
            raised.append(True)
        for s, values in zip(slices, wanted, strict=True):
            try:
                assert np.array_equal(array[s], values), (at, s)
            except (OSError, RuntimeError, ValueError):
                continue
    file.write_bytes(good)
    # A frame's header has a bit or two that mean nothing.
    assert np.mean(raised) == 1.0 if name.startswith("X") else np.mean(raised) > 0.9
