"""Integration of batches: they are mixed, types are kept, weights count, and doubtful batches are named."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray
from threadpoolctl import threadpool_limits

from hashstream.cluster.harmony import HarmonySettings, harmony
from hashstream.cluster.integrate import confounding_warnings, integrate
from hashstream.cluster.neighbours import token_neighbours
from hashstream.errors import InputError, SettingsError

Tokens = tuple[NDArray[np.float32], NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]


def shifted_blobs(n: int = 1200, n_types: int = 6, n_batches: int = 2, seed: int = 0, shift: float = 3.0) -> Tokens:
    """Points, counts, batches and types: every batch is shifted as a whole, and a little by type."""
    rng = np.random.default_rng(seed)
    scale = 1.0 / np.sqrt(1.0 + np.arange(12))
    centres = rng.standard_normal((n_types, 12)) * 8 * scale
    offsets = rng.standard_normal((n_batches, 1, 12)) + rng.standard_normal((n_batches, n_types, 12)) * 0.2
    types, batches = rng.integers(0, n_types, n), rng.integers(0, n_batches, n)
    points = centres[types] + shift * scale * offsets[batches, types] + rng.standard_normal((n, 12)) * 0.7
    return points.astype(np.float32), rng.integers(1, 40, n), batches, types


def shares(points: NDArray[np.float32], labels: NDArray[np.int64], among: NDArray[np.bool_]) -> float:
    """Share of the 15 nearest neighbours with the same label, over some points."""
    found = token_neighbours(points, 15).indices
    return float((labels[found] == labels[:, None])[among].mean())


def test_shifted_batches_are_mixed_and_types_kept() -> None:
    points, counts, batches, types = shifted_blobs()
    every = np.ones(len(points), dtype=bool)
    corrected = integrate(points, counts, batches, seed=1)
    assert corrected.points.dtype == np.float32
    assert corrected.points.shape == points.shape
    assert shares(points, batches, every) > 0.95
    assert shares(corrected.points, batches, every) < 0.75
    assert shares(corrected.points, types, every) > 0.95
    assert corrected.warnings == ()


def test_batches_without_an_effect_are_left_almost_as_they_are() -> None:
    points, counts, batches, _ = shifted_blobs(shift=0.0)
    moved = np.linalg.norm(integrate(points, counts, batches).points - points, axis=1)
    assert np.median(moved) < 0.1 * np.linalg.norm(points - points.mean(axis=0), axis=1).mean()


def test_same_seed_same_points_whatever_the_threads() -> None:
    points, counts, batches, _ = shifted_blobs(n=700, n_batches=3)
    before = points.copy()
    with threadpool_limits(limits=1):
        one = integrate(points, counts, batches, seed=5)
    with threadpool_limits(limits=4):
        two = integrate(points, counts, batches, seed=5)
    assert np.array_equal(one.points, two.points)
    assert one.warnings == two.warnings
    assert np.array_equal(points, before)
    assert not np.array_equal(one.points, integrate(points, counts, batches, seed=6).points)


def test_numbers_of_batches_are_names_only() -> None:
    points, counts, batches, _ = shifted_blobs(n=500)
    renamed = integrate(points, counts, batches * 7 + 2, seed=3)
    assert np.array_equal(renamed.points, integrate(points, counts, batches, seed=3).points)


def test_one_cluster_is_a_weighted_ridge_regression() -> None:
    """With one cluster the correction has a closed form: here by numpy, with an unpenalised intercept."""
    rng = np.random.default_rng(3)
    points, batches = rng.standard_normal((90, 4)) + 2, np.repeat([0, 1, 2], [20, 30, 40])
    points[batches == 2] += 3
    weights = rng.uniform(0.2, 9.0, 90)
    settings = HarmonySettings(n_clusters=1, alpha=0.3, iterations=1)
    found = harmony(points, weights, batches, settings=settings)
    design = np.column_stack([np.ones(90), batches[:, None] == np.arange(3)])
    share = np.bincount(batches, weights=weights)
    penalty = np.diag([0.0, *(0.3 * share)])
    beta = np.linalg.solve(design.T @ (weights[:, None] * design) + penalty, design.T @ (weights[:, None] * points))
    beta[0] = 0.0
    np.testing.assert_allclose(found, points - design @ beta, rtol=1e-5, atol=1e-5)
    assert not np.allclose(found, harmony(points, np.ones(90), batches, settings=settings), atol=0.05)


def test_large_tokens_count_more() -> None:
    """A cloud of stray one-cell tokens shifts a batch's correction less than it would as large tokens."""
    points, _, batches, _ = shifted_blobs(n=600)
    rng = np.random.default_rng(4)
    strays = rng.standard_normal((150, 12)) * 0.7 + 10
    stacked = np.concatenate([points, strays]).astype(np.float32)
    batch = np.concatenate([batches, np.zeros(150, dtype=np.int64)])

    def moved(count: int) -> float:
        counts = np.concatenate([np.full(600, 100), np.full(150, count)])
        alone = integrate(points, counts[:600], batches, seed=2).points
        return float(np.linalg.norm(integrate(stacked, counts, batch, seed=2).points[:600] - alone, axis=1).mean())

    assert moved(1) < 0.5 * moved(400)


