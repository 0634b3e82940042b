"""Appending to a run: the bytes of encoding all stores at once, and the old run until the new one stands."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import anndata
import numpy as np
import pytest
from click.testing import Result

from hashstream.errors import InputError, PartialRunError, SettingsError
from hashstream.hashing import Hasher
from hashstream.runtime.exchange import exchange
from hashstream.runtime.run import CODE_CHUNK_ROWS, Run
from hashstream.runtime.run_lock import hold_run
from hashstream.stages import append as append_module
from hashstream.stages import encode_finish
from hashstream.stages.append import append
from hashstream.stages.cluster import cluster
from hashstream.stages.encode import encode
from hashstream.stages.encode_plan import EncodeSettings
from hashstream.stages.workdir import WorkDir
from tests.runs import accept_files, note_stage
from tests.stages.test_encode import content
from tests.stages.thin_atlas import N_GENES, SMALL, write_thin_atlas

CELLS = {"tiny": 1000, "full": CODE_CHUNK_ROWS, "more": CODE_CHUNK_ROWS + 5000, "last": 300}


class Notes:
    """A listener that keeps what it is told."""

    def __init__(self) -> None:
        self.notes: list[str] = []
        self.cells = 0

    def start(self, stage: str, total: int, unit: str) -> None: ...

    def advance(self, n: int) -> None:
        self.cells += n

    def finish(self) -> None: ...

    def note(self, message: str) -> None:
        self.notes.append(message)


@pytest.fixture(scope="module")
def stores(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("stores")
    return {
        name: write_thin_atlas(folder / f"{name}.zarr", cells, seed=seed)
        for seed, (name, cells) in enumerate(CELLS.items())
    }


@pytest.fixture(scope="module")
def hasher(stores: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Hasher:
    run = encode(stores["tiny"], tmp_path_factory.mktemp("fit") / "run", settings=SMALL)
    assert run is not None
    return run.hasher()


@pytest.fixture
def old(stores: dict[str, Path], hasher: Hasher, tmp_path: Path) -> Run:
    run = encode(stores["tiny"], tmp_path / "run", hasher=hasher, settings=SMALL)
    assert run is not None
    return run


def at_once(stores: dict[str, Path], names: tuple[str, ...], hasher: Hasher, target: Path) -> Run:
    run = encode([stores[name] for name in names], target, hasher=hasher, settings=SMALL)
    assert run is not None
    return run


@pytest.mark.parametrize(
    "names",
    [("tiny", "more", "last"), ("full", "tiny"), ("more", "full", "tiny")],
    ids=["shorter prefix", "partitions aligned", "partitions straddled"],
)
def test_same_bytes_as_all_at_once(
    stores: dict[str, Path], hasher: Hasher, tmp_path: Path, names: tuple[str, ...]
) -> None:
    whole = at_once(stores, names, hasher, tmp_path / "whole")
    gone = tmp_path / "first.zarr"
    shutil.copytree(stores[names[0]], gone)
    run = encode(gone, tmp_path / "run", hasher=hasher, settings=SMALL)
    assert run is not None
    bits = [run.bucket_bits]
    shutil.rmtree(gone)  # its matrix is not read again
    for name in names[1:]:
        run = append(stores[name], tmp_path / "run", threads=1)
        bits.append(run.bucket_bits)
    assert content(run.path) == content(whole.path)
    assert (run.path / "hasher" / "hasher.json").read_text() == (whole.path / "hasher" / "hasher.json").read_text()
    assert bits[-1] == whole.bucket_bits
    if names[0] == "tiny":
        assert bits[0] > bits[1]
    ours, theirs = Run.open(run.path).meta, whole.meta
    assert ours["input"]["paths"] == [str(gone), *theirs["input"]["paths"][1:]]
    for key in ("fingerprint", "fingerprints", "cells", "matrix"):
        assert ours["input"][key] == theirs["input"][key]
    assert [entry["cells"] for entry in ours["appended"]] == [CELLS[name] for name in names[1:]]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["run", "whole"]


def test_empty_cells_add_up(small_adata: anndata.AnnData, tmp_path: Path) -> None:
    counts = small_adata.X.tolil()
    counts[3] = counts[450] = 0
    adata = anndata.AnnData(counts.tocsr(), obs=small_adata.obs, var=small_adata.var)
    adata[:400].write_h5ad(tmp_path / "a.h5ad")
    adata[400:].write_h5ad(tmp_path / "b.h5ad")
    run = encode(tmp_path / "a.h5ad", tmp_path / "run")
    assert run is not None
    whole = encode([tmp_path / "a.h5ad", tmp_path / "b.h5ad"], tmp_path / "whole", hasher=run.hasher())
    assert whole is not None
    both = append(tmp_path / "b.h5ad", run.path)
    assert content(both.path) == content(whole.path)
    assert both.meta["n_empty_cells"] == 2
    assert np.flatnonzero(both.without_counts(both.codes())).tolist() == [3, 450]


def test_results_of_the_smaller_run_are_dropped(stores: dict[str, Path], old: Run) -> None:
    cluster(old, n_clusters=3, batch_key="batch")
    (batches,) = old.path.glob("batches-*.parquet")
    listener = Notes()
    run = append(stores["last"], old.path, progress=listener)
    assert run.cell_columns() == ["row", "bucket"]
    assert run.meta["stages"] == {}
    assert not batches.exists()
    (note,) = [note for note in listener.notes if "dropped" in note]
    assert f"cluster, cluster_confidence, {batches.name}" in note
    assert listener.cells == CELLS["last"]
    cluster(run, n_clusters=3)


def test_what_does_not_belong_to_the_run_is_refused(stores: dict[str, Path], old: Run, tmp_path: Path) -> None:
    before = content(old.path)
    copy = tmp_path / "copy.zarr"
    shutil.copytree(stores["tiny"], copy)
    other = encode(stores["more"], tmp_path / "other", settings=SMALL, seed=1)
    assert other is not None
    strange = anndata.AnnData(np.ones((5, N_GENES), np.float32))
    strange.write_h5ad(tmp_path / "strange.h5ad")
    refused: list[tuple[Path | list[Path], dict[str, object], str]] = [
        (copy, {}, "copy.zarr: its cells are in .*run already"),
        ([stores["last"], stores["last"]], {}, "given twice"),
        (stores["last"], {"max_buckets": 100}, "--max-buckets is 100, but .* was made with 3000"),
        (stores["last"], {"bucket_bits": 8}, "--bucket-bits is 8, but .* was made with None"),
        (stores["last"], {"partition_rows": 1 << 20}, "--partition-rows is 1048576"),
        (stores["last"], {"hasher": other.path / "hasher"}, "--hasher is another one"),
        (tmp_path / "strange.h5ad", {}, "genes"),
        (tmp_path / "nothing.h5ad", {}, "no such file"),
    ]
    for sources, options, message in refused:
        with pytest.raises((InputError, SettingsError), match=message):
            append(sources, old.path, **options)  # type: ignore[arg-type]
        assert content(old.path) == before
        assert not (tmp_path / "run.partial").exists()
    with pytest.raises(InputError, match="no such run"):
        append(stores["last"], tmp_path / "nowhere")


def test_other_cells_at_the_place_of_a_store_are_refused(
    stores: dict[str, Path], hasher: Hasher, tmp_path: Path
) -> None:
    shutil.copytree(stores["tiny"], tmp_path / "today.zarr")
    assert encode(tmp_path / "today.zarr", tmp_path / "run", hasher=hasher, settings=SMALL) is not None
    before = content(tmp_path / "run")
    shutil.rmtree(tmp_path / "today.zarr")
    shutil.copytree(stores["more"], tmp_path / "today.zarr")
    with pytest.raises(InputError, match="has cells of a store of this name already"):
        append(tmp_path / "today.zarr", tmp_path / "run")
    assert content(tmp_path / "run") == before


@pytest.mark.parametrize("moment", ["prepare", "save_codes", "save_part", "write_tokens", "publish"])
def test_killed_in_the_middle_the_old_run_stands(
    stores: dict[str, Path], hasher: Hasher, old: Run, tmp_path: Path, moment: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = content(old.path)
    sources = [stores["more"], stores["last"]]
    with monkeypatch.context() as patch:
        owner = encode_finish if hasattr(encode_finish, moment) else WorkDir
        real = getattr(owner, moment)

        def die(*args: object, **options: object) -> None:
            if moment in ("prepare", "save_codes"):
                real(*args, **options)
            raise KeyboardInterrupt

        patch.setattr(owner, moment, die)
        with pytest.raises(KeyboardInterrupt):
            append(sources, old.path, threads=1, checkpoint_seconds=0)
    assert content(old.path) == before
    assert Run.open(old.path).n_cells == CELLS["tiny"]
    assert (tmp_path / "run.partial").is_dir()
    if moment == "save_part":
        with pytest.raises(SettingsError, match="begun with another input"):
            append(stores["full"], old.path, resume=True)
    run = append(sources, old.path, threads=1, resume=moment != "prepare")
    assert content(run.path) == content(at_once(stores, ("tiny", "more", "last"), hasher, tmp_path / "whole").path)
    assert not (tmp_path / "run.partial").exists()


KILLED = """
import os, signal, sys
from hashstream.stages import encode_finish
from hashstream.cli.main import main
encode_finish.publish = lambda *_: os.kill(os.getpid(), signal.SIGKILL)
main(sys.argv[1:])
"""


@pytest.mark.slow
def test_a_real_kill(stores: dict[str, Path], hasher: Hasher, old: Run, tmp_path: Path) -> None:
    before = content(old.path)
    arguments = ["encode", "--append", str(stores["last"]), "-o", str(old.path)]
    done = subprocess.run([sys.executable, "-c", KILLED, *arguments], capture_output=True, check=False)
    assert done.returncode == -signal.SIGKILL, done.stderr
    assert content(old.path) == before
    run = append(stores["last"], old.path)
    assert content(run.path) == content(at_once(stores, ("tiny", "last"), hasher, tmp_path / "whole").path)


def test_a_run_that_was_just_taken_away_is_restored(stores: dict[str, Path], old: Run) -> None:
    """Where folders cannot be exchanged at once, a kill between two renames leaves RUN.replaced."""
    old.path.rename(old.path.with_name("run.replaced"))
    listener = Notes()
    assert append(stores["last"], old.path, progress=listener).n_cells == CELLS["tiny"] + CELLS["last"]
    assert any("restored" in note for note in listener.notes)


def test_without_hard_links_and_exchange(
    stores: dict[str, Path], hasher: Hasher, old: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_links(*_: object) -> None:
        raise OSError(95, "Operation not supported")

    monkeypatch.setattr(append_module.os, "link", no_links)
    monkeypatch.setattr("hashstream.runtime.exchange.exchange", lambda *_: False)
    run = append(stores["last"], old.path)
    assert content(run.path) == content(at_once(stores, ("tiny", "last"), hasher, tmp_path / "whole").path)


def test_exchange(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "is").write_text(name)
    if not exchange(tmp_path / "a", tmp_path / "b"):
        pytest.skip("this file system cannot exchange folders")
    assert (tmp_path / "a" / "is").read_text() == "b"
    assert not exchange(tmp_path / "a", tmp_path / "missing")


def test_damaged_codes_are_noticed(stores: dict[str, Path], old: Run) -> None:
    """Shards are carried over unread; what they hold is compared with the buckets at the end."""
    codes = old.codes()
    array = WorkDir(old.path).codes()
    array[10:20] = codes[10:20] ^ np.uint64(1)
    with pytest.raises(InputError, match="codes.zarr: not what run.json tells of"):
        append(stores["last"], old.path)
    accept_files(old.path)
    with pytest.raises(InputError, match="codes and bucket tables do not fit"):
        append(stores["last"], old.path)
    assert Run.open(old.path).n_cells == CELLS["tiny"]


def test_one_process_writes_into_a_run_at_a_time(stores: dict[str, Path], old: Run) -> None:
    with hold_run(old.path, old.meta):
        with pytest.raises(SettingsError, match="another process is writing into this run"):
            cluster(old.path, n_clusters=3)
        with pytest.raises(SettingsError, match="another process is writing into this run"):
            append(stores["last"], old.path)
    with WorkDir.of(old.path).lock(), pytest.raises(SettingsError, match="another process is making this run"):
        append(stores["last"], old.path)
    opened = Run.open(old.path)
    appended = append(stores["last"], old.path)
    before = content(old.path)
    with pytest.raises(InputError, match=r"the run was replaced by another one, or appended to.*Try again"):
        cluster(opened, n_clusters=3)
    assert content(old.path) == before
    # What another stage has noted meanwhile is kept.
    cluster(appended, n_clusters=3)
    note_stage(appended, "other", {"x": 1})
    assert set(Run.open(old.path).meta["stages"]) == {"cluster", "other"}


def test_command_line(
    stores: dict[str, Path], hasher: Hasher, old: Run, tmp_path: Path, hashstream: Callable[..., Result]
) -> None:
    arguments = ("encode", "--append", stores["more"], "-o", old.path)
    for option in (("--partition", "0/2"), ("--force",), ("--bits", "32"), ("--moment-match",)):
        refused = hashstream(*arguments, *option)
        assert refused.exit_code == 2
        assert f"{option[0]} does not go with --append" in refused.stderr
    assert hashstream(*arguments, "--max-buckets", "7").exit_code == 2
    plan = json.loads(hashstream("--json", *arguments, "--dry-run").stdout)
    assert plan["cells"] == 70536
    assert plan["partition_rows"] == old.meta["plan"]["partition_rows"] != EncodeSettings().partition_rows
    assert hashstream(*arguments, "--dry-run", "--max-buckets", "7").exit_code == 2
    done = hashstream(*arguments, "--threads", "1")
    assert done.exit_code == 0, done.stderr
    assert content(old.path) == content(at_once(stores, ("tiny", "more"), hasher, tmp_path / "whole").path)


def test_a_link_to_a_run_is_followed(stores: dict[str, Path], old: Run, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(old.path)
    appended = append(stores["more"], tmp_path / "link")
    assert (tmp_path / "link").is_symlink()
    assert Run.open(old.path).n_cells == appended.n_cells > old.n_cells


def test_a_full_disk_keeps_what_is_done(stores: dict[str, Path], old: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(WorkDir, "save_codes", full)
        with pytest.raises(PartialRunError, match="--resume"):
            append(stores["last"], old.path)
    assert Run.open(old.path).n_cells == CELLS["tiny"]
    assert append(stores["last"], old.path, resume=True).n_cells == CELLS["tiny"] + CELLS["last"]
