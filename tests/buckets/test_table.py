"""The streaming table: exact, bounded, and independent of order and partition."""

from __future__ import annotations

import tracemalloc

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hashstream.buckets import BucketIndex, BucketTable
from hashstream.errors import SettingsError
from hashstream.kernels import prefix_mask, reference


def cells(seed: int, n: int, n_bits: int, n_dims: int = 3) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    n_words = (n_bits + 63) // 64
    codes = rng.integers(0, 2**64, (n, n_words), dtype=np.uint64) & prefix_mask(n_bits, n_words)
    codes[:, 0] &= rng.integers(0, 2**64, n, dtype=np.uint64)
    return codes, rng.standard_normal((n, n_dims)).astype(np.float32)


def same(a: BucketTable, b: BucketTable) -> None:
    (x, sums_x), (y, sums_y) = a.tokens(), b.tokens()
    assert np.array_equal(sums_x, sums_y)
    for name, left in vars(x).items():
        assert (left is None) == (getattr(y, name) is None)
        assert left is None or np.array_equal(left, getattr(y, name))


def row_halves(n: int) -> np.ndarray:
    return np.array([reference.half_of(row) for row in range(n)])


@settings(deadline=None, max_examples=40)
@given(
    st.integers(0, 10**6),
    st.integers(0, 400),
    st.sampled_from([5, 12, 64, 70]),
    st.sampled_from([1, 7, 64, 1000]),
    st.lists(st.integers(0, 400), max_size=5),
    st.booleans(),
    st.booleans(),
)
def test_any_partition_in_any_order_gives_the_same_tokens(
    seed: int, n: int, n_bits: int, max_buckets: int, cuts: list[int], halves: bool, with_batches: bool
) -> None:
    codes, embedding = cells(seed, n, n_bits)
    batch_of = np.random.default_rng(seed).integers(0, 2, n)
    max_buckets += with_batches

    def table_of(low: int, high: int) -> BucketTable:
        table = BucketTable(
            n_bits, 3, max_buckets=max_buckets, with_halves=halves, with_batches=with_batches
        )  # fmt: skip
        batches = batch_of[low:high] if with_batches else None
        table.add(codes[low:high], embedding[low:high], first_row=low if halves else None, batches=batches)
        return table

    whole = table_of(0, n)
    edges = sorted({0, n, *(min(c, n) for c in cuts)})
    parts = [table_of(low, high) for low, high in zip(edges, edges[1:], strict=False)]
    merged = table_of(0, 0)
    for i in np.random.default_rng(seed).permutation(len(parts)):
        merged.merge(parts[i])
    same(whole, merged)
    whole.fit()
    assert whole.n_buckets <= max_buckets


def test_the_prefix_is_the_longest_that_fits() -> None:
    codes, embedding = cells(3, 5000, 16)
    table = BucketTable(16, 3, max_buckets=300)
    table.add(codes, embedding)
    tokens, _ = table.tokens()
    distinct = [len(np.unique(codes[:, 0] & prefix_mask(b, 1)[0])) for b in range(17)]
    assert tokens.bucket_bits == max(b for b in range(17) if distinct[b] <= 300)
    assert tokens.n_tokens == distinct[tokens.bucket_bits]
    assert tokens.n_cells == 5000


def test_means_are_those_of_the_cells() -> None:
    codes, embedding = cells(4, 3000, 6)
    table = BucketTable(6, 3)
    table.add(codes, embedding)
    tokens, _ = table.tokens()
    rows = BucketIndex(tokens).rows(codes)
    for bucket in range(tokens.n_tokens):
        mean = embedding[rows == bucket].astype(np.float64).mean(axis=0)
        np.testing.assert_allclose(tokens.means[bucket], mean, atol=2e-6)


