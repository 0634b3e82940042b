"""What a fit asks of its sample, against the NumPy meaning: sparse products and sums of Pearson residuals."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import scipy.sparse as sp
from hypothesis import given, settings
from hypothesis import strategies as st

from hashstream import kernels
from hashstream.kernels import reference


def counts_of(rng: np.random.Generator, n_rows: int, n_columns: int, index: Any, dtype: Any) -> tuple[Any, Any, Any]:
    matrix = sp.csr_matrix(rng.poisson(0.4, (n_rows, n_columns)))
    return matrix.indptr.astype(np.int64), matrix.indices.astype(index), matrix.data.astype(dtype)


@given(
    seed=st.integers(0, 2**32 - 1),
    n_rows=st.sampled_from([0, 1, 7, 64, 65, 300]),
    n_columns=st.sampled_from([1, 5, 70]),
    width=st.sampled_from([1, 8, 19]),
    index=st.sampled_from([np.uint16, np.int32]),
    dtype=st.sampled_from([np.uint8, np.uint16, np.float32, np.float64]),
    n_threads=st.sampled_from([1, 3]),
)
@settings(max_examples=60, deadline=None)
def test_products_agree_with_the_reference(
    seed: int, n_rows: int, n_columns: int, width: int, index: Any, dtype: Any, n_threads: int
) -> None:
    rng = np.random.default_rng(seed)
    rows = counts_of(rng, n_rows, n_columns, index, dtype)
    block = rng.normal(size=(width, n_columns)).T  # not contiguous
    before = [array.copy() for array in (*rows, block)]
    for name in ("rows_times", "gram_times"):
        got = getattr(kernels, name)(*rows, block, n_threads=n_threads)
        for array, copy in zip((*rows, block), before, strict=True):
            np.testing.assert_array_equal(array, copy)
        np.testing.assert_allclose(got, getattr(reference, name)(*rows, block), rtol=1e-10, atol=1e-10)
        np.testing.assert_array_equal(got, getattr(kernels, name)(*rows, block))


@given(seed=st.integers(0, 2**32 - 1), n_rows=st.sampled_from([1, 40]), clip=st.sampled_from([0.3, 2.0, 50.0]))
@settings(max_examples=30, deadline=None)
def test_residuals_agree_with_the_reference(seed: int, n_rows: int, clip: float) -> None:
    rng = np.random.default_rng(seed)
    rows = counts_of(rng, n_rows, 30, np.uint16, np.uint16)
    totals = rng.uniform(1, 50, n_rows)
    share = np.bincount(rows[1], weights=rows[2], minlength=30) / max(rows[2].sum(), 1)
    got = kernels.residual_sums(*rows, totals, share, theta=100.0, clip=clip)
    expected = reference.residual_sums(*rows, totals, share, theta=100.0, clip=clip)
    np.testing.assert_allclose(got, expected, rtol=1e-9, atol=1e-9)


def test_columns_that_are_not_there_are_refused() -> None:
    rows = np.array([0, 1]), np.array([5], np.int32), np.array([1.0])
    for name in ("rows_times", "gram_times"):
        with pytest.raises(ValueError, match="block has 3 rows"):
            getattr(kernels, name)(*rows, np.zeros((3, 2)))
    with pytest.raises(ValueError, match="share has 3 values"):
        kernels.residual_sums(*rows, np.ones(1), np.ones(3), theta=100.0, clip=1.0)
    with pytest.raises(ValueError, match="expected a value a row"):
        kernels.residual_sums(*rows, np.ones(2), np.ones(9), theta=100.0, clip=1.0)
