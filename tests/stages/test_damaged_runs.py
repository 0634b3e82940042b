"""Files of another run, damaged footers, links and what else a run folder may come with: refused, and named."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from click.testing import Result

from hashstream.errors import InputError
from hashstream.runtime.record import read_record, write_record
from hashstream.runtime.run import Run
from hashstream.runtime.run_files import digest_of
from hashstream.stages.annotate import annotate
from hashstream.stages.cluster import cluster
from hashstream.stages.encode import encode, finalize
from hashstream.stages.encode_plan import EncodeSettings, Partition
from tests.synthetic import make_adata

FILES = ("codes.zarr", "buckets.parquet", "cells.parquet", "landmarks.parquet")


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two runs of as many cells, with one hasher, and one with another."""
    folder = tmp_path_factory.mktemp("runs")
    for name, seed in (("a", 0), ("b", 0), ("other", 7)):
        make_adata(n_cells=400, seed=int(name == "b")).write_h5ad(folder / f"{name}.h5ad")
        hasher = folder / "a" / "hasher" if name == "b" else None
        encode(folder / f"{name}.h5ad", folder / name, hasher=hasher, seed=seed)
        cluster(folder / name, n_clusters=3)
    return folder


@pytest.mark.parametrize("name", FILES)
def test_a_file_of_another_run(runs: Path, tmp_path: Path, name: str) -> None:
    run = Path(shutil.copytree(runs / "a", tmp_path / "run"))
    shutil.rmtree(run / name) if (run / name).is_dir() else (run / name).unlink()
    shutil.copytree(runs / "b" / name, run / name) if (runs / "b" / name).is_dir() else shutil.copy(
        runs / "b" / name, run / name
    )
    with pytest.raises(InputError, match=f"{name}: not what run.json tells of: it is damaged, or of another run"):
        Run.open(run)


def test_the_record_or_the_hasher_of_another_run(runs: Path, tmp_path: Path) -> None:
    run = Path(shutil.copytree(runs / "a", tmp_path / "run"))
    shutil.copy(runs / "b" / "run.json", run / "run.json")
    with pytest.raises(InputError, match="not what run.json tells of"):
        Run.open(run)
    shutil.copy(runs / "a" / "run.json", run / "run.json")
    shutil.rmtree(run / "hasher")
    shutil.copytree(runs / "other" / "hasher", run / "hasher")
    with pytest.raises(InputError, match="run/hasher: not the hasher that made the codes of this run"):
        Run.open(run).hasher()


def test_every_bit_of_a_footer_counts(runs: Path, tmp_path: Path) -> None:
    run = Path(shutil.copytree(runs / "a", tmp_path / "run"))
    for name in FILES[1:]:
        whole = (run / name).read_bytes()
        footer = int.from_bytes(whole[-8:-4], "little")
        for at in range(len(whole) - 8 - footer, len(whole), 7):
            damaged = bytearray(whole)
            damaged[at] ^= 1 << (at % 8)
            (run / name).write_bytes(damaged)
            with pytest.raises(InputError, match=name):
                Run.open(run)
        (run / name).write_bytes(whole)
    Run.open(run)


def test_metadata_of_codes(runs: Path, tmp_path: Path) -> None:
    run = Path(shutil.copytree(runs / "a", tmp_path / "run"))
    metadata = run / "codes.zarr" / "zarr.json"
    for old, new in (('"uint64"', '"int64"'), ('"little"', '"big"'), ('"fill_value": 0', '"fill_value": 7')):
        text = metadata.read_text()
        assert old in text
        metadata.write_text(text.replace(old, new))
        with pytest.raises(InputError, match="codes.zarr: not what run.json tells of"):
            Run.open(run)
        metadata.write_text(text)


def test_runs_of_earlier_versions_tell_of_no_files(runs: Path, tmp_path: Path) -> None:
    run = Path(shutil.copytree(runs / "a", tmp_path / "run"))
    meta = read_record(run)
    del meta["files"]
    write_record(run, meta)
    cluster(run, n_clusters=2)
    assert "files" not in Run.open(run).meta


def test_the_digest_is_of_the_name_to_come(runs: Path) -> None:
    path = runs / "a" / "cells.parquet"
    assert digest_of(path, "cells.parquet") == digest_of(path) != digest_of(path, "other")


