"""Distances of named pairs against their NumPy meaning."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hashstream import kernels
from hashstream.kernels import reference


@given(
    seed=st.integers(0, 2**32 - 1),
    n=st.sampled_from([1, 2, 50]),
    n_dims=st.sampled_from([1, 7, 64, 200]),
    k=st.sampled_from([0, 1, 5]),
    dtype=st.sampled_from([np.float32, np.float64]),
    n_threads=st.sampled_from([1, 3]),
)
@settings(max_examples=60, deadline=None)
def test_distances_agree_with_the_reference(seed: int, n: int, n_dims: int, k: int, dtype: Any, n_threads: int) -> None:
    rng = np.random.default_rng(seed)
    points = rng.standard_normal((n, n_dims)).astype(dtype)
    first = int(rng.integers(0, n))
    others = rng.integers(0, n, (n - first, k)).astype(np.int32)
    got = kernels.squared_distances(points, others, first_row=first, n_threads=n_threads)
    assert got.dtype == np.float64
    np.testing.assert_array_equal(got, reference.squared_distances(points, others, first_row=first))


@pytest.mark.parametrize(
    ("others", "first", "error", "message"),
    [
        (np.array([[3]]), 0, ValueError, "others names point 3"),
        (np.array([[-1]]), 0, ValueError, "or -1 of 3"),
        (np.array([[0], [1]]), 2, ValueError, "rows 2 to 4 of 3 points"),
        (np.array([0]), 0, ValueError, "1 dimensions"),
        (np.array([[0.5]]), 0, TypeError, "dtype float64"),
    ],
)
def test_bad_arguments_are_refused(others: Any, first: int, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        kernels.squared_distances(np.zeros((3, 2)), others, first_row=first)
