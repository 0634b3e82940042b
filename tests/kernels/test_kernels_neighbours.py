"""Hamming neighbours of all rows against their NumPy meaning."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hashstream import kernels
from hashstream.kernels import reference


def rows_of(seed: int, n: int, n_words: int, spread: int, n_dims: int) -> Any:
    """Codes with `spread` varying bits a word, and points on a coarse grid: ties in both."""
    rng = np.random.default_rng(seed)
    codes = rng.integers(0, 2**64, (n, n_words), dtype=np.uint64) >> np.uint64(64 - spread)
    points = (rng.standard_normal((n, n_dims)) * 2).round() / 3
    return codes, points.astype(np.float32)


@given(
    seed=st.integers(0, 2**32 - 1),
    n=st.sampled_from([1, 2, 63, 64, 65, 130, 200]),
    n_words=st.integers(1, 4),
    spread=st.sampled_from([1, 5, 64]),
    n_dims=st.sampled_from([1, 2, 3, 4, 9]),
    k=st.sampled_from([1, 3, 16, 64, 1000]),
    n_threads=st.sampled_from([1, 3]),
)
@settings(max_examples=80, deadline=None)
def test_neighbours_agree_with_the_reference(
    seed: int, n: int, n_words: int, spread: int, n_dims: int, k: int, n_threads: int
) -> None:
    codes, points = rows_of(seed, n, n_words, spread, n_dims)
    got = kernels.hamming_neighbours(codes, points, k, n_threads=n_threads)
    for array, expected in zip(got, reference.hamming_neighbours(codes, points, k), strict=True):
        assert array.dtype == np.int32
        assert array.shape == (n, min(k, n - 1))
        np.testing.assert_array_equal(array, expected)


def test_more_rows_than_a_block_and_a_range_of_them() -> None:
    codes, points = rows_of(1, 5003, 1, 13, 6)
    part = {"start": 4090, "stop": 4140}
    got = kernels.hamming_neighbours(codes, points, 20, **part)
    expected = reference.hamming_neighbours(codes, points, 20, **part)
    np.testing.assert_array_equal(got[0], expected[0])
    np.testing.assert_array_equal(got[1], expected[1])
    whole = kernels.hamming_neighbours(codes, points, 20, n_threads=2)
    np.testing.assert_array_equal(whole[0][4090:4140], got[0])
    assert kernels.hamming_neighbours(codes, points, 20, start=7, stop=7)[0].shape == (0, 20)


def test_equal_codes_and_complements() -> None:
    """Distances 0 and 256, the least and the most, and rows of equal codes ordered by their points."""
    codes = np.zeros((5, 4), np.uint64)
    codes[4] = ~np.uint64(0)
    points = np.array([[0.0], [5.0], [1.0], [1.0], [0.0]], np.float32)
    indices, distances = kernels.hamming_neighbours(codes, points, 4)
    assert indices.tolist() == [[2, 3, 1, 4], [2, 3, 0, 4], [3, 0, 1, 4], [2, 0, 1, 4], [0, 2, 3, 1]]
    assert distances.tolist() == [[0, 0, 0, 256]] * 4 + [[256] * 4]


def test_views_are_taken_and_what_does_not_fit_is_refused() -> None:
    codes, points = rows_of(2, 80, 4, 6, 8)
    codes.flags.writeable = points.flags.writeable = False
    got = kernels.hamming_neighbours(codes[::2, ::2], points[::2, 1::3], 5)
    np.testing.assert_array_equal(
        got[0], kernels.hamming_neighbours(codes[::2, ::2].copy(), points[::2, 1::3].copy(), 5)[0]
    )
    with pytest.raises(ValueError, match="k is 0"):
        kernels.hamming_neighbours(codes, points, 0)
    with pytest.raises(ValueError, match="points has 79 rows, expected 80"):
        kernels.hamming_neighbours(codes, points[1:], 3)
    with pytest.raises(ValueError, match="row 3 of points is not finite"):
        kernels.hamming_neighbours(codes, np.where(np.arange(80)[:, None] == 3, np.nan, points), 3)
    with pytest.raises(ValueError, match="rows 5 to 81"):
        kernels.hamming_neighbours(codes, points, 3, start=5, stop=81)
    with pytest.raises(TypeError, match="codes has dtype int64"):
        kernels.hamming_neighbours(codes.astype(np.int64), points, 3)