@pytest.mark.parametrize("name", ["cells.parquet.partial", "run.json.partial", "run.next.json.partial"])
def test_no_link_is_followed(runs: Path, tmp_path: Path, name: str) -> None:
    run = Path(shutil.copytree(runs / "a", tmp_path / "run"))
    (tmp_path / "outside.txt").write_text("mine")
    (run / name).symlink_to("../outside.txt")
    cluster(run, n_clusters=2)
    assert (tmp_path / "outside.txt").read_text() == "mine"
    assert not any(path.is_symlink() for path in run.iterdir())


def test_a_run_that_may_not_be_written_into(runs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plain = Path.open

    def refused(path: Path, mode: str = "r", *args: object, **named: object) -> object:
        if "+" in mode:
            raise PermissionError(13, "Permission denied", str(path))
        return plain(path, mode, *args, **named)  # type: ignore[arg-type, call-overload]

    monkeypatch.setattr(Path, "open", refused)
    with pytest.raises(InputError, match=r"runs./a: this user may not write into this run.*chmod"):
        cluster(runs / "a", n_clusters=2)


def test_metadata_of_codes_while_a_run_is_made(runs: Path, tmp_path: Path) -> None:
    settings = EncodeSettings(partition_rows=1 << 16)
    encode(runs / "a.h5ad", tmp_path / "r", hasher=runs / "a" / "hasher", settings=settings, partition=Partition(0, 2))
    metadata = tmp_path / "r.partial" / "codes.zarr" / "zarr.json"
    whole = metadata.read_bytes()
    for damaged in (b"{", whole.replace(b"uint64", b"int64"), b"\xff" + whole):
        metadata.write_bytes(damaged)
        with pytest.raises(InputError, match=r"codes.zarr/zarr.json: damaged.*Remove .*r.partial to begin anew"):
            encode(runs / "a.h5ad", tmp_path / "r", hasher=runs / "a" / "hasher", settings=settings, resume=True)
    metadata.write_bytes(whole)
    assert finalize(tmp_path / "r").n_cells == 400


def test_deep_json_is_damage(runs: Path, tmp_path: Path, hashstream: Callable[..., Result]) -> None:
    deep = "[" * 100_000 + "]" * 100_000
    for name in ("run.json", "hasher/hasher.json"):
        run = Path(shutil.copytree(runs / "a", tmp_path / name.replace("/", "-")))
        (run / name).write_text(deep)
        result = hashstream("inspect", run / Path(name).parent)
        assert result.exit_code == 1
        assert "damaged" in result.stderr
        assert "defect" not in result.stderr
    (tmp_path / "c.yaml").write_text("[" * 3_000 + "]" * 3_000)
    result = hashstream("--config", tmp_path / "c.yaml", "inspect", runs / "a")
    assert result.exit_code != 0
    assert "defect" not in result.stderr


@pytest.mark.parametrize("value", [None, [], -1, "x", True])
def test_a_provenance_that_is_none(runs: Path, tmp_path: Path, value: object) -> None:
    hasher = Path(shutil.copytree(runs / "a" / "hasher", tmp_path / "hasher"))
    meta = json.loads((hasher / "hasher.json").read_text())
    (hasher / "hasher.json").write_text(json.dumps({**meta, "provenance": value}))
    with pytest.raises(InputError, match="the hasher is damaged .*provenance"):
        encode(runs / "b.h5ad", tmp_path / "run", hasher=hasher)


def test_labels_are_of_the_files_that_were_checked(runs: Path, tmp_path: Path) -> None:
    """A stage replaces cells.parquet and the record of it together, so that the run opens at any time."""
    run = Path(shutil.copytree(runs / "a", tmp_path / "run"))
    before = Run.open(run).meta["files"]
    annotate(run, reference=runs / "b", labels="cell_type")
    after = Run.open(run).meta["files"]
    assert before["cells.parquet"] != after["cells.parquet"]
    assert {name: digest for name, digest in before.items() if name != "cells.parquet"} == {
        name: digest for name, digest in after.items() if name != "cells.parquet"
    }
    assert np.concatenate(list(Run.open(run).cell_buckets())).shape == (400,)
