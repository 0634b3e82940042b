"""What stood there stays whole when something goes wrong, and what is lost is missed."""

from __future__ import annotations

import json
import time
from contextlib import suppress
from pathlib import Path
from threading import Thread

import anndata
import numpy as np
import pyarrow.parquet as pq
import pytest

from hashstream.atlas.ingest import ingest
from hashstream.atlas.write import AtlasWriter
from hashstream.errors import HashStreamError, InputError, SettingsError
from hashstream.runtime.budget import is_disk_full
from hashstream.runtime.files import file_digest, remove
from hashstream.runtime.folder_lock import FolderLock
from hashstream.runtime.run import Run
from hashstream.stages import export as export_stage
from hashstream.stages.cluster import cluster
from hashstream.stages.encode import encode
from tests.runs import note_stage


@pytest.fixture
def run(small_h5ad: Path, tmp_path: Path) -> Run:
    found = encode(small_h5ad, tmp_path / "run")
    assert found is not None
    return found


def contents(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def test_two_writers_of_one_atlas(tmp_path: Path) -> None:
    with AtlasWriter(tmp_path / "atlas.zarr", n_genes=3):
        with pytest.raises(SettingsError, match=r"atlas.zarr.partial: another process"):
            AtlasWriter(tmp_path / "atlas.zarr", n_genes=3)
        assert (tmp_path / "atlas.zarr.partial" / "X").is_dir()
    with AtlasWriter(tmp_path / "atlas.zarr", n_genes=3) as writer:
        writer.discard()
    assert list(tmp_path.iterdir()) == []


def test_a_lock_goes_with_its_folder(tmp_path: Path) -> None:
    lock = FolderLock(tmp_path / "made")
    (tmp_path / "made").rename(tmp_path / "named")
    with pytest.raises(SettingsError):
        FolderLock(tmp_path / "named")
    lock.release()
    lock.release()
    FolderLock(tmp_path / "named").release()


def test_an_export_that_fails_leaves_the_columns_of_an_earlier_one(
    run: Run, small_h5ad: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    atlas = tmp_path / "atlas.zarr"
    ingest(small_h5ad, atlas)
    cluster(run, n_clusters=3)
    export_stage.export(run.path, atlas)
    before = contents(atlas)
    cluster(run.path, n_clusters=5)
    with monkeypatch.context() as broken:
        broken.setattr(export_stage, "_embedding_blocks", lambda _: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            export_stage.export(run.path, atlas)
    assert contents(atlas) == before
    assert sorted(p.name for p in tmp_path.iterdir()) == ["atlas.zarr", "run"]
    export_stage.export(run.path, atlas)
    assert anndata.read_zarr(atlas).obs["cluster"].nunique() == 5


def test_clusters_that_cannot_be_written_leave_the_run_as_it_was(run: Run) -> None:
    before = contents(run.path)
    with pytest.raises(ZeroDivisionError):
        run.set_cell_columns(["cluster"], lambda *_: 1 / 0, stage="cluster", record={})  # type: ignore[arg-type, return-value]
    assert contents(run.path) == before


@pytest.mark.parametrize("n_renamed", [0, 1, 2, 3])
def test_columns_and_record_change_together_or_not_at_all(
    run: Run, monkeypatch: pytest.MonkeyPatch, n_renamed: int
) -> None:
    """A process may die before any of three renames, or before it removes the record to come."""

    def number() -> int:
        stage = Run.open(run.path).meta["stages"]["cluster"]
        assert stage["n_clusters"] == len(
            {name for batch in run.iter_cells(["cluster"]) for name in batch[0].to_pylist()}
        )
        return int(stage["n_clusters"])

    def die_in_between(path: Path, target: Path) -> Path:
        done.append(target)
        if len(done) > n_renamed:
            raise KeyboardInterrupt
        return rename(path, target)

    cluster(run, n_clusters=3)
    rename, done = Path.replace, list[Path]()
    with monkeypatch.context() as patch:
        patch.setattr(Path, "replace", die_in_between)
        if n_renamed == 3:
            patch.setattr(Path, "unlink", lambda *_, **__: 1 / 0)
        with pytest.raises((KeyboardInterrupt, ZeroDivisionError)):
            cluster(run, n_clusters=5)
    before = contents(run.path)
    assert number() == (3 if n_renamed < 2 else 5)
    assert contents(run.path) == before
    assert ("run.next.json" in before) == (n_renamed > 0)
    note_stage(Run.open(run.path), "annotate", {})
    assert number() == (3 if n_renamed < 2 else 5)
    cluster(run.path, n_clusters=4)
    assert number() == 4
    assert not (run.path / "run.next.json").exists()


def test_a_record_that_takes_its_place_while_it_is_read(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """The writer may finish at any moment of a reader, also right after the reader has seen the record to come."""
    cluster(run, n_clusters=3)
    sealed = json.loads((run.path / "run.json").read_text())
    sealed["cells_sha256"] = file_digest(run.path / "cells.parquet")
    (run.path / "run.next.json").write_text(json.dumps(sealed))

    def finish(path: Path) -> str:
        found = file_digest(path)
        (run.path / "run.next.json").unlink()
        return found

    monkeypatch.setattr("hashstream.runtime.record.file_digest", finish)
    assert Run.open(run.path).meta["stages"]["cluster"]["n_clusters"] == 3
    assert not (run.path / "run.next.json").exists()


def test_a_record_to_come_that_is_damaged(run: Run) -> None:
    (run.path / "run.next.json").write_text("{}")
    with pytest.raises(InputError, match="run.next.json: damaged"):
        Run.open(run.path)


def test_a_flipped_bit_where_pages_begin_is_noticed(run: Run) -> None:
    """Parquet has no checksum of the headers of pages: with some bits turned it gives fewer rows, or none."""
    path = run.path / "cells.parquet"
    raw, buckets = path.read_bytes(), np.concatenate(list(run.cell_buckets()))
    starts = [pq.ParquetFile(path).metadata.row_group(0).column(i).data_page_offset for i in range(2)]
    named = 0
    for byte in (at + i for at in starts for i in range(40)):
        for bit in range(8):
            path.write_bytes(raw[:byte] + bytes([raw[byte] ^ 1 << bit]) + raw[byte + 1 :])
            try:
                found = np.concatenate(list(Run.open(run.path).cell_buckets()))
            except InputError:
                named += 1
            else:
                assert np.array_equal(found, buckets), (byte, bit)
    assert named > 100


def test_lost_codes_are_missed(run: Run) -> None:
    (run.path / "codes.zarr" / "c" / "0" / "0").unlink()
    with pytest.raises(InputError, match=r"codes.zarr: the codes of 600 cells are missing"):
        run.codes()


@pytest.mark.parametrize(
    ("name", "value"), [("hasher", {}), ("n_bits", "64"), ("bucket_bits", 0), ("input", {}), ("stages", 7)]
)
def test_a_record_with_odd_entries(run: Run, name: str, value: object) -> None:
    meta = json.loads((run.path / "run.json").read_text())
    (run.path / "run.json").write_text(json.dumps({**meta, name: value}))
    with pytest.raises(InputError, match=rf"run.json: damaged: {name}"):
        Run.open(run.path)


@pytest.mark.parametrize("name", ["run.json", "run.next.json"])
def test_a_record_that_is_no_text(run: Run, name: str) -> None:
    raw = bytearray((run.path / "run.json").read_bytes())
    raw[len(raw) // 2] ^= 128
    (run.path / name).write_bytes(raw)
    with pytest.raises(InputError, match=rf"{name}: damaged \(UnicodeDecodeError"):
        Run.open(run.path)


def test_a_record_that_was_changed_without_its_checksum(run: Run) -> None:
    text = (run.path / "run.json").read_text()
    cells = f'"n_empty_cells": {run.meta["n_empty_cells"]}'
    assert cells in text
    for changed in (text.replace(cells, '"n_empty_cells": 7'), text.replace('"sha256"', '"sha257"')):
        (run.path / "run.json").write_text(changed)
        with pytest.raises(InputError, match="run.json: damaged: its content is not what its checksum says"):
            Run.open(run.path)
        with pytest.raises(InputError, match="run.json: damaged: its content is not what its checksum says"):
            note_stage(run, "cluster", {})


def test_a_folder_is_removed_though_something_is_still_written_into_it(tmp_path: Path) -> None:
    folder = tmp_path / "folder"
    folder.mkdir()
    end = time.monotonic() + 0.1

    def write() -> None:
        number = 0
        while time.monotonic() < end:
            with suppress(FileNotFoundError):
                (folder / str(number)).touch()
            number += 1

    writer = Thread(target=write)
    writer.start()
    remove(folder)
    writer.join()
    assert not folder.exists()
    remove(folder)


def test_a_write_that_was_cut_short_is_a_full_disk() -> None:
    assert is_disk_full(OSError("1424 requested and 1211 written"))
    assert not is_disk_full(OSError("something else"))


def test_a_full_disk_ends_an_export_in_words(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise RuntimeError("No space left on device (os error 28)")

    monkeypatch.setattr(export_stage, "_write_obsm", full)
    with pytest.raises(HashStreamError, match="out.h5ad: no space left"):
        export_stage.export(run.path, tmp_path / "out.h5ad")
    assert [p.name for p in tmp_path.iterdir()] == ["run"]
