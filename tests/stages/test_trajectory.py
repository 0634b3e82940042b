"""Stage `trajectory`: pseudotime follows a simulated differentiation, and groups are joined as it leads."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import anndata
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
from click.testing import CliRunner, Result
from numpy.typing import NDArray
from scipy.stats import spearmanr

from hashstream.buckets import Landmarks, landmark_rows
from hashstream.cli import cli
from hashstream.downstream.trajectory import (
    diffusion_coordinates,
    group_connectivity,
    neighbour_graph,
    pieces,
    pseudotime,
    tree_of_groups,
)
from hashstream.errors import InputError, SettingsError, TargetExistsError
from hashstream.runtime.record import read_record
from hashstream.runtime.run import Run
from hashstream.stages import trajectory as stage
from hashstream.stages.annotate import annotate
from hashstream.stages.cluster import cluster
from hashstream.stages.encode import encode
from hashstream.stages.export import export
from hashstream.stages.trajectory import trajectory
from tests.synthetic import make_adata

N_GENES = 150
LARGE, APART = 21_000, 300  # more cells than there are landmarks


def fork(n_cells: int, *, apart: int = 0, seed: int = 0) -> anndata.AnnData:
    """Cells along a stem (time 0 to 1) that forks into two branches (1 to 2), and some that have nothing to do with it.

    Each stretch has 40 genes of its own, which rise along it.
    """
    rng = np.random.default_rng(seed)
    branch = rng.integers(0, 3, n_cells)
    within = rng.uniform(0, 1, n_cells)
    log_rate = np.zeros((n_cells, N_GENES))
    for i in range(3):
        done = np.where(branch == i, within, 0.0)
        if i == 0:
            done[branch > 0] = 1.0
        log_rate[:, 40 * i : 40 * i + 40] = 3.0 * np.sqrt(done)[:, None]
    branch = np.concatenate([branch, np.full(apart, 3)])
    other = np.full((apart, N_GENES), -4.0)
    other[:, 120:] = 4.0
    rate = np.exp(np.concatenate([log_rate, other]))
    counts = rng.poisson(rate / rate.sum(axis=1, keepdims=True) * rng.lognormal(np.log(1500), 0.2, (len(rate), 1)))
    names = pd.Categorical(np.array(["stem", "left", "right", "apart"])[branch])
    time = np.concatenate([within + (branch[:n_cells] > 0), np.full(apart, np.nan)])
    obs = pd.DataFrame({"branch": names, "time": time}, index=[f"c{i}" for i in range(len(rate))])
    var = pd.DataFrame(index=[f"g{i:03d}" for i in range(N_GENES)])
    return anndata.AnnData(sp.csr_matrix(counts.astype(np.float32)), obs=obs, var=var)


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of 900 cells along the fork."""
    folder = tmp_path_factory.mktemp("trajectory")
    cells = fork(900)
    cells.obs["tip"] = pd.Categorical(
        np.select([cells.obs["time"] > 1.7, cells.obs["time"] > 0.7], ["tips", "fork"], "stem")
    )
    cells.write_h5ad(folder / "a.h5ad")
    encode(folder / "a.h5ad", folder / "run")
    return folder / "run"


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of more cells than there are landmarks; 300 of them lie apart, and three that are no landmarks are rare."""
    folder = tmp_path_factory.mktemp("trajectory")
    adata = fork(LARGE - APART, apart=APART)
    others = np.setdiff1d(np.arange(LARGE - APART), landmark_rows(LARGE))
    first = others[np.argsort(adata.obs["time"].to_numpy()[others])[:3]]
    adata.obs["rare"] = pd.Categorical(np.where(np.isin(np.arange(LARGE), first), "first cells", None))
    adata.write_h5ad(folder / "a.h5ad")
    encode(folder / "a.h5ad", folder / "run")
    return folder / "run"


def obs_of(run: Path) -> pd.DataFrame:
    return anndata.read_h5ad(run.parent / "a.h5ad").obs


def times_of(run: Path) -> NDArray[np.float32]:
    return pd.read_parquet(run / "cells.parquet")["pseudotime"].to_numpy()


def along(times: NDArray[np.float32], obs: pd.DataFrame, branch: str) -> float:
    """Spearman's correlation of pseudotime and time on the way to the end of a branch."""
    cells = obs["branch"].isin(["stem", branch]).to_numpy()
    return float(spearmanr(times[cells], obs["time"].to_numpy()[cells]).statistic)


