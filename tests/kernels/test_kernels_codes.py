"""Packing, buckets and Hamming search against their NumPy meaning."""

from __future__ import annotations

from typing import Any

import numba
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hashstream import kernels
from hashstream.kernels import hamming, reference
from hashstream.kernels._cpu import has_feature
from hashstream.kernels._planes import counter_bits, make_any_below, n_choices, table_planes
from hashstream.kernels.hamming import _choices_of, _limits_to, _slice_block

SIZES = [0, 1, 63, 64, 65, 200]


def random_codes(rng: Any, n: int, n_words: int, spread: int = 64) -> Any:
    """Codes of which only `spread` bits of each word vary, so that small spreads give ties."""
    codes = rng.integers(0, 2**63, (n, n_words), dtype=np.uint64) << np.uint64(1)
    return codes & np.uint64((1 << spread) - 1) | np.uint64(rng.integers(0, 2)) << np.uint64(63)


@given(
    seed=st.integers(0, 2**32 - 1),
    n=st.sampled_from(SIZES),
    n_bits=st.sampled_from([1, 16, 63, 64, 65, 127, 128, 130]),
    dtype=st.sampled_from([np.float32, bool]),
)
@settings(max_examples=40, deadline=None)
def test_packing_agrees_and_goes_back(seed: int, n: int, n_bits: int, dtype: Any) -> None:
    values = np.random.default_rng(seed).standard_normal((n, n_bits)).round(1).astype(np.float32)
    values = values > 0 if dtype is bool else values
    codes = kernels.pack_bits(values)
    assert codes.dtype == np.uint64
    np.testing.assert_array_equal(codes, reference.pack_bits(values))
    bits = kernels.unpack_bits(codes, n_bits)
    np.testing.assert_array_equal(bits, reference.unpack_bits(codes, n_bits))
    np.testing.assert_array_equal(bits, (values > 0).astype(np.uint8))


