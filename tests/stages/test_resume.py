"""Partitions, kills and budgets: nothing half-written, nothing lost, the same bytes."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import anndata
import numpy as np
import pytest
import zarr
from click.testing import Result
from numpy.typing import NDArray

from hashstream.atlas import open_atlas
from hashstream.buckets import BucketTable, landmark_rows
from hashstream.errors import InputError, PartialRunError, SettingsError
from hashstream.hashing import Hasher
from hashstream.kernels import encode_rows
from hashstream.runtime.budget import parse_bytes
from hashstream.runtime.files import remove, write_json
from hashstream.runtime.run import CODE_CHUNK_ROWS, Run
from hashstream.stages.encode import encode, finalize
from hashstream.stages.encode_plan import DISTRIBUTED_BYTES, EncodeSettings, Partition
from hashstream.stages.workdir import Part, WorkDir
from tests.processes import interruptible
from tests.stages.test_encode import content

CELLS = 5 * CODE_CHUNK_ROWS // 2
SMALL = EncodeSettings(partition_rows=CODE_CHUNK_ROWS, threads=1, max_buckets=3000)
EACH = replace(SMALL, checkpoint_seconds=0)


@pytest.fixture(scope="module")
def atlas(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three partitions of thin cells."""
    import pandas as pd

    from hashstream.atlas.chunk import CsrChunk
    from hashstream.atlas.write import AtlasWriter

    rng = np.random.default_rng(0)
    path = tmp_path_factory.mktemp("atlas") / "atlas.zarr"
    n_genes, per_cell = 120, 8
    with AtlasWriter(path, n_genes=n_genes, data_dtype="uint8") as writer:
        for start in range(0, CELLS, 1 << 14):
            n = min(1 << 14, CELLS - start)
            genes = np.sort(rng.random((n, n_genes)).argsort(axis=1)[:, :per_cell], axis=1)
            counts = rng.integers(1, 9, genes.shape)
            indptr = np.arange(n + 1, dtype=np.int64) * per_cell
            writer.append(CsrChunk(start, indptr, genes.ravel(), counts.ravel().astype(np.uint8), n_genes))
        writer.finish(obs={"batch": np.arange(CELLS) % 3}, var=pd.DataFrame(index=[f"g{i}" for i in range(n_genes)]))
    return path


@pytest.fixture(scope="module")
def whole(atlas: Path, tmp_path_factory: pytest.TempPathFactory) -> Run:
    run = encode(atlas, tmp_path_factory.mktemp("whole") / "run", settings=SMALL)
    assert run is not None
    return run


def test_partition_size_does_not_matter(atlas: Path, whole: Run, tmp_path: Path) -> None:
    settings = EncodeSettings(partition_rows=2 * CODE_CHUNK_ROWS, threads=2, max_buckets=3000, chunk_rows=9999)
    other = encode(atlas, tmp_path / "run", settings=settings)
    assert other is not None
    assert np.array_equal(other.codes(), whole.codes())
    a, b = content(other.path), content(whole.path)
    for name in ("buckets.parquet", "cells.parquet", "landmarks.parquet", "hasher/hasher.safetensors"):
        assert a[name] == b[name]


@pytest.mark.parametrize("kept", [[range(1), range(1, 2)], [range(2)]])
def test_what_is_kept_when_does_not_matter(
    atlas: Path, whole: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kept: list[range]
) -> None:
    """Killed in the last of three partitions, after a part of each of the others, or one of both."""
    hasher, save = whole.path / "hasher", WorkDir.save_codes
    settings = EACH if len(kept) > 1 else replace(SMALL, checkpoint_seconds=1e-3)

    def die_at_the_last(work: WorkDir, number: int, start: int, codes: NDArray[np.uint64]) -> None:
        save(work, number, start, codes)
        if number == 2:
            raise KeyboardInterrupt

    clock = iter([0.0, 1e-4, 1.0])
    with monkeypatch.context() as patch:
        patch.setattr(WorkDir, "save_codes", die_at_the_last)
        patch.setattr("hashstream.stages.encode_job.time", SimpleNamespace(monotonic=lambda: next(clock, 1.0)))
        with pytest.raises(KeyboardInterrupt):
            encode(atlas, tmp_path / "run", hasher=hasher, settings=settings)
    work = WorkDir.of(tmp_path / "run")
    assert work.parts() == kept
    assert work.missing_parts(range(3)) == [2]
    run = encode(atlas, tmp_path / "run", hasher=hasher, settings=SMALL, resume=True)
    assert run is not None
    assert content(run.path) == content(whole.path)


