"""What surrounds a command: closed channels, links, permissions, limits, numbers out of range."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import anndata
import h5py
import numpy as np
import pandas as pd
import pytest
import zarr
from click.testing import Result

import hashstream as hs
from hashstream.errors import BudgetError, InputError, SettingsError
from hashstream.runtime.files import new_file, own_name
from hashstream.runtime.run import BUCKETS, Run
from hashstream.stages.encode_plan import EncodeSettings, dry_run
from tests.synthetic import make_adata

Cli = Callable[..., Result]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("surroundings")
    make_adata().write_h5ad(folder / "atlas.h5ad")
    hs.pp.encode(folder / "atlas.h5ad", folder / "run")
    return folder / "run"


@pytest.mark.parametrize("closed", ["stdout", "stderr"])
def test_a_closed_channel_is_no_error(run: Path, tmp_path: Path, closed: str) -> None:
    script = f"import sys; sys.{closed} = None; from hashstream.cli.main import main; main()"
    command = [sys.executable, "-c", script, "--json", "encode", run.parent / "atlas.h5ad", "-o", tmp_path / "new"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    if closed == "stderr":
        assert json.loads(done.stdout)["path"] == str(tmp_path / "new")
        assert done.stderr == ""
    assert Run.open(tmp_path / "new").n_cells == Run.open(run).n_cells


@pytest.mark.parametrize("seed", [-1, 2**32])
def test_a_seed_that_no_library_takes(hashstream: Cli, run: Path, seed: int) -> None:
    result = hashstream("--seed", seed, "cluster", run, "--method", "kmeans", "--n-clusters", 4)
    assert result.exit_code == 2
    assert "--seed" in result.stderr


def test_links_that_lead_round_in_a_circle(hashstream: Cli, run: Path, tmp_path: Path) -> None:
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    for arguments in ((run.parent / "atlas.h5ad", "-o", tmp_path / "loop"), (tmp_path / "loop", "-o", tmp_path / "r")):
        result = hashstream("encode", *arguments)
        assert result.exit_code == 1
        assert "loop" in result.stderr
        assert "defect" not in result.stderr


def test_a_file_that_may_not_be_read_is_not_damaged(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import pyarrow.parquet as pq

    real = pq.ParquetFile

    def refuse(path: Path, **options: object) -> object:
        if Path(path).name == BUCKETS:
            raise PermissionError(13, "Permission denied")
        return real(path, **options)

    monkeypatch.setattr(pq, "ParquetFile", refuse)  # root may read everything
    with pytest.raises(InputError, match="may not read it. Have its owner allow it"):
        Run.open(run)


@pytest.mark.parametrize("resolution", [0.0, -1.0, float("nan"), float("inf")])
def test_a_resolution_that_is_none(run: Path, resolution: float) -> None:
    with pytest.raises(SettingsError, match="resolution is .*; expected a positive number"):
        hs.tl.cluster(run, resolution=resolution)


@pytest.mark.parametrize(("name", "value"), [("n_neighbours", 0), ("unknown_threshold", 1.5), ("novel_rate", 1.0)])
def test_numbers_out_of_range(run: Path, name: str, value: float) -> None:
    with pytest.raises(SettingsError, match=f"{name} is {value}"):
        hs.tl.annotate(run, reference=run, labels="cell_type", **{name: value})


def test_partitions_that_no_memory_holds() -> None:
    with pytest.raises(SettingsError, match="partition_rows is .* expected at most"):
        EncodeSettings(partition_rows=1 << 40)


def test_large_chunks_of_a_dense_matrix_are_in_the_projection(tmp_path: Path) -> None:
    counts = np.random.default_rng(0).poisson(1.0, (2_000, 1_000)).astype(np.float32)
    for name, rows in (("small", 100), ("large", 2_000)):
        group = zarr.create_group(tmp_path / name)
        with anndata.settings.override(zarr_write_format=3, auto_shard_zarr_v3=True):
            anndata.io.write_elem(group, "/", anndata.AnnData(counts))
        attributes = dict(group["X"].attrs)
        del group["X"]
        group.create_array("X", data=counts, chunks=(rows, 1_000), attributes=attributes)
    attributes = {"encoding-type": "array", "encoding-version": "0.2.0"}
    for name, chunks, compression in (
        ("whole", None, None),
        ("plain", counts.shape, None),
        ("gz", counts.shape, "gzip"),
    ):
        anndata.AnnData(counts).write_h5ad(tmp_path / f"{name}.h5ad")
        with h5py.File(tmp_path / f"{name}.h5ad", "r+") as file:
            del file["X"]
            file.create_dataset("X", data=counts, chunks=chunks, compression=compression).attrs.update(attributes)

    def decoding(name: str, threads: int = 2) -> int:
        parts = dry_run(tmp_path / name, settings=EncodeSettings(threads=threads))["projected_parts"]
        return int(parts["decoding"])

    assert decoding("large") == 20 * decoding("small") == 3 * 2 * counts.nbytes
    # HDF5 decodes one chunk at a time, and reads rows of what is not compressed.
    assert counts.nbytes < decoding("gz.h5ad") == decoding("gz.h5ad", threads=8) < 2 * counts.nbytes
    assert decoding("whole.h5ad") == decoding("plain.h5ad") == 0


def test_a_dense_matrix_in_one_chunk_takes_memory_to_ingest(tmp_path: Path) -> None:
    group = zarr.create_group(tmp_path / "dense.zarr")
    shape = (8_000, 10_000)
    with anndata.settings.override(zarr_write_format=3, auto_shard_zarr_v3=True):
        anndata.io.write_elem(group, "/", anndata.AnnData(obs=pd.DataFrame(index=[f"c{i}" for i in range(shape[0])])))
        anndata.io.write_elem(group, "var", pd.DataFrame(index=[f"g{i}" for i in range(shape[1])]))
    attributes = {"encoding-type": "array", "encoding-version": "0.2.0"}
    if "X" in group:
        del group["X"]
    counts = group.create_array("X", shape=shape, chunks=shape, dtype="uint8", attributes=attributes)
    counts[:10, :10] = 1
    with pytest.raises(BudgetError, match="each of which takes 153 MiB to decode; allow .* MiB more with --max-memory"):
        hs.pp.ingest(tmp_path / "dense.zarr", tmp_path / "out.zarr", max_memory=_least_to_ingest(tmp_path))
    assert not (tmp_path / "out.zarr").exists()


def _least_to_ingest(folder: Path) -> int:
    """A little more than the tables and libraries take, by what the refusal of too little says."""
    with pytest.raises(BudgetError) as error:
        hs.pp.ingest(folder / "dense.zarr", folder / "out.zarr", max_memory="1MiB")
    return (int(str(error.value).partition("allow at least ")[2].split()[0].replace(",", "")) + 60) << 20


def test_an_unfinished_run_is_known(hashstream: Cli, run: Path, tmp_path: Path) -> None:
    arguments = ("encode", run.parent / "atlas.h5ad", "-o", tmp_path / "new", "--hasher", run / "hasher")
    assert hashstream(*arguments, "--partition", "1/2").exit_code == 0
    for path in (tmp_path / "new", tmp_path / "new.partial"):
        result = hashstream("inspect", path)
        assert result.exit_code == 1
        assert "a run in the making" in result.stderr


def test_what_killed_processes_left_is_removed(tmp_path: Path) -> None:
    host = own_name().rpartition("-")[0]
    gone = subprocess.run([sys.executable, "-c", "import os; print(os.getpid())"], capture_output=True, check=True)
    dead = tmp_path / f"m.csv.{host}-{int(gone.stdout)}.partial"
    others = [
        tmp_path / name
        for name in (f"m.csv.{host}-{os.getppid()}.partial", f"other.csv.{host}-1.partial", "m.csv.elsewhere-1.partial")
    ]
    just_now = tmp_path / f"m.csv.{host}-{int(gone.stdout) + (1 << 22)}.partial"
    for path in (dead, just_now, *others):
        path.touch()
        os.utime(path, (time.time() - 3600,) * 2)
    just_now.touch()
    with new_file(tmp_path / "m.csv") as aside:
        aside.write_text("new")
    assert not dead.exists()
    assert all(path.exists() for path in (just_now, *others))
    assert (tmp_path / "m.csv").read_text() == "new"


def test_a_method_of_the_yaml_gives_way_to_a_resolution(hashstream: Cli, run: Path, tmp_path: Path) -> None:
    (tmp_path / "c.yaml").write_text("cluster: {n-clusters: 5, method: ward}\n")
    arguments = ("--json", "--config", tmp_path / "c.yaml", "cluster", run)
    assert json.loads(hashstream(*arguments).stdout)["method"] == "ward"
    assert json.loads(hashstream(*arguments, "--resolution", 1.5).stdout)["method"] == "leiden"
    result = hashstream(*arguments, "--resolution", 1.5, "--method", "ward")
    assert result.exit_code == 2
    assert "resolution" in result.stderr


def test_dots_are_coloured_by_numbers(run: Path, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    hs.tl.markers(run, target=tmp_path / "m.csv", settings=hs.tl.MarkersSettings(by="cell_type"))
    with pytest.raises(InputError, match="the column 'group' holds no numbers"):
        hs.pl.markers(tmp_path / "m.csv", color="group")


def test_a_root_may_be_a_number(run: Path) -> None:
    hs.tl.cluster(run, n_clusters=3)
    assert hs.tl.trajectory(run, root=0)["groups"]


def test_stores_that_share_few_genes_are_told(hashstream: Cli, tmp_path: Path) -> None:
    adata = make_adata()
    adata.write_h5ad(tmp_path / "a.h5ad")
    adata.var_names = [name if i < 100 else name.lower() for i, name in enumerate(adata.var_names)]
    adata.obs_names = [f"b-{name}" for name in adata.obs_names]
    adata.write_h5ad(tmp_path / "b.h5ad")
    result = hashstream("encode", tmp_path / "a.h5ad", tmp_path / "b.h5ad", "-o", tmp_path / "run")
    assert result.exit_code == 0
    assert "only 100 genes are in all stores and used, of 300 in" in result.stderr
    assert "300 would be the same but for case" in result.stderr
    (tmp_path / "copy.h5ad").write_bytes((tmp_path / "a.h5ad").read_bytes())
    result = hashstream("encode", tmp_path / "a.h5ad", tmp_path / "copy.h5ad", "-o", tmp_path / "twice")
    assert "copy.h5ad: the same content as" in result.stderr
    assert "genes are in all stores" not in result.stderr


@pytest.mark.parametrize("key", ["", ".", "..", "a/b", "_index"])
def test_a_batch_key_that_cannot_be_a_column(hashstream: Cli, run: Path, tmp_path: Path, key: str) -> None:
    (tmp_path / "copy.h5ad").write_bytes((run.parent / "atlas.h5ad").read_bytes())
    sources = (run.parent / "atlas.h5ad", tmp_path / "copy.h5ad")
    result = hashstream("ingest", *sources, tmp_path / "out.zarr", "--batch-key", key)
    assert result.exit_code == 2
    assert "cannot be the name of a column" in result.stderr
    assert not (tmp_path / "out.zarr").exists()


@pytest.mark.parametrize(
    ("layer", "as_listed"), [("X", "X"), ("raw", "raw/X"), ("raw", "raw.X"), ("umi", "layers/umi"), (None, None)]
)
def test_layers_may_be_named_as_they_are_listed(tmp_path: Path, layer: str | None, as_listed: str | None) -> None:
    adata = make_adata()
    adata.raw = adata[:, ::-1].copy()
    adata.layers["umi"] = adata.X[:, np.random.default_rng(0).permutation(adata.n_vars)]
    adata.write_h5ad(tmp_path / "a.h5ad")
    codes = []
    for name in (layer, as_listed):
        run = hs.pp.encode(tmp_path / "a.h5ad", tmp_path / "run", layer=name, force=True)
        codes.append(run.codes(0, run.n_cells))
        hs.tl.markers(run, target=tmp_path / "m.csv", settings=hs.tl.MarkersSettings(by="cell_type"), force=True)
    np.testing.assert_array_equal(*codes)
