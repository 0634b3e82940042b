"""The streaming table: exact, bounded, and independent of order and partition."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hashstream.buckets import BucketIndex, BucketTable
from hashstream.errors import SettingsError
from hashstream.kernels import prefix_mask


def cells(seed: int, n: int, n_bits: int, n_dims: int = 3) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    n_words = (n_bits + 63) // 64
    codes = rng.integers(0, 2**64, (n, n_words), dtype=np.uint64) & prefix_mask(n_bits, n_words)
    codes[:, 0] &= rng.integers(0, 2**64, n, dtype=np.uint64)
    return codes, rng.standard_normal((n, n_dims)).astype(np.float32)


def same(a: BucketTable, b: BucketTable) -> None:
    (x, sums_x), (y, sums_y) = a.tokens(), b.tokens()
    assert x.bucket_bits == y.bucket_bits
    for left, right in ((x.codes, y.codes), (x.counts, y.counts), (x.means, y.means), (sums_x, sums_y)):
        assert np.array_equal(left, right)


@settings(deadline=None, max_examples=40)
@given(
    st.integers(0, 10**6),
    st.integers(0, 400),
    st.sampled_from([5, 12, 64, 70]),
    st.sampled_from([1, 7, 64, 1000]),
    st.lists(st.integers(0, 400), max_size=5),
)
def test_any_partition_in_any_order_gives_the_same_tokens(
    seed: int, n: int, n_bits: int, max_buckets: int, cuts: list[int]
) -> None:
    codes, embedding = cells(seed, n, n_bits)
    whole = BucketTable(n_bits, 3, max_buckets=max_buckets)
    whole.add(codes, embedding)
    edges = sorted({0, n, *(min(c, n) for c in cuts)})
    parts = []
    for low, high in zip(edges, edges[1:], strict=False):
        part = BucketTable(n_bits, 3, max_buckets=max_buckets)
        part.add(codes[low:high], embedding[low:high])
        parts.append(part)
    merged = BucketTable(n_bits, 3, max_buckets=max_buckets)
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
