"""group_sums against its NumPy meaning."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hashstream import kernels
from hashstream.kernels import GroupSums, RowFlag, reference

N_GENES, N_GROUPS = 40, 5


def make_rows(rng: Any, n_rows: int, dtype: Any) -> Any:
    dense = rng.integers(0, 30, (n_rows, 60)) * (rng.random((n_rows, 60)) < 0.4)
    stored = (dense > 0) | (rng.random(dense.shape) < 0.02)  # some zeros are stored
    rows, indices = np.nonzero(stored)
    indptr = np.concatenate([[0], np.cumsum(np.bincount(rows, minlength=n_rows))]).astype(np.int64)
    gene_map = np.full(60, -1, np.int32)
    gene_map[rng.choice(60, N_GENES, replace=False)] = np.arange(N_GENES)
    groups = rng.integers(-1, N_GROUPS, n_rows).astype(np.int32)
    return indptr, indices.astype(np.int32), dense[rows, indices].astype(dtype), groups, gene_map


def sums_of(module: Any, *arguments: Any) -> tuple[GroupSums, Any]:
    out = GroupSums.zeros(N_GROUPS, N_GENES)
    return out, module.group_sums(*arguments, out, target_sum=1e4)


@given(
    seed=st.integers(0, 2**32 - 1),
    n_rows=st.sampled_from([0, 1, 64, 300]),
    dtype=st.sampled_from([np.uint8, np.int64, np.float32]),
)
@settings(max_examples=30, deadline=None)
def test_sums_agree_with_the_reference(seed: int, n_rows: int, dtype: Any) -> None:
    arguments = make_rows(np.random.default_rng(seed), n_rows, dtype)
    (found, flags), (expected, expected_flags) = (sums_of(module, *arguments) for module in (kernels, reference))
    assert np.array_equal(flags, expected_flags)
    assert np.array_equal(found.n_cells, expected.n_cells)
    assert np.array_equal(found.sums, expected.sums)
    assert found.n_cells.sum() == (arguments[3] >= 0).sum()


def test_the_order_of_cells_does_not_matter_and_parts_add_up() -> None:
    indptr, indices, data, groups, gene_map = make_rows(np.random.default_rng(1), 200, np.uint16)
    whole, _ = sums_of(kernels, indptr, indices, data, groups, gene_map)
    half = indptr[80]
    first, _ = sums_of(kernels, indptr[:81], indices[:half], data[:half], groups[:80], gene_map)
    rest, _ = sums_of(kernels, indptr[80:] - half, indices[half:], data[half:], groups[80:], gene_map)
    rest.add(first)
    assert np.array_equal(whole.sums, rest.sums)
    assert np.array_equal(whole.n_cells, rest.n_cells)


def test_bad_and_empty_rows() -> None:
    indptr, indices, data, groups, gene_map = make_rows(np.random.default_rng(2), 30, np.float32)
    groups[:] = 0
    data[indptr[3]] = np.nan
    data[indptr[4]] = -2
    data[indptr[5] : indptr[6]] = 0
    (found, flags), (expected, _) = (
        sums_of(module, indptr, indices, data, groups, gene_map) for module in (kernels, reference)
    )
    assert flags[3:6].tolist() == [RowFlag.NOT_FINITE, RowFlag.NEGATIVE, RowFlag.EMPTY]
    assert found.n_cells[0] == 28  # the empty one counts
    assert np.array_equal(found.sums, expected.sums)


def test_wrong_arrays_are_refused() -> None:
    indptr, indices, data, groups, gene_map = make_rows(np.random.default_rng(3), 10, np.uint16)
    out = GroupSums.zeros(N_GROUPS, N_GENES)
    with pytest.raises(TypeError, match="groups has dtype int64"):
        kernels.group_sums(indptr, indices, data, groups.astype(np.int64), gene_map, out, target_sum=1e4)
    with pytest.raises(ValueError, match="groups holds 5, expected numbers below 5"):
        kernels.group_sums(indptr, indices, data, np.full(10, 5, np.int32), gene_map, out, target_sum=1e4)
    with pytest.raises(ValueError, match="gene_map holds 40"):
        kernels.group_sums(indptr, indices, data, groups, np.full(60, 40, np.int32), out, target_sum=1e4)
    with pytest.raises(ValueError, match="9 groups for 10 rows"):
        kernels.group_sums(indptr, indices, data, groups[:9], gene_map, out, target_sum=1e4)
    with pytest.raises(ValueError, match="target_sum is 0"):
        kernels.group_sums(indptr, indices, data, groups, gene_map, out, target_sum=0)
    assert not out.sums.any()
