"""The largest numbers of rows against their NumPy meaning."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hashstream import kernels
from hashstream.kernels import reference_retrieve


@given(
    seed=st.integers(0, 2**32 - 1),
    n_rows=st.sampled_from([0, 1, 3, 20]),
    n_columns=st.sampled_from([1, 5, 63, 64, 65, 128, 200, 1000]),
    levels=st.sampled_from([1, 3, 1000]),
    k=st.sampled_from([1, 2, 15, 63, 64, 65, 130, 2000]),
    n_threads=st.sampled_from([1, 3]),
)
@settings(max_examples=150, deadline=None)
def test_largest_agree_with_the_reference(
    seed: int, n_rows: int, n_columns: int, levels: int, k: int, n_threads: int
) -> None:
    # Few levels: many ties.
    values = np.random.default_rng(seed).integers(-levels, levels + 1, (n_rows, n_columns)).astype(np.float32) / 7
    got = kernels.largest_columns(values, k, n_threads=n_threads)
    assert got.dtype == np.int32
    np.testing.assert_array_equal(got, reference_retrieve.largest_columns(values, k))


def test_infinite_numbers_are_numbers() -> None:
    values = np.array([[0.0, -np.inf, np.inf, 1.0, np.inf, -np.inf]], dtype=np.float32)
    np.testing.assert_array_equal(kernels.largest_columns(values, 6), [[2, 4, 3, 0, 1, 5]])


def test_rising_rows_of_which_every_number_enters() -> None:
    values = np.arange(1000, dtype=np.float32)[None, :]
    np.testing.assert_array_equal(kernels.largest_columns(values, 3), [[999, 998, 997]])


@pytest.mark.parametrize("n_columns", [1, 64, 65, 200])
@pytest.mark.parametrize("k", [1, 15, 64, 130])
def test_a_nan_anywhere_is_refused(n_columns: int, k: int) -> None:
    for column in range(n_columns):
        values = np.random.default_rng(column).random((4, n_columns), dtype=np.float32)
        values[2, column] = np.nan
        with pytest.raises(ValueError, match="NaN"):
            kernels.largest_columns(values, k, n_threads=2)


def test_bad_arguments_are_refused() -> None:
    with pytest.raises(ValueError, match="k is 0"):
        kernels.largest_columns(np.zeros((2, 3), np.float32), 0)
    with pytest.raises(ValueError, match="NaN"):
        kernels.largest_columns(np.array([[0.0, np.nan]], np.float32), 1)
    with pytest.raises(ValueError, match="1 dimensions"):
        kernels.largest_columns(np.zeros(3, np.float32), 1)
