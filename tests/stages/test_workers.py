"""Partitions on the workers of a cluster: the bytes of one process, whoever dies."""

from __future__ import annotations

import json
import logging
import os
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from click.testing import Result

from hashstream.errors import InputError, MissingDependencyError, PartialRunError, SettingsError
from hashstream.runtime.run import CODE_CHUNK_ROWS, Run
from hashstream.stages import distribute_clients
from hashstream.stages.append import append
from hashstream.stages.distribute import ClusterSettings
from hashstream.stages.encode import encode
from hashstream.stages.encode_plan import DISTRIBUTED_BYTES, Partition
from hashstream.stages.workdir import WorkDir
from tests.stages.test_append import Notes
from tests.stages.test_encode import content
from tests.stages.thin_atlas import SMALL, write_thin_atlas
from tests.stages.worker_faults import blind, die_at

distributed = pytest.importorskip("distributed", reason="dask.distributed is not installed")

CELLS = 5 * CODE_CHUNK_ROWS // 2


@pytest.fixture(scope="module")
def atlas(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three partitions."""
    return write_thin_atlas(tmp_path_factory.mktemp("atlas") / "atlas.zarr", CELLS)


@pytest.fixture(scope="module")
def whole(atlas: Path, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """What one process makes of it."""
    run = encode(atlas, tmp_path_factory.mktemp("whole") / "run", settings=SMALL)
    assert run is not None
    return run


@pytest.fixture(scope="module")
def cluster() -> Iterator[Any]:
    """Two workers in processes of their own, and a scheduler that gives a partition three more tries."""
    with distributed.LocalCluster(
        n_workers=2,
        threads_per_worker=1,
        dashboard_address="127.0.0.1:0",
        memory_limit=0,
        silence_logs=logging.CRITICAL,
    ) as started:
        yield started


@pytest.fixture
def scheduler(cluster: Any) -> ClusterSettings:
    return ClusterSettings(scheduler=cluster.scheduler_address)


@pytest.fixture
def client(cluster: Any) -> Iterator[Any]:
    with distributed.Client(cluster, set_as_default=False) as connected:
        connected.wait_for_workers(1)
        yield connected


def test_same_bytes_and_a_record_of_each_worker(
    atlas: Path, whole: Run, tmp_path: Path, scheduler: ClusterSettings
) -> None:
    listener = Notes()
    # Without a hasher it is fitted once, here.
    run = encode(atlas, tmp_path / "run", settings=SMALL, cluster=scheduler, progress=listener)
    assert run is not None
    assert content(run.path) == content(whole.path)
    assert listener.cells == CELLS
    record = json.loads((run.path / "run.json").read_text())["workers"]
    assert record["scheduler"] == scheduler.scheduler
    assert record["number"] == 2
    assert sum(one["cells"] for one in record["processes"]) == CELLS
    assert sum(one["partitions"] for one in record["processes"]) == 3
    assert {one["host"] for one in record["processes"]} == {socket.gethostname()}
    assert os.getpid() not in {one["pid"] for one in record["processes"]}
    assert 1e8 < record["peak_rss_bytes"] <= run.meta["projected_peak_bytes"]
    assert run.meta["projected_peak_bytes"] == whole.meta["projected_peak_bytes"] + DISTRIBUTED_BYTES
    assert whole.meta["workers"] is None


def test_append_on_a_cluster(whole: Run, tmp_path: Path, scheduler: ClusterSettings) -> None:
    stores = [
        write_thin_atlas(tmp_path / f"{cells}.zarr", cells, seed=cells) for cells in (1000, CODE_CHUNK_ROWS + 1000)
    ]
    both = encode(stores, tmp_path / "both", hasher=whole.hasher(), settings=SMALL)
    assert encode(stores[0], tmp_path / "run", hasher=whole.hasher(), settings=SMALL) is not None
    assert both is not None
    assert content(append(stores[1], tmp_path / "run", cluster=scheduler).path) == content(both.path)


def test_a_worker_that_does_not_see_the_input_is_named(
    atlas: Path, whole: Run, tmp_path: Path, scheduler: ClusterSettings, client: Any
) -> None:
    client.run(blind, "a.zarr: no such file")
    try:
        with pytest.raises(InputError, match=f"worker on host {socket.gethostname()}: a.zarr: no such file"):
            encode(atlas, tmp_path / "run", hasher=whole.hasher(), settings=SMALL, cluster=scheduler)
    finally:
        client.run(blind, None)
    assert list(tmp_path.iterdir()) == []


def test_what_a_worker_checks(atlas: Path, whole: Run, tmp_path: Path) -> None:
    from hashstream.stages.distribute_worker import EncodePlugin, RemoteJob

    encode(atlas, tmp_path / "run", hasher=whole.hasher(), settings=SMALL, partition=Partition(0, 3))
    work = WorkDir.of(tmp_path / "run")
    good = RemoteJob(
        name="job",
        sources=(str(atlas),),
        layer=None,
        fingerprint=whole.meta["input"]["fingerprint"],
        work=str(work.path),
        plan_digest=work.digest(),
        settings=SMALL,
        chunk_bytes=1 << 20,
        first_row=0,
        threads=None,
    )

    def check(**change: Any) -> None:
        plugin = EncodePlugin(replace(good, **change))
        plugin.setup(SimpleNamespace(state=SimpleNamespace(nthreads=1)))
        plugin.check()

    check()
    for change, message in (
        ({"work": str(tmp_path / "elsewhere")}, "not the folder that the client sees"),
        ({"plan_digest": "0" * 64}, "not the folder that the client sees"),
        ({"sources": (str(tmp_path / "gone.zarr"),)}, "gone.zarr: no such file"),
        ({"fingerprint": "0" * 64}, "not the same content as on the client"),
    ):
        with pytest.raises(InputError, match=f"the worker on host {socket.gethostname()}: .*{message}"):
            check(**change)


def test_what_belongs_to_a_given_up_run_is_not_kept(atlas: Path, whole: Run, tmp_path: Path) -> None:
    """A worker taken for dead comes back after the run was begun anew with another plan."""
    encode(atlas, tmp_path / "run", hasher=whole.hasher(), settings=SMALL, partition=Partition(1, 3))
    work = WorkDir.of(tmp_path / "run")
    shard = work.shard(1).read_bytes()
    late = WorkDir(work.path, expected="0" * 64)
    with pytest.raises(InputError, match="another run is made here by now"):
        late.save_codes(1, CODE_CHUNK_ROWS, np.zeros((CODE_CHUNK_ROWS, 1), np.uint64))
    assert work.shard(1).read_bytes() == shard
    assert not list(work.path.glob("codes-*"))


@pytest.mark.parametrize("address", ["tcp://127.0.0.1:9", "nonsense"])
def test_a_scheduler_that_does_not_answer(
    atlas: Path, whole: Run, tmp_path: Path, address: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(distribute_clients, "CONNECT_S", 0.3)
    with pytest.raises(SettingsError, match=f"--scheduler {address}: no dask scheduler answers"):
        encode(
            atlas, tmp_path / "run", hasher=whole.hasher(), settings=SMALL, cluster=ClusterSettings(scheduler=address)
        )
    assert list(tmp_path.iterdir()) == []


def test_settings_that_exclude_each_other(atlas: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(SettingsError, match="give one of them"):
        ClusterSettings(2, "tcp://host:8786")
    with pytest.raises(SettingsError, match="--workers is -1"):
        ClusterSettings(-1)
    with pytest.raises(SettingsError, match="--partition does one share"):
        encode(atlas, tmp_path / "run", settings=SMALL, partition=Partition(0, 2), cluster=ClusterSettings(2))
    monkeypatch.setitem(sys.modules, "distributed", None)
    with pytest.raises(MissingDependencyError, match="cluster-jobs"):
        encode(atlas, tmp_path / "run", settings=SMALL, cluster=ClusterSettings(2))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_workers_of_the_command_line(
    atlas: Path, whole: Run, tmp_path: Path, hashstream: Callable[..., Result]
) -> None:
    arguments = ("encode", atlas, "-o", tmp_path / "run", "--hasher", whole.path / "hasher")
    options = ("--partition-rows", CODE_CHUNK_ROWS, "--max-buckets", 3000, "--threads", 2)
    done = hashstream(*arguments, *options, "--workers", 2)
    assert done.exit_code == 0, done.stderr
    assert content(tmp_path / "run") == content(whole.path)
    assert Run.open(tmp_path / "run").meta["workers"]["workers"] == 2


def test_a_killed_worker_is_survived(
    atlas: Path, whole: Run, tmp_path: Path, scheduler: ClusterSettings, client: Any
) -> None:
    victim = min(client.nthreads())
    client.run(die_at, "_flush", workers=[victim])  # its codes are written, but not under their name
    run = encode(atlas, tmp_path / "run", hasher=whole.hasher(), settings=SMALL, cluster=scheduler)
    assert run is not None
    assert content(run.path) == content(whole.path)
    assert victim not in client.nthreads()


def test_workers_that_die_again_and_again_leave_what_is_done(
    atlas: Path, whole: Run, tmp_path: Path, scheduler: ClusterSettings, client: Any
) -> None:
    def allow(failures: int) -> None:
        def change(dask_scheduler: Any) -> None:
            dask_scheduler.allowed_failures = failures

        client.run_on_scheduler(change)

    encode(atlas, tmp_path / "run", hasher=whole.hasher(), settings=SMALL, partition=Partition(0, 3))
    client.run(die_at, "save_part", after=True)
    allow(0)
    with pytest.raises(PartialRunError, match=r"its worker died.*memory.*--resume"):
        encode(atlas, tmp_path / "run", hasher=whole.hasher(), settings=SMALL, cluster=scheduler, resume=True)
    allow(3)
    listener = Notes()
    run = encode(atlas, tmp_path / "run", hasher=whole.hasher(), settings=SMALL, resume=True, progress=listener)
    assert run is not None
    assert content(run.path) == content(whole.path)
    assert (
        listener.cells < CELLS - CODE_CHUNK_ROWS
    )  # neither the first partition, nor the one after which a worker died


STAND_IN = """#!/bin/bash
echo "$(basename "$0") $*" >> "$LOG"
[[ "$(basename "$0")" == sbatch ]] || exit 0
for argument in "$@"; do
  if [[ "$argument" == --array=0-* ]]; then
    for i in $(seq 0 "${argument#--array=0-}"); do SLURM_ARRAY_TASK_ID=$i bash "${@: -1}"; done
  fi
  [[ "$argument" != hashstream* ]] || bash -c "$argument"
done
echo 77
"""


def test_the_script_for_slurm(tmp_path: Path) -> None:
    """`sbatch` does at once what it is given; what `hashstream` is asked for are commands that it knows."""
    from importlib.resources import files

    from hashstream.cli.main import cli

    for name in ("sbatch", "hashstream"):
        (tmp_path / name).write_text(STAND_IN)
        (tmp_path / name).chmod(0o755)
    script, log = str(files("hashstream.configs") / "slurm-array.sh"), tmp_path / "log"
    environment = {"PATH": f"{tmp_path}:{os.environ['PATH']}", "LOG": str(log)}
    command = ["bash", script, "/x/bob's a.zarr", "/x/run/", "3"]
    subprocess.run(command, env=environment, check=True, capture_output=True)
    lines = [line.replace("bob's a", "bob") for line in log.read_text().splitlines()]
    asked = [line.split()[1:] for line in lines if line.startswith("hashstream")]
    assert all("/x/bob.zarr" in command for command in asked[:4])
    assert asked[0][-1] == asked[1][asked[1].index("--hasher") + 1] == "/x/run.hasher"
    assert [command[0] for command in asked] == ["fit", "encode", "encode", "encode", "finalize"]
    shares = [command[command.index("--partition") + 1] for command in asked[1:4]]
    assert shares == ["0/3", "1/3", "2/3"]
    assert [Partition.parse(share).number for share in shares] == [3, 3, 3]
    for command in asked:
        cli.commands[command[0]].make_context(command[0], list(command[1:]))
    submitted = [line for line in log.read_text().splitlines() if line.startswith("sbatch")]
    assert [line.count("--dependency=") for line in submitted] == [0, 1, 1]
    assert "--dependency=afterok:77" in submitted[1]
    assert "--dependency=afterany:77" in submitted[2]
    log.unlink()
    for jobs in ("0", "-1", "abc", "2.5"):
        refused = subprocess.run(
            ["bash", script, "/x/a.zarr", "/x/run", jobs], env=environment, capture_output=True, text=True
        )
        assert (refused.returncode, log.exists()) == (2, False)
        assert f"JOBS is {jobs}; expected a whole number" in refused.stderr