def test_pseudotime_follows_time(small: Path) -> None:
    found = trajectory(small, root="stem", by="branch")
    obs, times = obs_of(small), times_of(small)
    assert times.dtype == np.float32
    assert times.min() >= 0
    assert times.max() == 1
    first = int(obs["time"].argmin())
    from_cell = trajectory(small, root_cell=first, by="branch")
    times = times_of(small)
    assert times[first] == 0
    assert min(along(times, obs, "left"), along(times, obs, "right")) > 0.95
    assert from_cell["groups"][0]["group"] == "stem"
    for result in (found, from_cell):
        assert {(edge["from"], edge["to"]) for edge in result["tree"]} == {("stem", "left"), ("stem", "right")}
        assert result["cells_unreached"] == 0
    for group in from_cell["groups"]:
        own = times[(obs["branch"] == group["group"]).to_numpy()]
        assert group["cells"] == len(own)
        quartiles = [group["lower"], group["median"], group["upper"]]
        np.testing.assert_allclose(quartiles, np.quantile(own, (0.25, 0.5, 0.75)), atol=1e-4)
    assert Run.open(small).meta["stages"]["trajectory"] == from_cell


def test_a_root_that_others_lie_before_is_said(small: Path, hashstream: Callable[..., Result]) -> None:
    """Cells of two ends have a mean between them."""
    assert trajectory(small, root="stem", by="branch")["groups_before_the_root"] == []
    result = hashstream("trajectory", small, "--root", "tips", "--by", "tip")
    assert Run.open(small).meta["stages"]["trajectory"]["groups_before_the_root"] == ["fork"]
    assert "the median of 'fork' is earlier than that of the root 'tips'" in result.stderr


def test_the_root_is_the_mean_of_its_group(small: Path) -> None:
    """Neither an outlier of the group nor one of its cells is taken."""
    trajectory(small, root="stem", by="branch")
    times, obs = times_of(small), obs_of(small)
    stem = (obs["branch"] == "stem").to_numpy()
    assert np.median(times[stem]) < min(np.median(times[(obs["branch"] == b).to_numpy()]) for b in ("left", "right"))
    middle = np.abs(obs["time"].to_numpy()[stem] - 0.5) < 0.2
    assert times[stem][middle].mean() < times[stem][~middle].mean()


def test_clusters_are_the_groups_where_none_are_named(small: Path, tmp_path: Path) -> None:
    shutil.copytree(small, tmp_path / "run")
    with pytest.raises(InputError, match="no 'cluster' yet"):
        trajectory(tmp_path / "run", root="0")
    cells_alone = trajectory(tmp_path / "run", root_cell=4)
    assert (cells_alone["by"], cells_alone["groups"], cells_alone["tree"]) == (None, [], [])
    assert times_of(tmp_path / "run")[4] == 0
    cluster(tmp_path / "run", n_clusters=5)
    found = trajectory(tmp_path / "run", root="2")
    assert found["by"] == "cluster"
    assert found["groups"][0]["group"] == "2"
    assert len(found["tree"]) == 4
    seen = {"2"}
    for edge in found["tree"]:  # each comes from a group that was reached before
        assert edge["from"] in seen
        seen.add(edge["to"])
    assert seen == set("01234")


def test_pseudotime_goes_with_the_groups_that_it_was_made_from(small: Path, tmp_path: Path) -> None:
    shutil.copytree(small, tmp_path / "run")
    cluster(tmp_path / "run", n_clusters=4)
    annotate(tmp_path / "run", reference=small, labels="branch")
    for by in ("branch", "label", "cluster"):
        trajectory(tmp_path / "run", root="0" if by == "cluster" else "stem", by=by)
        cluster(tmp_path / "run", n_clusters=3)
        run = Run.open(tmp_path / "run")
        assert ("pseudotime" in run.cell_columns()) == (by != "cluster")
        assert ("trajectory" in run.meta["stages"]) == (by != "cluster")
    trajectory(tmp_path / "run", root="stem", by="label")
    annotate(tmp_path / "run", reference=small, labels="branch")
    run = Run.open(tmp_path / "run")
    assert "pseudotime" not in run.cell_columns()
    assert set(run.meta["stages"]) == {"cluster", "annotate"}


def test_unknown_is_no_group(small: Path, tmp_path: Path) -> None:
    shutil.copytree(small, tmp_path / "run")
    annotate(tmp_path / "run", reference=small, labels="branch", unknown_threshold=0.9)
    labels = pd.read_parquet(tmp_path / "run" / "cells.parquet")["label"]
    assert 0 < (labels == "unknown").sum() < 900
    found = trajectory(tmp_path / "run", root="stem")
    assert found["by"] == "label"
    assert {group["group"]: group["cells"] for group in found["groups"]} == {
        name: (labels == name).sum() for name in ("stem", "left", "right")
    }
    assert not np.isnan(times_of(tmp_path / "run")).any()
    with pytest.raises(SettingsError, match="its cells are in no group"):
        trajectory(tmp_path / "run", root="unknown")


