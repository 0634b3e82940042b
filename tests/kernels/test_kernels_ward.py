"""Ward linkage against SciPy, against its plain meaning, and against repeated points."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.cluster import hierarchy
from sklearn.metrics import adjusted_rand_score

from hashstream import kernels
from hashstream.kernels import reference


@given(
    seed=st.integers(0, 2**32 - 1),
    n=st.sampled_from([2, 3, 16, 63, 64, 65, 129, 400]),
    d=st.sampled_from([1, 4, 20]),
    offset=st.sampled_from([0.0, 1e5]),
    scale=st.sampled_from([1e-20, 1.0, 1e20]),
    dtype=st.sampled_from([np.float32, np.float64]),
)
@settings(max_examples=60, deadline=None)
def test_unit_weights_give_scipys_tree(seed: int, n: int, d: int, offset: float, scale: float, dtype: type) -> None:
    points = ((np.random.default_rng(seed).standard_normal((n, d)) + offset) * scale).astype(dtype)
    if len(np.unique(points, axis=0)) < n:  # float32 far from 0: ties, which have no single tree
        return
    got, expected = kernels.ward_linkage(points), hierarchy.ward(points.astype(np.float64))
    np.testing.assert_allclose(got[:, 2], expected[:, 2], rtol=1e-6)
    assert hierarchy.is_valid_linkage(got)
    for k in {2, min(5, n), max(2, n // 3)}:
        a, b = (hierarchy.fcluster(tree, k, "maxclust") for tree in (got, expected))
        if offset == 0.0:
            assert adjusted_rand_score(a, b) == 1.0


@given(seed=st.integers(0, 2**32 - 1), n=st.sampled_from([1, 2, 5, 30]), d=st.sampled_from([1, 4]))
@settings(max_examples=30, deadline=None)
def test_weighted_trees_agree_with_the_reference(seed: int, n: int, d: int) -> None:
    rng = np.random.default_rng(seed)
    points, weights = rng.standard_normal((n, d)), 10.0 ** rng.uniform(-3, 6, n)
    np.testing.assert_allclose(
        kernels.ward_linkage(points, weights), reference.ward_linkage(points, weights), rtol=1e-8
    )


def test_integer_weights_are_repeated_points() -> None:
    rng = np.random.default_rng(0)
    points, weights = rng.standard_normal((120, 6)), rng.integers(1, 6, 120)
    tree = kernels.ward_linkage(points, weights.astype(float))
    repeated = hierarchy.ward(np.repeat(points, weights, axis=0))
    np.testing.assert_allclose(tree[:, 2], repeated[-119:, 2])
    for k in (2, 7, 40, 100):
        a = np.repeat(hierarchy.fcluster(tree, k, "maxclust"), weights)
        assert adjusted_rand_score(a, hierarchy.fcluster(repeated, k, "maxclust")) == 1.0


@pytest.mark.parametrize("grid", [4, 9])
def test_points_full_of_ties_end(grid: int) -> None:
    points = np.stack(np.meshgrid(np.arange(grid), np.arange(grid), [0, 0]), axis=-1).reshape(-1, 3).astype(float)
    tree = kernels.ward_linkage(points)
    assert hierarchy.is_valid_linkage(tree)
    assert hierarchy.is_monotonic(tree)
    assert (tree[: grid * grid, 2] == 0).all()
    assert tree[-1, 3] == len(points)
    same = kernels.ward_linkage(np.ones((70, 2)))
    assert hierarchy.is_valid_linkage(same)
    assert (same[:, 2] == 0).all()


def test_threads_and_views_do_not_change_the_tree() -> None:
    rng = np.random.default_rng(1)
    wide = rng.standard_normal((900, 12)).astype(np.float32)
    points = wide[::2, 1::3]
    points.flags.writeable = False
    weights = rng.integers(1, 50, 450).astype(float)
    before = weights.copy()
    tree = kernels.ward_linkage(points, weights)
    np.testing.assert_array_equal(kernels.ward_linkage(points.copy(), weights, n_threads=3), tree)
    np.testing.assert_array_equal(weights, before)


def test_what_cannot_be_clustered_is_refused() -> None:
    points = np.zeros((3, 2))
    with pytest.raises(ValueError, match="no rows"):
        kernels.ward_linkage(points[:0])
    with pytest.raises(ValueError, match="weight 1 is 0"):
        kernels.ward_linkage(points, [1, 0, 2])
    with pytest.raises(ValueError, match=r"weights has shape \(2,\)"):
        kernels.ward_linkage(points, [1, 2])
    with pytest.raises(ValueError, match="row 2 of points is not finite"):
        kernels.ward_linkage([[0.0], [1.0], [np.nan]])
    with pytest.raises(TypeError, match="dtype complex128"):
        kernels.ward_linkage(points.astype(complex))
    assert kernels.ward_linkage(points[:1]).shape == (0, 4)