def test_equal_weights_agree_with_harmonypy() -> None:
    harmonypy = pytest.importorskip("harmonypy")
    points, _, batches, _ = shifted_blobs(n=900, n_batches=3)
    centred = (points - points.mean(axis=0)).astype(np.float64)
    mine = harmony(centred, np.ones(900), batches, seed=0)
    theirs = harmonypy.run_harmony(centred, {"batch": batches}, ["batch"], sigma=0.2, verbose=False, ncores=1).Z_corr
    moved = np.linalg.norm(theirs - centred)
    assert np.linalg.norm(mine - theirs) < 0.05 * moved


@pytest.mark.parametrize("also_elsewhere", [False, True])
def test_a_batch_of_one_type_is_named(also_elsewhere: bool) -> None:
    points, counts, _, types = shifted_blobs(n=1500, shift=0.0)
    rng = np.random.default_rng(8)
    batches = rng.integers(0, 2, 1500)
    batches[(types == 2) & ((rng.random(1500) < 0.5) | (not also_elsewhere))] = 2
    found = integrate(points, counts, batches, names=["first", "second", "odd"], seed=0).warnings
    assert len(found) == 1
    assert "batch 'odd' may be confounded with a cell type" in found[0]
    assert "--batch-key" in found[0]


def test_batches_of_other_types_are_named() -> None:
    points, counts, _, types = shifted_blobs(n=1200, shift=0.0)
    found = integrate(points, counts, types % 2, seed=0).warnings
    assert found
    assert "of its cells' neighbours" in found[0]


@pytest.mark.parametrize("shift", [0.0, 1.5, 3.0])
@pytest.mark.parametrize("n_batches", [2, 5])
def test_ordinary_batches_are_not_named(shift: float, n_batches: int) -> None:
    points, counts, batches, _ = shifted_blobs(n=1500, n_batches=n_batches, shift=shift, seed=3)
    assert integrate(points, counts, batches, seed=0).warnings == ()


def test_a_batch_that_correction_leaves_apart_is_named() -> None:
    points, counts, batches, _ = shifted_blobs(shift=20.0)
    assert "of its cells' neighbours beyond chance are its own" in integrate(points, counts, batches).warnings[0]


def test_small_batches_are_not_judged() -> None:
    points, counts, batches, types = shifted_blobs(n=600, shift=0.0)
    batches[np.flatnonzero(types == 0)[:19]] = 2
    assert integrate(points, counts, batches, seed=0).warnings == ()


def test_warnings_survive_duplicates() -> None:
    points, counts, batches = np.zeros((60, 3)), np.ones(60, dtype=np.int64), np.arange(60) % 2
    assert confounding_warnings(points, counts, batches, names=["a", "b"]) == ()


def test_few_tokens() -> None:
    points = np.array([[0.0, 1.0], [3.0, 1.0]], dtype=np.float32)
    corrected = integrate(points, np.array([5, 2]), np.array([0, 1])).points
    assert np.isfinite(corrected).all()
    assert np.linalg.norm(corrected[0] - corrected[1]) < 3.0


def test_bad_input() -> None:
    points, counts, batches, _ = shifted_blobs(n=60)
    with pytest.raises(SettingsError, match=r"one batch \(control\).*leave --batch-key out"):
        integrate(points, counts, np.zeros(60, dtype=np.int32), names=["control"])
    with pytest.raises(InputError, match="2 batches have names"):
        integrate(points, counts, batches * 2, names=["a", "b"])
    with pytest.raises(ValueError, match="60 points, 59 counts"):
        integrate(points, counts[1:], batches)
    points[7, 3] = np.nan
    with pytest.raises(InputError, match=r"1 of 60 tokens \(the first is 7\)"):
        integrate(points, counts, batches)


@pytest.mark.parametrize("setting", [{"sigma": 0.0}, {"theta": -1.0}, {"alpha": 0.0}, {"n_clusters": 0}, {"rounds": 0}])
def test_bad_settings(setting: dict[str, float]) -> None:
    with pytest.raises(SettingsError, match=next(iter(setting))):
        HarmonySettings(**setting)  # type: ignore[arg-type]