@pytest.mark.parametrize("with_batches", [False, True])
def test_tokens_of_halves_and_batches_are_those_of_the_cells(with_batches: bool) -> None:
    """At every prefix, against a plain count of the cells."""
    n, n_bits = 3000, 9
    codes, embedding = cells(6, n, n_bits)
    batch_of = np.random.default_rng(1).integers(0, 3, n) if with_batches else None
    table = BucketTable(n_bits, 3, with_halves=True, with_batches=with_batches)
    table.add(codes, embedding, first_row=0, batches=batch_of)
    tokens, sums = table.tokens()
    assert sums.shape == (tokens.n_tokens, 2, 3)
    half_of = row_halves(n)
    for bits in (9, 8, 5, 1, 0):
        short, parent = tokens.shorten(bits)
        keys = (codes & prefix_mask(bits, 1)).astype(np.int64)
        if batch_of is not None:
            keys = np.column_stack([keys, batch_of])
        found, row_of, counts = np.unique(keys, axis=0, return_inverse=True, return_counts=True)
        row_of = row_of.ravel()
        assert tokens.n_prefixes(bits) == short.n_tokens == len(found)
        assert np.array_equal(short.codes[:, 0], found[:, 0].astype(np.uint64))
        assert np.array_equal(short.counts, counts)
        assert np.array_equal(short.counts, np.bincount(parent, weights=tokens.counts))
        if batch_of is not None:
            assert np.array_equal(short.batches, found[:, 1])
        assert np.array_equal(BucketIndex(short).rows(codes, batch_of), row_of)
        assert np.array_equal(short.half_counts, np.bincount(row_of, weights=half_of == 0))
        for token in {0, len(found) // 2, len(found) - 1}:
            mine = row_of == token
            np.testing.assert_allclose(short.means[token], embedding[mine].mean(axis=0, dtype=float), atol=3e-6)
            for half in (0, 1):
                part = mine & (half_of == half) if (mine & (half_of == half)).any() else mine
                mean = embedding[part].mean(axis=0, dtype=float)
                np.testing.assert_allclose(short.half_means[token, half], mean, atol=3e-6)


def test_a_half_without_cells_has_the_mean_of_all() -> None:
    table = BucketTable(4, 2, with_halves=True)
    row = int(np.flatnonzero(row_halves(20))[0])
    table.add(np.full((1, 1), 3, np.uint64), np.array([[1.0, -2.0]], np.float32), first_row=row)
    tokens, _ = table.tokens()
    for each in (tokens, tokens.shorten(1)[0]):
        assert each.half_counts.tolist() == [0]
        assert each.half_means.tolist() == [[[1.0, -2.0], [1.0, -2.0]]]


def test_more_batches_than_buckets_are_refused() -> None:
    codes, embedding = cells(7, 40, 16)
    table = BucketTable(16, 3, max_buckets=4, with_batches=True)
    with pytest.raises(SettingsError, match="max_buckets is 4"):
        table.add(codes, embedding, batches=np.arange(40))
    few = BucketTable(16, 3, max_buckets=4, with_batches=True)
    few.add(codes, embedding, batches=np.arange(40) % 4)
    assert few.tokens()[0].batches.tolist() == [0, 1, 2, 3]


def test_index_knows_what_it_does_not_hold() -> None:
    codes, embedding = cells(5, 50, 20)
    table = BucketTable(20, 3)
    table.add(codes, embedding)
    tokens, _ = table.tokens()
    other = (codes[:1] ^ np.uint64(1 << 19)).copy()
    expected = -1 if other[0, 0] not in codes else BucketIndex(tokens).rows(other)[0]
    assert BucketIndex(tokens).rows(other)[0] == expected
    # Bits above the prefix are ignored.
    assert BucketIndex(tokens).rows(codes | np.uint64(1 << 50)).tolist() == BucketIndex(tokens).rows(codes).tolist()


def test_settings_are_checked() -> None:
    with pytest.raises(SettingsError, match="bucket_bits"):
        BucketTable(16, 2, bucket_bits=17)
    with pytest.raises(SettingsError, match="max_buckets"):
        BucketTable(16, 2, max_buckets=0)
    with pytest.raises(ValueError, match="merged"):
        BucketTable(16, 2).merge(BucketTable(16, 3))
    with pytest.raises(ValueError, match="merged"):
        BucketTable(16, 2).merge(BucketTable(16, 2, with_halves=True))
    codes, embedding = cells(8, 5, 16, 2)
    with pytest.raises(ValueError, match="first_row is given"):
        BucketTable(16, 2).add(codes, embedding, first_row=0)
    with pytest.raises(ValueError, match="batches are given"):
        BucketTable(16, 2, with_batches=True).add(codes, embedding)


@pytest.mark.parametrize("with_batches", [False, True])
def test_a_table_goes_on_counting_after_its_tokens_were_made(with_batches: bool) -> None:
    """Its rows were put in order then, and are found where they are now."""
    codes, embedding = cells(8, 600, 10, n_dims=70)
    batch_of = np.arange(600) % 3 if with_batches else None
    tables = [BucketTable(10, 70, max_buckets=400, with_halves=True, with_batches=with_batches) for _ in range(2)]
    for table in tables:
        for low in (0, 300):
            batches = None if batch_of is None else batch_of[low : low + 300]
            table.add(codes[low : low + 300], embedding[low : low + 300], first_row=low, batches=batches)
            if table is tables[1]:
                table.tokens()
    same(*tables)


def test_tokens_are_made_within_the_memory_of_a_table() -> None:
    """At 256 bits the sums are nearly all that `encode` holds: no second copy of them."""
    n = 20_000
    codes, embedding = cells(9, n, 256, n_dims=256)
    table = BucketTable(256, 256, max_buckets=n, with_halves=True)
    table.add(codes, embedding, first_row=0)
    tracemalloc.start()
    tokens, sums = table.tokens(half_means=False)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert tokens.n_tokens > 0.9 * n
    assert peak < sums.nbytes / 2