def test_cells_that_are_no_landmarks_follow_their_buckets(large: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    obs = obs_of(large)
    first = int(obs["time"].argmin())
    found = trajectory(large, root_cell=first, by="branch")
    times = times_of(large)
    others = np.setdiff1d(np.arange(LARGE - APART), landmark_rows(LARGE))
    assert len(others) > 900
    assert min(along(times[others], obs.iloc[others], b) for b in ("left", "right")) > 0.85
    apart = (obs["branch"] == "apart").to_numpy()
    assert np.isnan(times[apart]).all()
    assert not np.isnan(times[~apart]).any()
    assert found["cells_unreached"] == APART
    assert found["groups"][-1] == {"group": "apart", "cells": APART, "lower": None, "median": None, "upper": None}
    assert {(edge["from"], edge["to"]) for edge in found["tree"]} == {("stem", "left"), ("stem", "right")}
    monkeypatch.setattr(stage, "available_threads", lambda: 1)
    trajectory(large, root_cell=first, by="branch")
    np.testing.assert_array_equal(times_of(large), times)


def test_landmarks_have_their_own_times_and_other_cells_the_mean_of_those_nearest_to_their_bucket(
    small: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = Run.open(small)
    few = Landmarks(*(values[::2] for values in run.landmarks()))
    monkeypatch.setattr(Run, "landmarks", lambda self: few)
    root = int(few.rows[obs_of(small)["time"].to_numpy()[few.rows].argmin()])
    trajectory(run, root_cell=root, by="branch")
    times = times_of(small)
    assert times[root] == 0
    assert times[few.rows].max() == 1
    others = np.setdiff1d(np.arange(run.n_cells), few.rows)
    means = run.tokens().means[np.concatenate(list(run.cell_buckets()))[others]]
    distances = np.linalg.norm(means[:, None, :50].astype(np.float64) - few.embedding[:, :50], axis=2)
    expected = times[few.rows][np.argsort(distances, axis=1)[:, :15]].mean(axis=1)
    np.testing.assert_allclose(times[others], expected, rtol=1e-5)


def test_a_root_without_landmarks_is_found_by_its_buckets(large: Path) -> None:
    found = trajectory(large, root="first cells", by="rare")
    obs, times = obs_of(large), times_of(large)
    assert min(along(np.nan_to_num(times), obs, branch) for branch in ("left", "right")) > 0.85
    assert found["groups"][0] == {"group": "first cells", "cells": 3} | {
        name: pytest.approx(value, abs=1e-4)
        for name, value in zip(
            ("lower", "median", "upper"),
            np.quantile(times[(obs["rare"] == "first cells").to_numpy()], (0.25, 0.5, 0.75)),
            strict=True,
        )
    }


def test_a_note_tells_of_cells_that_are_not_reached(large: Path) -> None:
    ran = CliRunner().invoke(cli, ["trajectory", str(large), "--root", "apart", "--by", "branch"])
    assert ran.exit_code == 0
    assert "no path of the graph joins 20,700 of 21,000 cells to the root" in ran.stderr
    assert np.isnan(times_of(large)).sum() == LARGE - APART


def test_connections_are_written(small: Path, tmp_path: Path) -> None:
    tables = []
    for target in (tmp_path / "t.csv", tmp_path / "t.parquet"):
        found = trajectory(small, root="stem", by="branch", target=target)
        assert found["path"] == str(target)
        tables.append(pd.read_csv(target) if target.suffix == ".csv" else pd.read_parquet(target))
        with pytest.raises(TargetExistsError):
            trajectory(small, root="stem", by="branch", target=target)
        trajectory(small, root="stem", by="branch", target=target, force=True)
    pd.testing.assert_frame_equal(*tables, check_dtype=False)
    table = tables[1]
    order = [group["group"] for group in found["groups"]]
    assert all(order.index(a) < order.index(b) for a, b in zip(table["group_a"], table["group_b"], strict=True))
    of_tree = {frozenset((edge["from"], edge["to"])): edge["connectivity"] for edge in found["tree"]}
    for row in table.itertuples():
        assert row.in_tree == (frozenset((row.group_a, row.group_b)) in of_tree)
        if row.in_tree:
            assert round(row.connectivity, 4) == of_tree[frozenset((row.group_a, row.group_b))]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["t.csv", "t.parquet"]


def test_pseudotime_is_exported(small: Path, tmp_path: Path) -> None:
    trajectory(small, root="stem", by="branch")
    export(small, tmp_path / "out.h5ad", counts=False)
    np.testing.assert_array_equal(anndata.read_h5ad(tmp_path / "out.h5ad").obs["pseudotime"], times_of(small))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({}, "either --root GROUP or --root-cell ROW"),
        ({"root": "stem", "root_cell": 3}, "either --root GROUP or --root-cell ROW"),
        ({"root": "trunk", "by": "branch"}, "'trunk': no such group; there are 'left', 'right', 'stem'"),
        ({"root_cell": 900}, "the cells of .* are 0 to 899"),
        ({"root_cell": -1}, "the cells of .* are 0 to 899"),
        ({"root": "stem", "by": "branch", "target": "t.txt"}, r"ends in .parquet or .csv"),
        ({"root": "stem", "by": "pseudotime"}, "holds numbers"),
    ],
)
def test_wrong_settings_are_refused(small: Path, arguments: dict, message: str) -> None:
    trajectory(small, root="stem", by="branch")
    before = (small / "cells.parquet").read_bytes()
    with pytest.raises(SettingsError, match=message):
        trajectory(small, **arguments)
    assert (small / "cells.parquet").read_bytes() == before