def test_a_partition_of_two_parts_counts_once(atlas: Path, whole: Run, tmp_path: Path) -> None:
    """As where jobs of arrays of two sizes are mixed: overlapping parts, of which one is left out and made again."""
    hasher, target = whole.path / "hasher", tmp_path / "run"
    work = WorkDir.of(target)
    encode(atlas, target, hasher=hasher, settings=SMALL, partition=Partition(0, 1))
    assert work.parts() == [range(n, n + 1) for n in range(3)]  # each partition of a job is kept
    part = work.part(range(1, 2)).read_bytes()
    table = BucketTable(whole.n_bits, int(whole.meta["n_dims"]), max_buckets=3000, with_halves=True)
    merged = work.merge_parts(table)
    for n in range(3):
        work.part(range(n, n + 1)).unlink()
    work.save_part(range(3), merged)
    assert work.parts() == [range(3)]
    work.part(range(1, 2)).write_bytes(part)
    assert work.parts() == [range(3)]
    (work.path / "parts" / "000000-000002.npz").rename(tmp_path / "aside.npz")
    shutil.copy(tmp_path / "aside.npz", work.path / "parts" / "000001-000003.npz")
    assert (work.parts(), work.missing_parts(range(3))) == ([range(1, 4)], [0])
    (work.path / "parts" / "000001-000003.npz").unlink()
    (tmp_path / "aside.npz").rename(work.path / "parts" / "000000-000002.npz")
    assert content(finalize(target).path) == content(whole.path)


