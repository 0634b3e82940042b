"""Scores by anchors against their NumPy meaning."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hashstream.kernels import reference_anchors as plain
from hashstream.kernels.anchors import AnchorTables, anchor_scores, best_classes


@settings(max_examples=60, deadline=None)
@given(
    n=st.sampled_from([0, 1, 2, 63, 200]),
    n_classes=st.sampled_from([2, 3, 4, 17, 54]),
    n_bits=st.sampled_from([16, 50, 63, 64, 65, 128]),
    n_half=st.sampled_from([1, 3, 8, 61, 128]),
    spread=st.sampled_from([1, 4, 300]),
    n_threads=st.sampled_from([1, 3]),
    seed=st.integers(0, 2**32 - 1),
)
def test_scores_are_sums_over_bits(
    n: int, n_classes: int, n_bits: int, n_half: int, spread: int, n_threads: int, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    n_words = -(-(n_bits + 2 * n_half) // 64) + int(rng.integers(2))
    codes = rng.integers(0, 2**64, (2 * n, n_words), dtype=np.uint64)[::2]
    # Few different weights give many ties.
    read_out = rng.integers(-spread, spread + 1, (n_classes, n_bits)).astype(np.int16)
    offset = rng.integers(-spread, spread + 1, n_classes).astype(np.int32)
    bits = rng.integers(0, 2, (n_classes, n_bits)).astype(np.uint8)
    padded = np.zeros((n_classes, -(-n_bits // 64) * 64), np.uint8)
    padded[:, :n_bits] = bits
    anchors = np.packbits(padded, axis=1, bitorder="little").view(np.uint64)
    profile = rng.integers(-1000, 1001, (n_classes, 2 * n_half)).astype(np.int16)
    common = rng.integers(-32_000, 32_001, 2 * n_half).astype(np.int16)
    scale = float(rng.choice([1e-3, 0.1, 2.0]))
    before = codes.copy()
    tables = AnchorTables.of(read_out, offset, scale, anchors, profile, common)
    found = anchor_scores(codes, tables, n_threads=n_threads)
    meant = plain.anchor_scores(codes, read_out, offset, scale, anchors, profile, common)
    np.testing.assert_array_equal(found.top, meant.top)
    np.testing.assert_array_equal(found.distance, meant.distance)
    np.testing.assert_array_equal(found.agreement, meant.agreement)
    np.testing.assert_array_equal(found.common, meant.common)
    np.testing.assert_allclose(found.probabilities, meant.probabilities, rtol=2e-6, atol=1e-20)
    np.testing.assert_array_equal(codes, before)


def test_short_codes_are_refused() -> None:
    tables = AnchorTables.of(
        np.ones((2, 64), np.int16),
        np.zeros(2, np.int32),
        1.0,
        np.zeros((2, 1), np.uint64),
        np.ones((2, 2), np.int16),
        np.ones(2, np.int16),
    )
    with pytest.raises(ValueError, match="at least 2"):
        anchor_scores(np.zeros((1, 1), np.uint64), tables)


@settings(max_examples=60, deadline=None)
@given(
    n=st.sampled_from([0, 1, 2, 63, 200]),
    n_classes=st.sampled_from([1, 2, 3, 17, 54]),
    n_bits=st.sampled_from([1, 16, 50, 63, 64, 65, 256]),
    spread=st.sampled_from([1, 4, 32_000]),
    n_threads=st.sampled_from([1, 3]),
    seed=st.integers(0, 2**32 - 1),
)
def test_best_classes_are_those_of_the_largest_sums(
    n: int, n_classes: int, n_bits: int, spread: int, n_threads: int, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    codes = rng.integers(0, 2**64, (2 * n, -(-n_bits // 64) + int(rng.integers(2))), dtype=np.uint64)[::2]
    weights = rng.integers(-spread, spread + 1, (n_classes, n_bits)).astype(np.int16)
    offset = rng.integers(-spread, spread + 1, n_classes).astype(np.int32)
    found = best_classes(codes, weights, offset, n_threads=n_threads)
    for array, meant in zip(found, plain.best_classes(codes, weights, offset), strict=True):
        np.testing.assert_array_equal(array, meant)
        assert array.dtype == meant.dtype


def test_best_classes_of_arrays_that_do_not_fit_are_refused() -> None:
    with pytest.raises(ValueError, match="at least 2"):
        best_classes(np.zeros((1, 1), np.uint64), np.ones((2, 65), np.int16), np.zeros(2, np.int32))
    with pytest.raises(ValueError, match="one offset each"):
        best_classes(np.zeros((1, 1), np.uint64), np.ones((2, 64), np.int16), np.zeros(3, np.int32))
