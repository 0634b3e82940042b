"""Nearest cells, and counts of sorted keys, against their NumPy meaning."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hashstream.kernels import reference_retrieve as plain
from hashstream.kernels import retrieve, sorted_counts
from hashstream.kernels.retrieve import CountedCodes, nearest_cells, nearest_cells_asymmetric

SEEDS = st.integers(0, 2**32 - 1)


def random_reference(seed: int, n: int, n_words: int, spread: int = 64) -> CountedCodes:
    """Codes of which `spread` bits a word vary, with up to three entries each that may leave cells out."""
    rng = np.random.default_rng(seed)
    codes = rng.integers(0, 2**64, (n, n_words), dtype=np.uint64) >> np.uint64(64 - spread)
    counts = rng.integers(1, 9, n)
    lengths = rng.integers(0, 4, n)
    starts = np.concatenate([[0], np.cumsum(lengths)])
    categories = rng.integers(0, 7, starts[-1]).astype(np.int32)
    amounts = np.minimum(rng.integers(1, 9, starts[-1]), counts[np.repeat(np.arange(n), lengths)])
    return CountedCodes(codes, counts, starts, categories, amounts, 7)


def assert_same(found: Any, expected: Any) -> None:
    for array, wanted in zip(found, expected, strict=True):
        assert array.dtype == wanted.dtype
        np.testing.assert_array_equal(array, wanted)


@given(
    seed=SEEDS,
    n=st.sampled_from([0, 1, 63, 64, 65, 200]),
    n_queries=st.sampled_from([0, 1, 15, 16, 17, 40]),
    n_words=st.sampled_from([1, 2, 3, 4]),
    spread=st.sampled_from([1, 5, 64]),
    k=st.sampled_from([1, 7, 100, 10_000]),
    n_threads=st.sampled_from([1, 3]),
)
@settings(max_examples=40, deadline=None)
def test_nearest_cells_agree(
    seed: int, n: int, n_queries: int, n_words: int, spread: int, k: int, n_threads: int
) -> None:
    reference = random_reference(seed, n, n_words, spread)
    queries = np.random.default_rng(seed + 1).integers(0, 2**64, (n_queries, n_words), dtype=np.uint64)
    queries >>= np.uint64(64 - spread)
    found = nearest_cells(queries, reference, k, n_threads=n_threads)
    assert_same(found, plain.nearest_cells(queries, reference, k))
    total = int(reference.counts.sum())
    assert (found.n_cells >= min(k, total)).all()


@given(
    seed=SEEDS,
    n=st.sampled_from([0, 1, 64, 200]),
    n_bits=st.sampled_from([1, 8, 63, 64, 65, 128]),
    steps=st.sampled_from([1, 4, 1000]),
    k=st.sampled_from([1, 20, 10_000]),
    more=st.sampled_from([0, 30, 10_000]),
    n_threads=st.sampled_from([1, 3]),
)
@settings(max_examples=40, deadline=None)
def test_asymmetric_nearest_cells_agree(
    seed: int, n: int, n_bits: int, steps: int, k: int, more: int, n_threads: int
) -> None:
    """With few `steps` margins repeat, so that asymmetric distances tie."""
    reference = random_reference(seed, n, -(-n_bits // 64), min(n_bits, 64))
    rng = np.random.default_rng(seed + 1)
    margins = (rng.integers(-steps, steps + 1, (20, n_bits)) / np.float32(steps)).astype(np.float32)
    options = {"n_candidates": k + more}
    found = nearest_cells_asymmetric(margins, reference, k, n_threads=n_threads, **options)
    assert_same(found, plain.nearest_cells_asymmetric(margins, reference, k, **options))


def test_more_codes_than_a_block() -> None:
    """Blocks that end within and at the end of 64 codes, and queries whose nearest codes lie in the last block."""
    for n in (retrieve.BLOCK, 2 * retrieve.BLOCK + 64, 2 * retrieve.BLOCK + 65):
        reference = random_reference(n, n, 1, 20)
        queries = np.concatenate([reference.codes[-3:], reference.codes[:30]])
        for k in (1, 50, 20_000):
            assert_same(nearest_cells(queries, reference, k), plain.nearest_cells(queries, reference, k))
        margins = np.random.default_rng(1).standard_normal((9, 20)).astype(np.float32)
        assert_same(
            nearest_cells_asymmetric(margins, reference, 50, n_candidates=500),
            plain.nearest_cells_asymmetric(margins, reference, 50, n_candidates=500),
        )


def test_by_hand() -> None:
    """Distances 0, 1, 1 and 64 to a query of zeros; five cells, one of them without a category."""
    codes = np.array([[0], [1], [2], [2**64 - 1]], np.uint64)
    reference = CountedCodes(codes, [1, 2, 1, 1], [0, 1, 3, 3, 4], [0, 0, 1, 1], [1, 1, 1, 1], 2)
    query = np.zeros((1, 1), np.uint64)
    expected = {1: (0, 1, [1, 0]), 2: (1, 4, [2, 1]), 4: (1, 4, [2, 1]), 5: (64, 5, [2, 2]), 99: (64, 5, [2, 2])}
    for k, (radius, n_cells, composition) in expected.items():
        found = nearest_cells(query, reference, k)
        assert (found.radius[0], found.n_cells[0], found.composition[0].tolist()) == (radius, n_cells, composition)
    margins = np.full((1, 64), -1.0, np.float32)
    margins[0, 1] = -0.25  # the bit that the third code turns is cheap
    found = nearest_cells_asymmetric(margins, reference, 2, n_candidates=4)
    assert (found.radius[0], found.n_cells[0], found.composition[0].tolist()) == (0.25, 2, [1, 0])
    found = nearest_cells_asymmetric(margins, reference, 5, n_candidates=5)
    assert (found.radius[0], found.n_cells[0]) == (63.25, 5)


def test_views_are_taken_and_inputs_stay() -> None:
    reference = random_reference(3, 90, 2)
    before = [array.copy() for array in (reference.codes, reference.counts, reference.categories, reference.amounts)]
    wide = np.random.default_rng(0).integers(0, 2**64, (40, 5), dtype=np.uint64)
    queries = wide[::2, 1:4:2].copy()
    assert_same(nearest_cells(wide[::2, 1:4:2], reference, 9), nearest_cells(queries, reference, 9))
    assert np.array_equal(queries, wide[::2, 1:4:2])
    after = (reference.codes, reference.counts, reference.categories, reference.amounts)
    assert all(np.array_equal(a, b) for a, b in zip(before, after, strict=True))


def test_what_does_not_fit_is_refused() -> None:
    reference = random_reference(3, 9, 2)
    queries = np.zeros((2, 2), np.uint64)
    with pytest.raises(ValueError, match="k is 0"):
        nearest_cells(queries, reference, 0)
    with pytest.raises(ValueError, match="queries has 1 words a row, expected 2"):
        nearest_cells(queries[:, :1], reference, 1)
    with pytest.raises(TypeError, match="queries has dtype int64"):
        nearest_cells(queries.astype(np.int64), reference, 1)
    with pytest.raises(ValueError, match="n_candidates is 3, expected at least k = 4"):
        nearest_cells_asymmetric(np.ones((1, 128)), reference, 4, n_candidates=3)
    with pytest.raises(ValueError, match="row 1 of margins is not finite"):
        nearest_cells_asymmetric(np.array([[1.0] * 128, [np.nan] * 128]), reference, 1, n_candidates=1)
    one = np.zeros((1, 1), np.uint64)
    for arrays, message in (
        (([1], [0, 2], [0], [1], 1), "starts must rise from 0 to 1"),
        (([1, 1], [0, 1], [0], [1], 1), "1 codes with 2 counts"),
        (([0], [0, 1], [0], [1], 1), "code 0 has 0 cells"),
        (([1], [0, 1], [1], [1], 1), "categories go from 1 to 1, expected 0 to 0"),
        (([1.0], [0, 1], [0], [1], 1), "counts has shape"),
    ):
        with pytest.raises(ValueError, match=message):
            CountedCodes(one, *arrays)


@given(
    seed=SEEDS,
    sizes=st.tuples(*[st.sampled_from([0, 1, 64, 65, 200])] * 2),
    n_words=st.integers(1, 3),
    spread=st.sampled_from([1, 4, 64]),
)
@settings(max_examples=40, deadline=None)
def test_counts_of_keys_agree_and_merge(seed: int, sizes: tuple[int, int], n_words: int, spread: int) -> None:
    rng = np.random.default_rng(seed)
    blocks = [rng.integers(0, 2**64, (n, n_words), dtype=np.uint64) >> np.uint64(64 - spread) for n in sizes]
    tables = [sorted_counts.count_keys(block) for block in blocks]
    for block, table in zip(blocks, tables, strict=True):
        assert_same(table, plain.count_keys(block))
        assert sorted_counts.first_out_of_order(table[0]) == -1
        assert sorted_counts.first_out_of_order(block) == plain.first_out_of_order(block)
    merged = sorted_counts.merge_counts(*tables[0], *tables[1])
    assert_same(merged, plain.merge_counts(*tables[0], *tables[1]))
    assert_same(merged, sorted_counts.merge_counts(*tables[1], *tables[0]))
    assert_same(merged, sorted_counts.count_keys(np.concatenate(blocks)))


def test_bad_counts_are_refused() -> None:
    keys = np.zeros((2, 1), np.uint64)
    with pytest.raises(ValueError, match="other_counts has dtype int32"):
        sorted_counts.merge_counts(keys, np.ones(2, np.int64), keys, np.ones(2, np.int32))
    with pytest.raises(ValueError, match="keys has 1 words a row|other_keys has 1 words a row, expected 2"):
        sorted_counts.merge_counts(np.zeros((2, 2), np.uint64), np.ones(2, np.int64), keys, np.ones(2, np.int64))
