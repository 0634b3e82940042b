"""Stages that meet in one run or one reference: each result is of what was read, or is not written."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from hashstream.errors import InputError, PartialRunError, SettingsError
from hashstream.runtime.folder_lock import FolderLock
from hashstream.runtime.run import Run
from hashstream.runtime.run_lock import hold_run
from hashstream.runtime.run_stages import MAJORITY_FREQUENCIES
from hashstream.stages.annotate import annotate
from hashstream.stages.cluster import cluster
from hashstream.stages.encode import encode, finalize
from hashstream.stages.majority import majority_labels
from hashstream.stages.reference import add_to_reference, build_reference
from hashstream.stages.trajectory import trajectory
from tests.runs import note_stage


@pytest.fixture
def run(small_h5ad: Path, tmp_path: Path) -> Run:
    made = encode(small_h5ad, tmp_path / "run")
    assert made is not None
    cluster(made, n_clusters=3)
    annotate(made, reference=made, labels="cell_type")
    return Run.open(made.path)


def column(run: Path, name: str) -> np.ndarray:
    parts = [batch.column(0).to_numpy(zero_copy_only=False) for batch in Run.open(run).iter_cells([name])]
    return np.concatenate(parts)


@pytest.mark.parametrize(
    ("stage", "where"),
    [
        (lambda run: trajectory(run, root="0", by="cluster"), "hashstream.stages.trajectory.diffusion_coordinates"),
        (lambda run: majority_labels(run), "hashstream.stages.majority.consensus_labels"),
    ],
)
def test_clusters_that_change_meanwhile(
    run: Run, monkeypatch: pytest.MonkeyPatch, stage: Callable[[Run], Any], where: str
) -> None:
    module, name = where.rsplit(".", 1)
    original = getattr(__import__(module, fromlist=[name]), name)

    def cluster_first(*arguments: Any, **named: Any) -> Any:
        cluster(run.path, n_clusters=4)
        return original(*arguments, **named)

    monkeypatch.setattr(where, cluster_first)
    with pytest.raises(InputError, match="`hashstream cluster` has changed the run meanwhile"):
        stage(run)
    now = Run.open(run.path)
    assert set(now.meta["stages"]) == {"cluster", "annotate"}
    assert not {"pseudotime", "label_majority"} & set(now.cell_columns())
    assert not (run.path / MAJORITY_FREQUENCIES).exists()
    assert len(np.unique(column(run.path, "cluster"))) == 4
    monkeypatch.undo()
    stage(now)
    assert len(Run.open(run.path).meta["stages"]) == 3


def test_what_a_stage_drops_is_said(run: Run) -> None:
    majority_labels(run)
    trajectory(Run.open(run.path), root="0", by="cluster")
    assert (run.path / MAJORITY_FREQUENCIES).is_file()
    record = cluster(run.path, n_clusters=4)
    assert record["dropped"] == ["label_majority", "pseudotime"]
    assert Run.open(run.path).meta["stages"]["cluster"]["dropped"] == ["label_majority", "pseudotime"]
    assert not (run.path / MAJORITY_FREQUENCIES).exists()
    with pytest.raises(InputError, match=r"annotate .*run \(--hasher .* --majority`"):
        Run.open(run.path).require("label_majority")
    assert "dropped" not in cluster(run.path, n_clusters=3)


def test_a_file_that_a_killed_stage_left_goes(run: Run) -> None:
    (run.path / MAJORITY_FREQUENCIES).write_text("left")
    cluster(run.path, n_clusters=4)
    assert not (run.path / MAJORITY_FREQUENCIES).exists()
    majority_labels(Run.open(run.path))
    trajectory(Run.open(run.path), root="0", by="cluster")
    assert (run.path / MAJORITY_FREQUENCIES).is_file()


def test_pseudotime_goes_with_majority_labels(run: Run) -> None:
    root = next(iter(majority_labels(run)["cells"]))
    trajectory(Run.open(run.path), root=root, by="label_majority")
    record = cluster(run.path, n_clusters=4)
    assert record["dropped"] == ["label_majority", "pseudotime"]
    assert "pseudotime" not in Run.open(run.path).cell_columns()
    assert "trajectory" not in Run.open(run.path).meta["stages"]


def test_a_run_into_which_a_stage_writes_is_not_replaced(run: Run, small_h5ad: Path) -> None:
    before = column(run.path, "cluster")
    with hold_run(run.path, run.meta), pytest.raises(PartialRunError, match=r"finalize .*run --force"):
        encode(small_h5ad, run.path, force=True)
    assert np.array_equal(column(run.path, "cluster"), before)
    made = finalize(run.path, force=True)
    assert made.meta["stages"] == {}
    assert "cluster" not in Run.open(run.path).cell_columns()
    assert not run.path.with_name("run.partial").exists()
    with pytest.raises(InputError, match="replaced by another one"):
        note_stage(run, "cluster", {})


def test_one_process_at_a_time_adds_to_a_reference(run: Run, small_h5ad: Path, tmp_path: Path) -> None:
    build_reference([run], tmp_path / "database", labels="cell_type")
    more = encode(small_h5ad, tmp_path / "more", hasher=run.path / "hasher")
    assert more is not None
    lock = FolderLock(tmp_path / "database.partial")
    with pytest.raises(SettingsError, match="another process is writing here"):
        add_to_reference(tmp_path / "database", [more])
    lock.release()
    with pytest.raises(InputError, match="already"):  # the same cells
        add_to_reference(tmp_path / "database", [more])
    assert not (tmp_path / "database.partial").exists()