@given(
    seed=st.integers(0, 2**32 - 1),
    n=st.sampled_from(SIZES),
    n_bits=st.sampled_from([1, 16, 63, 64, 65, 128, 130]),
    n_groups=st.sampled_from([1, 3, 60]),
)
@settings(max_examples=40, deadline=None)
def test_set_bits_are_counted_by_group(seed: int, n: int, n_bits: int, n_groups: int) -> None:
    rng = np.random.default_rng(seed)
    codes = rng.integers(0, 2**64, (n, -(-n_bits // 64)), dtype=np.uint64)
    groups = rng.integers(-1, n_groups, n).astype(np.int32)
    counts = kernels.count_set_bits(codes, groups, n_groups, n_bits)
    assert counts.dtype == np.int64
    np.testing.assert_array_equal(counts, reference.count_set_bits(codes, groups, n_groups, n_bits))


@pytest.mark.parametrize(
    ("groups", "n_bits", "error", "message"),
    [
        (np.array([0, 2]), 8, ValueError, "groups goes up to 2"),
        (np.array([0]), 8, ValueError, r"groups has shape \(1,\)"),
        (np.array([0.0, 1.0]), 8, TypeError, "groups has dtype float64"),
        (np.array([0, 1]), 65, ValueError, "n_bits is 65"),
    ],
)
def test_counting_set_bits_refuses(groups: Any, n_bits: int, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        kernels.count_set_bits(np.zeros((2, 1), np.uint64), groups, 2, n_bits)


def test_packing_takes_views_and_refuses_other_types() -> None:
    wide = np.random.default_rng(0).standard_normal((70, 200)).astype(np.float32)
    view = wide[3::2, 5:170:2]
    np.testing.assert_array_equal(kernels.pack_bits(view), kernels.pack_bits(view.copy()))
    assert kernels.pack_bits(np.array([[np.nan, 0.0, -0.0, 1e-45]], np.float32)).tolist() == [[8]]
    with pytest.raises(TypeError, match="float64"):
        kernels.pack_bits(wide.astype(np.float64))
    with pytest.raises(ValueError, match="1 dimensions"):
        kernels.pack_bits(wide[0])
    with pytest.raises(TypeError, match="codes has dtype int64"):
        kernels.unpack_bits(np.zeros((3, 1), np.int64), 5)
    with pytest.raises(ValueError, match="n_bits is 65"):
        kernels.unpack_bits(np.zeros((3, 1), np.uint64), 65)


@pytest.mark.parametrize("n_bits", [0, 1, 63, 64, 65, 127, 128])
def test_prefix_mask(n_bits: int) -> None:
    np.testing.assert_array_equal(kernels.prefix_mask(n_bits, 2), reference.prefix_mask(n_bits, 2))


def test_prefix_mask_refuses_more_bits_than_there_are() -> None:
    with pytest.raises(ValueError, match="expected 0 to 64"):
        kernels.prefix_mask(65, 1)


def table(max_rows: int, n_words: int, n_dims: int, *, with_halves: bool = False) -> Any:
    return kernels.new_bucket_arrays(max_rows, n_words, n_dims, with_halves=with_halves)


def assert_same_rows(a: Any, b: Any) -> None:
    assert a.used[0] == b.used[0]
    for name in ("keys", "counts", "half_counts", "sums"):
        np.testing.assert_array_equal(getattr(a, name), getattr(b, name))


@given(
    seed=st.integers(0, 2**32 - 1),
    n=st.sampled_from(SIZES),
    n_words=st.integers(1, 3),
    n_dims=st.sampled_from([0, 1, 9]),
    n_bits=st.sampled_from([0, 3, 5, 64]),
    max_rows=st.sampled_from([1, 7, 300]),
    start=st.sampled_from([0, 1]),
    first_row=st.sampled_from([None, 0, 12345, 2**40]),
)
@settings(max_examples=80, deadline=None)
def test_counting_agrees_with_the_reference(
    seed: int, n: int, n_words: int, n_dims: int, n_bits: int, max_rows: int, start: int, first_row: int | None
) -> None:
    rng = np.random.default_rng(seed)
    codes = random_codes(rng, n, n_words)
    start = min(start, n)
    embedding = (rng.standard_normal((n, n_dims)) * 10.0 ** rng.integers(-8, 8, (n, n_dims))).astype(np.float32)
    mask = kernels.prefix_mask(n_bits, n_words)
    a, b = (table(max_rows, n_words, n_dims, with_halves=first_row is not None) for _ in range(2))
    stopped = kernels.count_buckets(a, codes, embedding if n_dims else None, mask, start, first_row=first_row)
    assert stopped == reference.count_buckets(b, codes, embedding, mask, start, first_row=first_row)
    assert_same_rows(a, b)
    assert a.counts.sum() == stopped - start
    rows = kernels.lookup_buckets(a, codes, mask)
    assert rows.dtype == np.int32
    np.testing.assert_array_equal(rows, reference.lookup_buckets(b, codes, mask))


def test_a_full_table_stops_and_goes_on_with_a_shorter_prefix() -> None:
    codes = np.arange(100, dtype=np.uint64)[:, None]
    arrays, mask = table(8, 1, 0), kernels.prefix_mask(64, 1)
    assert kernels.count_buckets(arrays, codes, None, mask) == 8
    assert kernels.count_buckets(arrays, codes[:8], None, mask) == 8  # known buckets still count
    shorter = table(8, 1, 0)
    mask = kernels.prefix_mask(3, 1)
    assert kernels.merge_buckets(shorter, arrays.keys, arrays.counts, arrays.half_counts, arrays.sums, mask) == 8
    assert kernels.count_buckets(shorter, codes, None, mask, 8) == 100
    assert shorter.counts.sum() == 108


@given(
    seed=st.integers(0, 2**32 - 1), parts=st.integers(1, 4), n_dims=st.sampled_from([0, 3]), with_halves=st.booleans()
)
@settings(max_examples=30, deadline=None)
def test_merging_in_any_order_gives_the_same_integers(seed: int, parts: int, n_dims: int, with_halves: bool) -> None:
    rng = np.random.default_rng(seed)
    codes = random_codes(rng, 300, 2, spread=4)
    embedding = rng.standard_normal((300, n_dims)).astype(np.float32)
    long, short = kernels.prefix_mask(66, 2), kernels.prefix_mask(3, 2)

    def empty() -> Any:
        return table(64, 2, n_dims, with_halves=with_halves)

    whole = empty()
    assert kernels.count_buckets(whole, codes, embedding, short, first_row=100 if with_halves else None) == 300
    tables = []
    for rows in np.array_split(np.arange(300), parts):
        tables.append(empty())
        first = 100 + rows[0] if with_halves else None
        assert kernels.count_buckets(tables[-1], codes[rows], embedding[rows], long, first_row=first) == len(rows)
    merged, by_reference = empty(), empty()
    for i in rng.permutation(parts):
        used = tables[i].used[0]
        rows_of = tuple(part[:used] for part in tables[i][1:5])
        assert kernels.merge_buckets(merged, *rows_of, short) == used
        assert reference.merge_buckets(by_reference, *rows_of, short) == used
    assert_same_rows(merged, by_reference)

    def sorted_rows(arrays: Any) -> Any:
        used = arrays.used[0]
        order = np.lexsort(arrays.keys[:used].T)
        return [part[:used][order].tolist() for part in arrays[1:5] if len(part)]

    assert sorted_rows(merged) == sorted_rows(whole)


@given(
    seed=st.integers(0, 2**32 - 1),
    n=st.sampled_from([0, 1, 40, 300]),
    n_dims=st.sampled_from([0, 3]),
    n_bits=st.sampled_from([0, 2, 5, 66, 128]),
    with_halves=st.booleans(),
)
@settings(max_examples=40, deadline=None)
def test_shortening_in_place_agrees_with_the_reference(
    seed: int, n: int, n_dims: int, n_bits: int, with_halves: bool
) -> None:
    rng = np.random.default_rng(seed)
    codes, embedding = random_codes(rng, n, 2, spread=6), rng.standard_normal((n, n_dims)).astype(np.float32)
    long, short = kernels.prefix_mask(128, 2), kernels.prefix_mask(n_bits, 2)
    tables = [table(310, 2, n_dims, with_halves=with_halves) for _ in range(3)]
    first_row = 7 if with_halves else None
    for arrays, mask in zip(tables, (long, long, short), strict=True):
        assert kernels.count_buckets(arrays, codes, embedding, mask, first_row=first_row) == n
    kernels.shorten_buckets(tables[0], short)
    reference.shorten_buckets(tables[1], short)
    for other in tables[1:]:
        assert_same_rows(tables[0], other)
    # It can be counted into and looked up as before.
    kernels.count_buckets(tables[0], codes, embedding, short, first_row=first_row)
    kernels.count_buckets(tables[2], codes, embedding, short, first_row=first_row)
    assert_same_rows(tables[0], tables[2])
    np.testing.assert_array_equal(
        kernels.lookup_buckets(tables[0], codes, short), reference.lookup_buckets(tables[1], codes, short)
    )


def test_halves_are_about_as_large_and_follow_the_row_alone() -> None:
    n = 20_000
    halves = np.array([reference.half_of(row) for row in range(n)])
    assert abs(halves.mean() - 0.5) < 0.02
    assert abs(np.corrcoef(halves[1:], halves[:-1])[0, 1]) < 0.02
    codes, values = (np.arange(n, dtype=np.uint64) % 7)[:, None], np.ones((n, 1), np.float32)
    arrays = table(7, 1, 1, with_halves=True)
    kernels.count_buckets(arrays, codes, values, kernels.prefix_mask(64, 1), first_row=0)
    expected = np.bincount(codes[:, 0].astype(int), weights=halves == 0).astype(int)
    assert arrays.half_counts.tolist() == expected.tolist()
    assert arrays.sums[:, 0, 0].tolist() == (expected * kernels.FIXED_POINT_SCALE).tolist()
    assert arrays.sums.sum(axis=1)[:, 0].tolist() == (arrays.counts * kernels.FIXED_POINT_SCALE).tolist()


def test_fixed_point_rounds_half_to_even_and_saturates() -> None:
    unit = 1.0 / kernels.FIXED_POINT_SCALE
    values = np.array([[0.5 * unit, 1.5 * unit, -0.5 * unit, -2.5 * unit, 3e30, -np.inf, np.nan]], np.float32)
    arrays = table(1, 1, 7)
    kernels.count_buckets(arrays, np.zeros((1, 1), np.uint64), values, kernels.prefix_mask(0, 1))
    assert arrays.sums[0, 0].tolist() == [0, 2, 0, -2, 2**40, -(2**40), 0]


def test_many_colliding_buckets_are_kept_apart() -> None:
    codes = (np.arange(5000, dtype=np.uint64) << np.uint64(40))[:, None]
    arrays, mask = table(5000, 1, 0), kernels.prefix_mask(64, 1)
    assert kernels.count_buckets(arrays, np.concatenate([codes, codes[::-1]]), None, mask) == 10000
    assert arrays.used[0] == 5000
    assert (arrays.counts == 2).all()


def test_buckets_take_views_and_refuse_what_does_not_fit() -> None:
    rng = np.random.default_rng(1)
    wide = random_codes(rng, 60, 6, spread=3)
    embedding = rng.standard_normal((60, 8)).astype(np.float32)
    mask = kernels.prefix_mask(128, 2)
    a, b = table(64, 2, 4), table(64, 2, 4)
    codes, values = wide[5::2, 1:5:3], embedding[5::2, ::2]
    codes.flags.writeable = values.flags.writeable = False
    kernels.count_buckets(a, codes, values, mask)
    kernels.count_buckets(b, codes.copy(), values.copy(), mask)
    assert_same_rows(a, b)
    with pytest.raises(ValueError, match="embedding is None"):
        kernels.count_buckets(a, codes, None, mask)
    with pytest.raises(ValueError, match="embedding has shape"):
        kernels.count_buckets(a, codes, values[:, :3], mask)
    with pytest.raises(ValueError, match="3 words a row, expected 2"):
        kernels.count_buckets(a, wide[:, :3], None, mask)
    with pytest.raises(TypeError, match="codes has dtype int64"):
        kernels.count_buckets(a, codes.astype(np.int64), values, mask)
    with pytest.raises(TypeError, match="mask has dtype"):
        kernels.lookup_buckets(a, codes, mask.astype(np.int64))
    with pytest.raises(ValueError, match="mask has shape"):
        kernels.lookup_buckets(a, codes, mask[:1])
    with pytest.raises(TypeError, match="counts has dtype float64"):
        kernels.merge_buckets(a, b.keys, b.counts.astype(float), b.half_counts, b.sums, mask)
    with pytest.raises(ValueError, match=r"half_counts has shape \(64,\), expected \(0,\)"):
        kernels.merge_buckets(a, b.keys, b.counts, b.counts, b.sums, mask)
    with pytest.raises(ValueError, match="first_row is 5, but the table has 1 part"):
        kernels.count_buckets(a, codes, values, mask, first_row=5)
    with pytest.raises(ValueError, match="start is 99"):
        kernels.count_buckets(a, codes, values, mask, 99)
    with pytest.raises(ValueError, match="max_rows is 0"):
        kernels.new_bucket_arrays(0, 1, 0)


@given(
    seed=st.integers(0, 2**32 - 1),
    n_queries=st.sampled_from([0, 1, 5, 33, 64, 70]),
    n=st.sampled_from(SIZES),
    n_words=st.integers(1, 5),
    spread=st.sampled_from([2, 64]),
    k=st.sampled_from([1, 3, 64, 150, 1000]),
    n_threads=st.sampled_from([1, 3]),
)
@settings(max_examples=80, deadline=None)
def test_topk_agrees_with_the_reference(
    seed: int, n_queries: int, n: int, n_words: int, spread: int, k: int, n_threads: int
) -> None:
    rng = np.random.default_rng(seed)
    queries, codes = random_codes(rng, n_queries, n_words, spread), random_codes(rng, n, n_words, spread)
    distances, rows = kernels.hamming_topk(queries, codes, k, n_threads=n_threads)
    expected_distances, expected_rows = reference.hamming_topk(queries, codes, k)
    assert distances.dtype == np.int32
    assert rows.dtype == np.int64
    np.testing.assert_array_equal(distances, expected_distances)
    np.testing.assert_array_equal(rows, expected_rows)


@pytest.mark.parametrize("n_words", [1, 2, 3, 4])
@pytest.mark.parametrize("k", [10, 300])
@pytest.mark.parametrize("n_queries", [1, 3, 60])
def test_topk_over_many_blocks(n_words: int, k: int, n_queries: int) -> None:
    rng = np.random.default_rng(n_words)
    codes = random_codes(rng, 20_123, n_words, spread=20)
    queries = codes[rng.integers(0, len(codes), n_queries)] ^ np.uint64(1)
    distances, rows = kernels.hamming_topk(queries, codes, k)
    expected_distances, expected_rows = reference.hamming_topk(queries, codes, k)
    np.testing.assert_array_equal(distances, expected_distances)
    np.testing.assert_array_equal(rows, expected_rows)


def test_hamming_takes_views_and_refuses_what_does_not_fit() -> None:
    wide = random_codes(np.random.default_rng(3), 90, 6)
    codes = wide[4::3, ::2]
    codes.flags.writeable = False
    got = kernels.hamming_topk(codes[::2], codes, 4)
    expected = kernels.hamming_topk(codes[::2].copy(), codes.copy(), 4)
    np.testing.assert_array_equal(got[0], expected[0])
    np.testing.assert_array_equal(got[1], expected[1])
    with pytest.raises(ValueError, match="k is 0"):
        kernels.hamming_topk(codes, codes, 0)
    with pytest.raises(ValueError, match="2 words a row, expected 3"):
        kernels.hamming_topk(codes, wide[:, :2], 1)
    with pytest.raises(TypeError, match="queries has dtype int64"):
        kernels.hamming_topk(codes.astype(np.int64), codes, 1)
    with pytest.raises(ValueError, match="shape"):
        kernels.hamming_topk(codes[0], codes, 1)


_SLICED = {ternary: make_any_below(ternary=ternary) for ternary in {False, has_feature("avx512f")}}


@pytest.mark.parametrize("ternary", _SLICED)
@pytest.mark.parametrize("n_words", [1, 2, 3])
def test_sums_in_bit_planes_with_and_without_ternary_logic(ternary: bool, n_words: int) -> None:
    any_below = _SLICED[ternary]

    @numba.njit
    def ask(words, tables, choices, limits, at, below):  # type: ignore[no-untyped-def]
        return any_below(words, tables, choices, 0, limits, at, below)

    rng = np.random.default_rng(n_words)
    n_bits = 64 * n_words
    bits = rng.integers(0, 2, (512, n_bits)) < rng.random((512, 1)) * 3
    query = rng.integers(0, 2, n_bits)
    codes = kernels.pack_bits(bits)
    planes, tables = np.empty(8 * n_bits, np.uint64), np.empty(8 * table_planes(n_bits), np.uint64)
    _slice_block(codes.ravel(), n_words, 0, planes, tables)
    choices = _choices_of(kernels.pack_bits(query[None] > 0), n_choices(n_bits))
    n_levels = counter_bits(n_bits)
    limits = _limits_to(n_bits, n_levels)
    distances = (bits != query).sum(axis=1)
    smallest = int(distances.min())
    # The search never asks for what is nearer than 0; `test_topk_of_repeated_codes` sees to that.
    for limit in (1, max(smallest, 1), smallest + 1, smallest + 2, n_bits // 2, n_bits, n_bits + 1):
        below = np.empty(8, np.uint64)
        assert ask((0,) * n_words, tables, choices, limits, limit * n_levels, below) == (smallest < limit)
        np.testing.assert_array_equal(kernels.unpack_bits(below[:, None], 64).T.ravel(), distances < limit)


@pytest.mark.parametrize("k", [1, 10, 60])
def test_topk_of_repeated_codes(k: int) -> None:
    rng = np.random.default_rng(0)
    codes = np.repeat(rng.integers(0, 2**64, (3, 1), dtype=np.uint64), 3_000, axis=0)
    queries = codes[::100]
    for found, meant in zip(
        kernels.hamming_topk(queries, codes, k), reference.hamming_topk(queries, codes, k), strict=True
    ):
        np.testing.assert_array_equal(found, meant)


def test_threads_share_codes_only_where_results_are_few(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each block of codes holds as many results for a while."""
    rng = np.random.default_rng(4)
    queries, codes = random_codes(rng, 3, 1, 64), random_codes(rng, 400, 1, 64)
    shared: list[int] = []
    real = hamming._search_in_parts
    monkeypatch.setattr(hamming, "SHARED_CODES", 64)
    monkeypatch.setattr(hamming, "SHARED_RESULTS", 60)

    def search(*arguments: Any) -> Any:
        shared.append(arguments[2])
        return real(*arguments)

    monkeypatch.setattr(hamming, "_search_in_parts", search)
    for k in (20, 21):
        found = kernels.hamming_topk(queries, codes, k, n_threads=2)
        expected = reference.hamming_topk(queries, codes, k)
        np.testing.assert_array_equal(found[0], expected[0])
        np.testing.assert_array_equal(found[1], expected[1])
    assert shared == [20]