def test_landmarks_have_the_embedding_of_their_cells(atlas: Path, whole: Run) -> None:
    rows, embedding = whole.landmarks()
    assert np.array_equal(rows, landmark_rows(whole.n_cells))
    store = open_atlas(atlas).stores[0]
    bound = whole.hasher().bind(store.var, where=str(atlas))
    for i in range(0, len(rows), len(rows) // 40):
        cell = store.matrix.read_rows(int(rows[i]), int(rows[i]) + 1)
        encoded = encode_rows(cell.indptr, cell.indices, cell.data, bound.genes, bound.weights)
        assert np.array_equal(encoded.embedding[0], embedding[i])
        assert np.array_equal(encoded.codes[0], whole.codes(int(rows[i]), int(rows[i]) + 1)[0])


def test_a_part_without_its_landmarks_is_noticed(atlas: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save = WorkDir.save_part

    def save_less(work: WorkDir, numbers: range, part: Part) -> None:
        save(work, numbers, part._replace(landmarks=part.landmarks[1:]))

    monkeypatch.setattr(WorkDir, "save_part", save_less)
    with pytest.raises(InputError, match=r"the parts hold \d+ landmarks, expected 20000"):
        encode(atlas, tmp_path / "run", settings=EACH)


def test_jobs_of_an_array_make_the_same_run(atlas: Path, whole: Run, tmp_path: Path) -> None:
    target = tmp_path / "run"
    with pytest.raises(SettingsError, match="--partition needs --hasher"):
        encode(atlas, target, settings=SMALL, partition=Partition(0, 2))
    shares = [Partition(1, 2), Partition(0, 2)]
    assert encode(atlas, target, hasher=whole.path / "hasher", settings=SMALL, partition=shares[0]) is None
    with pytest.raises(PartialRunError, match=r"2 of 3 partitions are missing \(0, 2\)") as caught:
        finalize(target)
    assert caught.value.exit_code == 3
    assert not target.exists()
    encode(atlas, target, hasher=whole.path / "hasher", settings=SMALL, partition=shares[1])
    assert content(finalize(target).path) == content(whole.path)
    assert not (tmp_path / "run.partial").exists()
    with pytest.raises(InputError, match="--partition"):
        finalize(tmp_path / "nothing")


@pytest.mark.parametrize("n_removed", [0, 1, 2])
@pytest.mark.parametrize("again", ["finalize", "encode --resume"])
def test_killed_while_it_tidies_up(
    atlas: Path, whole: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, n_removed: int, again: str
) -> None:
    hasher, target = whole.path / "hasher", tmp_path / "run"
    encode(atlas, target, hasher=hasher, settings=SMALL, partition=Partition(0, 1))

    def die_in_between(path: Path) -> None:
        nonlocal n_removed
        if n_removed == 0:
            raise KeyboardInterrupt
        n_removed -= 1
        remove(path)

    with monkeypatch.context() as patch:
        patch.setattr("hashstream.stages.workdir.remove", die_in_between)
        with pytest.raises(KeyboardInterrupt):
            finalize(target)
    assert not target.exists()
    run = finalize(target) if again == "finalize" else encode(atlas, target, hasher=hasher, settings=SMALL, resume=True)
    assert run is not None
    assert content(run.path) == content(whole.path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["run"]


@pytest.mark.parametrize("left", ["run.partial", "run.replaced"])
def test_killed_before_what_it_replaced_was_gone(atlas: Path, whole: Run, tmp_path: Path, left: str) -> None:
    former = encode(atlas, tmp_path / "run", settings=replace(SMALL, max_buckets=500))
    assert former is not None
    former.path.rename(tmp_path / left)
    shutil.copytree(whole.path, tmp_path / "run")
    assert content(finalize(tmp_path / "run", force=True).path) == content(whole.path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["run"]
    with pytest.raises(InputError, match="nothing to merge"):
        finalize(tmp_path / "run", force=True)


def test_a_finished_run_is_not_taken_for_another(
    atlas: Path, whole: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hasher, target = whole.path / "hasher", tmp_path / "run"
    encode(atlas, target, hasher=hasher, settings=SMALL, partition=Partition(0, 1))
    with monkeypatch.context() as patch:
        patch.setattr("hashstream.stages.encode_finish.publish", lambda *paths: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            finalize(target)
    # The jobs of other settings come into the same folder.
    other = replace(SMALL, max_buckets=500)
    encode(atlas, target, hasher=hasher, settings=other, partition=Partition(0, 2))
    with pytest.raises(PartialRunError, match="1 of 3 partitions"):
        finalize(target)
    encode(atlas, target, hasher=hasher, settings=other, partition=Partition(1, 2))
    assert finalize(target).n_buckets <= 500


def test_more_jobs_than_partitions(atlas: Path, whole: Run, tmp_path: Path) -> None:
    for index in range(5):
        encode(atlas, tmp_path / "run", hasher=whole.path / "hasher", settings=SMALL, partition=Partition(index, 5))
    assert content(finalize(tmp_path / "run").path) == content(whole.path)


def test_partition_is_parsed() -> None:
    assert Partition.parse("3/8") == Partition(3, 8)
    for text in ("8/8", "-1/4", "a/b", "3", "0/0"):
        with pytest.raises(SettingsError):
            Partition.parse(text)


def start_encode(atlas: Path, target: Path, *more: str) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "hashstream.cli", "--quiet", "encode", str(atlas), "-o", str(target)]
    command += ["--partition-rows", str(CODE_CHUNK_ROWS), "--threads", "1", "--max-buckets", "3000"]
    command += ["--checkpoint-seconds", "0"]
    return subprocess.Popen([*command, *more], stdout=subprocess.PIPE, stderr=subprocess.PIPE, preexec_fn=interruptible)


def wait_for(condition: Callable[[], bool], process: subprocess.Popen[bytes]) -> None:
    while process.poll() is None and not condition():
        time.sleep(0.002)


@pytest.mark.slow
@pytest.mark.parametrize("moment", ["plan.json", "parts/000000.npz", "parts/000001.npz", "buckets.parquet"])
def test_a_killed_run_resumes_to_the_same_bytes(atlas: Path, whole: Run, tmp_path: Path, moment: str) -> None:
    partial = tmp_path / "run.partial"
    process = start_encode(atlas, tmp_path / "run")
    wait_for(lambda: (partial / moment).exists(), process)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    if not (tmp_path / "run").exists():
        done = {p.name: p.stat().st_mtime_ns for p in (partial / "parts").glob("*.npz")}
        hasher = (partial / "hasher" / "hasher.json").stat().st_mtime_ns
        process = start_encode(atlas, tmp_path / "run", "--resume")
        wait_for(lambda: (partial / "buckets.parquet").exists(), process)
        if (partial / "parts").exists():
            for name, time_ns in done.items():
                assert (partial / "parts" / name).stat().st_mtime_ns == time_ns
        _, error = process.communicate()
        assert process.returncode == 0, error
        assert (tmp_path / "run" / "hasher" / "hasher.json").stat().st_mtime_ns == hasher
    assert content(tmp_path / "run") == content(whole.path)


@pytest.mark.slow
def test_interrupt_exits_130_and_keeps_what_is_done(atlas: Path, whole: Run, tmp_path: Path) -> None:
    process = start_encode(atlas, tmp_path / "run")
    wait_for(lambda: (tmp_path / "run.partial" / "parts" / "000000.npz").exists(), process)
    process.send_signal(signal.SIGINT)
    _, error = process.communicate()
    assert process.returncode == 130
    assert b"Traceback" not in error
    assert (tmp_path / "run.partial" / "parts" / "000000.npz").exists()
    assert encode(atlas, tmp_path / "run", settings=SMALL, resume=True) is not None
    assert content(tmp_path / "run") == content(whole.path)


def interrupted(atlas: Path, target: Path, hasher: Path) -> None:
    """A run of which one partition is done."""
    encode(atlas, target, hasher=hasher, settings=SMALL, partition=Partition(0, 3))


def test_resume_refuses_another_plan(atlas: Path, whole: Run, tmp_path: Path, small_h5ad: Path) -> None:
    target, hasher = tmp_path / "run", whole.path / "hasher"
    interrupted(atlas, target, hasher)
    with pytest.raises(SettingsError, match="max_buckets: was 3000, is 65536"):
        encode(atlas, target, hasher=hasher, settings=EncodeSettings(partition_rows=CODE_CHUNK_ROWS), resume=True)
    with pytest.raises(SettingsError, match="input: was"):
        encode(small_h5ad, target, hasher=Hasher.load(hasher), settings=SMALL_ANY, resume=True)
    other = tmp_path / "other"
    encode(atlas, tmp_path / "x", settings=SMALL, seed=5)
    (tmp_path / "x" / "hasher").rename(other)
    with pytest.raises(SettingsError, match="hasher: was"):
        encode(atlas, target, hasher=other, settings=SMALL, resume=True)
    # What had been done is still there, and the right command goes on.
    assert (tmp_path / "run.partial" / "parts" / "000000.npz").exists()
    run = encode(atlas, target, hasher=hasher, settings=SMALL, resume=True)
    assert run is not None
    assert content(run.path) == content(whole.path)


def test_resume_refuses_an_input_changed_anywhere(atlas: Path, whole: Run, tmp_path: Path) -> None:
    copy, target = tmp_path / "copy.zarr", tmp_path / "run"
    shutil.copytree(atlas, copy)
    interrupted(copy, target, whole.path / "hasher")
    data = zarr.open_array(copy / "X" / "data", mode="r+")
    # Cell 70,001 lies between the rows that the fingerprint looks at.
    at = 70_001 * 8
    data[at : at + 1] = data[at : at + 1] + 1
    with pytest.raises(SettingsError, match=r"input_files\[2\]: was"):
        encode(copy, target, hasher=whole.path / "hasher", settings=SMALL, resume=True)


SMALL_ANY = EncodeSettings(partition_rows=CODE_CHUNK_ROWS, threads=1, max_buckets=3000, min_overlap=0.0)


def test_a_clock_that_went_back_does_not_matter(atlas: Path, whole: Run, tmp_path: Path) -> None:
    interrupted(atlas, tmp_path / "run", whole.path / "hasher")
    later = time.time() + 365 * 24 * 3600
    left = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert left
    for path in left:
        os.utime(path, (later, later))
    run = encode(atlas, tmp_path / "run", hasher=whole.path / "hasher", settings=SMALL, resume=True)
    assert run is not None
    assert content(run.path) == content(whole.path)


def test_what_is_done_is_not_thrown_away_unasked(atlas: Path, whole: Run, tmp_path: Path) -> None:
    interrupted(atlas, tmp_path / "run", whole.path / "hasher")
    with pytest.raises(
        SettingsError, match="partitions of an interrupted run are done there.*--resume, or add --force"
    ):
        encode(atlas, tmp_path / "run", hasher=whole.path / "hasher", settings=SMALL)
    run = encode(atlas, tmp_path / "run", hasher=whole.path / "hasher", settings=SMALL, force=True)
    assert run is not None
    assert content(run.path) == content(whole.path)


def test_what_a_run_killed_at_its_start_left_is_not_mixed_in(atlas: Path, whole: Run, tmp_path: Path) -> None:
    """A hasher without a plan: the earlier run was killed before it had written one."""
    other = encode(atlas, tmp_path / "other", settings=SMALL, seed=5)
    assert other is not None
    for begun in ("again", "shared"):
        left = tmp_path / f"{begun}.partial"
        left.mkdir()
        shutil.copytree(other.path / "hasher", left / "hasher")
    run = encode(atlas, tmp_path / "again", hasher=whole.path / "hasher", settings=SMALL)
    assert run is not None
    assert content(run.path) == content(whole.path)
    encode(atlas, tmp_path / "shared", hasher=whole.path / "hasher", settings=SMALL, partition=Partition(0, 1))
    assert content(finalize(tmp_path / "shared").path) == content(whole.path)


def test_parts_without_a_plan_are_of_no_run(
    atlas: Path, whole: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`finalize` was killed while it tidied up; jobs on another atlas follow, of as many cells."""
    arguments: Any = {"hasher": whole.path / "hasher", "settings": SMALL}
    counts = anndata.read_zarr(atlas)
    anndata.AnnData(counts.X[::-1].copy(), counts.obs, counts.var).write_h5ad(tmp_path / "other.h5ad")
    expected = encode(tmp_path / "other.h5ad", tmp_path / "expected", **arguments)
    encode(atlas, tmp_path / "run", **arguments, partition=Partition(0, 1))
    work = WorkDir.of(tmp_path / "run")
    (work.path / "plan.json").unlink()
    assert work.parts()
    for index in (0, 1):
        encode(tmp_path / "other.h5ad", tmp_path / "run", **arguments, partition=Partition(index, 2))
    assert expected is not None
    assert content(finalize(tmp_path / "run").path) == content(expected.path)


def test_a_damaged_part_is_named(atlas: Path, whole: Run, tmp_path: Path) -> None:
    for index in range(3):
        encode(atlas, tmp_path / "run", hasher=whole.path / "hasher", settings=SMALL, partition=Partition(index, 3))
    part = tmp_path / "run.partial" / "parts" / "000001.npz"
    part.write_bytes(part.read_bytes()[:1000])
    with pytest.raises(InputError, match=r"000001.npz: the part is damaged.*--resume"):
        finalize(tmp_path / "run")
    part.unlink()
    run = encode(atlas, tmp_path / "run", hasher=whole.path / "hasher", settings=SMALL, resume=True)
    assert run is not None
    assert content(run.path) == content(whole.path)


def test_jobs_that_begin_together_have_one_plan(whole: Run, tmp_path: Path) -> None:
    """Neither has seen a plan; whoever comes second has to have the first one's."""
    work = WorkDir(tmp_path)
    plan = {"n_cells": 10, "n_bits": 8, "partition_rows": CODE_CHUNK_ROWS, "max_buckets": 1000}
    work.prepare(plan, whole.hasher(), join=True)
    with pytest.raises(SettingsError, match="max_buckets: was 1000, is 2000"):
        work.prepare(plan | {"max_buckets": 2000}, whole.hasher(), join=True)
    work.prepare(plan, whole.hasher(), join=True)
    assert work.plan() == plan
    assert {path.name for path in tmp_path.iterdir()} == {"plan.json", "codes.zarr", "hasher", "parts", "preparing"}


def test_a_plan_of_an_earlier_version_says_less(tmp_path: Path) -> None:
    work = WorkDir(tmp_path)
    write_json(tmp_path / "plan.json", {"record": {"paths": ["a", "b"]}})
    work._check_plan({"record": {"paths": ["a", "b"], "cell_names": ["x", "y"]}})
    for paths, words in (
        (["a", "c"], r"\(record.paths\[1\]: was b, is c\)"),
        (["a"], "paths: 2 were given, 1 are now"),
    ):
        with pytest.raises(SettingsError, match=words):
            work._check_plan({"record": {"paths": paths, "cell_names": ["x"]}})


def test_whoever_is_at_it_is_named_first(atlas: Path, whole: Run, tmp_path: Path) -> None:
    interrupted(atlas, tmp_path / "run", whole.path / "hasher")
    with WorkDir.of(tmp_path / "run").lock(), pytest.raises(SettingsError, match="another process"):
        encode(atlas, tmp_path / "run", hasher=whole.path / "hasher", settings=SMALL)


def test_many_jobs_begin_together(small_h5ad: Path, whole: Run, tmp_path: Path) -> None:
    hasher = encode(small_h5ad, tmp_path / "alone").path / "hasher"
    code = (
        "import sys\nfrom hashstream.stages.encode import encode\nfrom hashstream.stages.encode_plan import Partition\n"
        "print('up', flush=True); sys.stdin.read(1)\n"
        "encode(sys.argv[1], sys.argv[2], hasher=sys.argv[3], partition=Partition(int(sys.argv[4]), 6))"
    )
    jobs = [
        subprocess.Popen(
            [sys.executable, "-c", code, small_h5ad, tmp_path / "run", hasher, str(i)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for i in range(6)
    ]
    for job in jobs:
        assert job.stdout is not None
        assert job.stdout.readline() == "up\n"
    for job in jobs:
        assert job.stdin is not None
        job.stdin.write("x")
        job.stdin.close()
    for job in jobs:
        assert job.wait(timeout=120) == 0, job.stderr.read() if job.stderr else ""
        for stream in (job.stdout, job.stderr):
            assert stream is not None
            stream.close()
    assert content(finalize(tmp_path / "run").path) == content(tmp_path / "alone")


def test_a_shared_lock_is_on_a_file_that_may_be_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On NFS a shared lock of a file that is open for writing alone is no lock."""
    modes = []
    monkeypatch.setattr(
        "hashstream.stages.workdir.fcntl.flock",
        lambda handle, how: modes.append((handle.readable(), handle.writable())),
    )
    with WorkDir(tmp_path / "a").lock(shared=True), WorkDir(tmp_path / "b").lock():
        assert modes == [(True, True)] * 2


def test_two_processes_on_one_run(atlas: Path, whole: Run, tmp_path: Path) -> None:
    from hashstream.stages.workdir import WorkDir

    with WorkDir.of(tmp_path / "run").lock(), pytest.raises(SettingsError, match="another process"):
        encode(atlas, tmp_path / "run", hasher=whole.path / "hasher", settings=SMALL)


def test_dry_run_tells_and_writes_nothing(atlas: Path, tmp_path: Path, hashstream: Callable[..., Result]) -> None:
    arguments = ("encode", atlas, "-o", tmp_path / "run", "--dry-run", "--partition-rows", CODE_CHUNK_ROWS)
    result = hashstream("--json", *arguments)
    plan = json.loads(result.stdout)
    assert (plan["cells"], plan["partitions"], plan["stored_values"]) == (CELLS, 3, CELLS * 8)
    assert 50 << 20 < plan["projected_peak_bytes"] <= plan["max_memory_bytes"] == 1 << 30
    shared = json.loads(hashstream("--json", *arguments, "--workers", 2).stdout)
    assert shared["projected_parts"]["dask.distributed"] == DISTRIBUTED_BYTES
    longest = json.loads(hashstream("--json", *arguments, "--bits", 256).stdout)
    assert longest["projected_peak_bytes"] <= 1 << 30
    assert list(tmp_path.iterdir()) == []
    assert "GiB" in hashstream(*arguments).stdout


def test_a_budget_that_cannot_be_met_names_one_that_would_do(atlas: Path, tmp_path: Path) -> None:
    def dry(max_memory: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "hashstream.cli", "encode", str(atlas), "-o", str(tmp_path / "run")]
        command += ["--dry-run", "--max-memory", max_memory]
        return subprocess.run(command, capture_output=True, text=True, check=False)

    refused = dry("64MiB")
    assert refused.returncode == 2
    enough = refused.stderr.strip().rsplit("--max-memory ", 1)[1].split()[0]
    assert parse_bytes(enough) > 200 << 20
    assert dry(enough).returncode == 0
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("text", "n"),
    [("1GiB", 2**30), ("500MB", 5 * 10**8), ("2G", 2 * 10**9), ("1.5 kib", 1536), (42, 42), ("2e3", 2000)],
)
def test_sizes(text: str | int, n: int) -> None:
    assert parse_bytes(text) == n


def test_sizes_that_are_none() -> None:
    for text in ("much", "1 parsec", "-3GB", ""):
        with pytest.raises(SettingsError, match="no amount of memory"):
            parse_bytes(text)
    for text in ("1e400", "1e300GiB"):
        with pytest.raises(SettingsError, match="more memory than there can be"):
            parse_bytes(text)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Callable[[str], Path]]:
    """Sizes (first called, then changed) of a disk of its own; gives its folder."""
    if os.geteuid() != 0 or not Path("/proc/mounts").exists():
        pytest.skip("mounting a tmpfs needs root")
    disk = tmp_path / "disk"
    disk.mkdir()

    def resize(size: str) -> Path:
        options = f"remount,size={size}" if os.path.ismount(disk) else f"size={size}"
        command = ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(disk)]
        done = subprocess.run(command, capture_output=True, check=False)
        if done.returncode:
            pytest.skip(f"no tmpfs here: {done.stderr.decode().strip()}")
        return disk

    yield resize
    if os.path.ismount(disk):
        subprocess.run(["umount", str(disk)], check=True)


def expect_full(process: subprocess.Popen[bytes]) -> None:
    _, error = process.communicate()
    assert process.returncode == 3, error
    assert b"no space left" in error
    assert b"Traceback" not in error


@pytest.mark.slow
def test_a_full_disk_is_a_partial_run(atlas: Path, whole: Run, small_disk: Callable[[str], Path]) -> None:
    target = small_disk("1m") / "run"
    expect_full(start_encode(atlas, target, "--hasher", str(whole.path / "hasher")))
    assert not target.exists()
    small_disk("100m")
    process = start_encode(atlas, target, "--hasher", str(whole.path / "hasher"), "--resume")
    _, error = process.communicate()
    assert process.returncode == 0, error
    assert content(target) == content(whole.path)


@pytest.mark.slow
def test_a_full_disk_is_a_partial_ingest(atlas: Path, tmp_path: Path, small_disk: Callable[[str], Path]) -> None:
    def start(target: Path, *more: str) -> subprocess.Popen[bytes]:
        command = [sys.executable, "-m", "hashstream.cli", "--quiet", "ingest", str(atlas), str(target), *more]
        return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, preexec_fn=interruptible)

    start(tmp_path / "whole.zarr").communicate()
    assert (tmp_path / "whole.zarr").is_dir()
    target = small_disk("1m") / "atlas.zarr"
    expect_full(start(target))
    assert not target.exists()
    small_disk("100m")
    process = start(target, "--resume")
    _, error = process.communicate()
    assert process.returncode == 0, error
    assert files(target) == files(tmp_path / "whole.zarr")


def files(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}