def test_too_few_cells_and_too_many_groups(tmp_path: Path, small: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fork(3)[:2].copy().write_h5ad(tmp_path / "two.h5ad")
    encode(tmp_path / "two.h5ad", tmp_path / "two", hasher=small / "hasher")
    with pytest.raises(InputError, match="2 cells have no trajectory; expected at least 3"):
        trajectory(tmp_path / "two", root_cell=0)
    fork(3).write_h5ad(tmp_path / "three.h5ad")
    encode(tmp_path / "three.h5ad", tmp_path / "three", hasher=small / "hasher")
    trajectory(tmp_path / "three", root_cell=1)
    assert times_of(tmp_path / "three")[1] == 0
    monkeypatch.setattr(stage, "MOST_GROUPS", 2)
    with pytest.raises(SettingsError, match="3 groups; expected 2 at most"):
        trajectory(small, root="stem", by="branch")


def test_the_command(small: Path, tmp_path: Path) -> None:
    runner = CliRunner()
    words = ["--root", "stem", "--by", "branch", "-o", str(tmp_path / "t.csv")]
    ran = runner.invoke(cli, ["trajectory", str(small), *words])
    assert ran.exit_code == 0, ran.stderr
    lines = ran.stdout.splitlines()
    at = lines.index("groups")
    assert lines[at + 1].startswith("  group stem  cells ")
    assert any(line.startswith("  from stem  to ") for line in lines)
    for arguments in ([], ["--root", "stem", "--root-cell", "1"]):
        ran = runner.invoke(cli, ["trajectory", str(small), *arguments])
        assert ran.exit_code == 2
        assert "either --root GROUP or --root-cell ROW" in ran.stderr


# What the stage is made of.


def test_a_mean_is_of_more_than_half_or_none() -> None:
    none = np.nan
    rows = np.array([[1, 2, 3, 6], [none, 2, 3, 7], [none, none, 3, 7], [none, 5, none, none], [none] * 4])
    np.testing.assert_array_equal(stage._mean_reached(rows.astype(np.float32)), [3, 4, none, none, none])
    odd = np.array([[none, 4, 6], [none, none, 6]], np.float32)
    np.testing.assert_array_equal(stage._mean_reached(odd), [5, none])


def ring(n: int, k: int = 4) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """The k nearest on a line of n points, unevenly spaced, and weights that fall with distance."""
    where = np.arange(n) + np.random.default_rng(n).uniform(0, 0.9, n)
    gaps = np.abs(where[:, None] - where)
    np.fill_diagonal(gaps, np.inf)
    near = np.argsort(gaps, axis=1, kind="stable")[:, :k]
    return near, np.exp(-np.take_along_axis(gaps, near, axis=1) / 3).astype(np.float32)


def test_the_graph_is_symmetric_and_keeps_the_heavier_weight() -> None:
    near, weights = ring(30)
    weights[3] = 0.0
    graph = neighbour_graph(near, weights).toarray()
    expected = np.zeros((30, 30))
    for i in range(30):
        for j, weight in zip(near[i], weights[i], strict=True):
            for a, b in ((i, j), (j, i)):
                expected[a, b] = max(expected[a, b], weight, 1e-6)
    np.testing.assert_allclose(graph, expected, rtol=1e-6)


@pytest.mark.parametrize("n", [3, 12, 150, 400])
def test_coordinates_give_the_distances_of_diffusion_pseudotime(n: int) -> None:
    """Against the sum of all powers of the transition matrix, restricted to as many components: Haghverdi et al."""
    graph = neighbour_graph(*ring(n, min(4, n - 1)))
    assert pieces(graph).max() == 0
    got = diffusion_coordinates(graph, 6)
    assert got.shape == (n, min(6, n) - 1)
    dense = graph.toarray()
    density = dense.sum(axis=1)
    kernel = dense / np.outer(density, density)
    degree = kernel.sum(axis=1)
    values, vectors = np.linalg.eigh(kernel / np.sqrt(np.outer(degree, degree)))
    order = np.argsort(-values)[1:6]
    values, vectors = values[order], vectors[:, order]
    weight = np.where(values < 0.9994, values / (1 - values), 1.0)
    for root in (0, n // 2):
        expected = np.sqrt((((vectors - vectors[root]) * weight) ** 2).sum(axis=1))
        np.testing.assert_allclose(
            pseudotime(got, got[root]), expected / expected.max(), atol=1e-5 if n < 200 else 1e-4
        )


def test_pieces_are_numbered_from_the_largest() -> None:
    a, b = ring(5, 2), ring(9, 2)
    near = np.concatenate([a[0], b[0] + 5])
    found = pieces(neighbour_graph(near, np.concatenate([a[1], b[1]])))
    assert (found[:5] == 1).all()
    assert (found[5:] == 0).all()


def test_connectivity_is_the_ratio_to_chance() -> None:
    near, _ = ring(60)
    groups = np.repeat([0, 1, 2, -1], 15)
    got = group_connectivity(near, groups, 4)  # nobody is in group 3
    edges = np.zeros((4, 4))
    for i in range(60):
        for j in near[i]:
            if groups[i] >= 0 and groups[j] >= 0:
                edges[groups[i], groups[j]] += 1
    sizes = np.array([15, 15, 15, 0])
    for a in range(4):
        for b in range(4):
            by_chance = (edges[a].sum() * sizes[b] + edges[b].sum() * sizes[a]) / 44
            expected = (edges[a, b] + edges[b, a]) / by_chance if a != b and by_chance else 0.0
            assert got[a, b] == pytest.approx(expected)
    assert got[0, 1] > 0
    assert got[0, 2] == 0


def test_the_tree_keeps_the_strongest_connections() -> None:
    connectivity = np.zeros((6, 6))
    for a, b, value in ((0, 1, 2.0), (1, 2, 3.0), (0, 2, 1.0), (3, 4, 0.5)):
        connectivity[a, b] = connectivity[b, a] = value
    assert tree_of_groups(connectivity, 2) == [(2, 1), (1, 0), (3, 4)]
    assert tree_of_groups(connectivity, 4) == [(4, 3), (0, 1), (1, 2)]
    assert tree_of_groups(np.zeros((0, 0)), 0) == []


def test_times_and_connections_come_together_or_not_at_all(
    small: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, target = Path(shutil.copytree(small, tmp_path / "run")), tmp_path / "t.csv"
    before = read_record(run)

    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    for where in ("hashstream.stages.trajectory._write_connections", "hashstream.runtime.run.Run.set_cell_columns"):
        with monkeypatch.context() as patch:
            patch.setattr(where, full)
            with pytest.raises(OSError, match="No space left"):
                trajectory(run, root="stem", by="branch", target=target)
        assert [path.name for path in tmp_path.iterdir()] == ["run"]
        assert read_record(run) == before


def test_a_column_of_obs_under_the_name_of_the_runs(tmp_path: Path) -> None:
    adata = make_adata(n_cells=300)
    adata.obs["cluster"] = adata.obs["cell_type"]
    adata.write_h5ad(tmp_path / "a.h5ad")
    encode(tmp_path / "a.h5ad", tmp_path / "run")
    with pytest.raises(InputError, match=r"the run has no 'cluster' yet.*has obs\['cluster'\].*another name"):
        trajectory(tmp_path / "run", root="type 0", by="cluster")
    with pytest.raises(InputError, match=r"the run has no 'label' yet; make it with `[^`]*`.$"):
        trajectory(tmp_path / "run", root="type 0", by="label")
    (tmp_path / "a.h5ad").unlink()
    with pytest.raises(InputError, match=r"the run has no 'cluster' yet; make it with `[^`]*`.$"):
        trajectory(tmp_path / "run", root="type 0", by="cluster")
