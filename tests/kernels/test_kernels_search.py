"""Search within a radius, histograms of distances and the multi-index against their NumPy meaning."""

from __future__ import annotations

import os
import subprocess
import sys
from math import comb
from pathlib import Path
from typing import Any

import numba
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numba.core.caching import NullCache

from hashstream import kernels
from hashstream.kernels import hamming, reference, reference_search
from hashstream.kernels._cpu import NO_AVX512, has_feature
from hashstream.kernels._intrinsics import popcount
from hashstream.kernels._jit import bare, jit
from hashstream.kernels._probe import CHUNK, LOOKUPS

ROOT = Path(__file__).resolve().parents[2]
SIZES = [0, 1, 63, 64, 65, 511, 512, 513, 1300]


def clustered_codes(rng: Any, n: int, n_words: int, flips: float) -> Any:
    """Codes around five centres, each bit turned with a probability: few flips give many ties and duplicates."""
    centres = rng.integers(0, 2, (5, 64 * n_words))
    bits = centres[rng.integers(0, 5, n)] ^ (rng.random((n, 64 * n_words)) < flips)
    return kernels.pack_bits(bits.astype(bool))


def assert_same(found: Any, expected: Any) -> None:
    for a, b in zip(found, expected, strict=True):
        assert a.dtype == b.dtype
        np.testing.assert_array_equal(a, b)


sizes = st.sampled_from(SIZES)
queries_of = st.sampled_from([0, 1, 5, 47, 48, 70])
words_of = st.integers(1, 5)
flips_of = st.sampled_from([0.0, 0.01, 0.1, 0.5])


@given(
    seed=st.integers(0, 2**32 - 1),
    n=sizes,
    n_queries=queries_of,
    n_words=words_of,
    flips=flips_of,
    radius=st.sampled_from([0, 1, 7, 30, 64, 500]),
    n_threads=st.sampled_from([1, 3]),
)
@settings(max_examples=60, deadline=None)
def test_radius_and_histogram_agree_with_the_reference(
    seed: int, n: int, n_queries: int, n_words: int, flips: float, radius: int, n_threads: int
) -> None:
    rng = np.random.default_rng(seed)
    both = clustered_codes(rng, n + n_queries, n_words, flips)
    queries, codes = both[:n_queries], both[n_queries:]
    queries.flags.writeable = codes.flags.writeable = False
    found = kernels.hamming_radius(queries, codes, radius, n_threads=n_threads)
    assert_same(found, reference_search.hamming_radius(queries, codes, radius))
    for max_results in (1, 1000, 10**9):
        at = 0
        for first, block in kernels.hamming_radius_blocks(
            queries, codes, radius, max_results=max_results, n_threads=n_threads
        ):
            part = found.offsets[at : at + len(block.offsets)]
            assert first == at
            assert len(block.rows) <= max_results or len(block.offsets) == 2
            rows = slice(part[0], part[-1])
            assert_same(block, (part - part[0], found.rows[rows], found.distances[rows]))
            at += len(block.offsets) - 1
        assert at == n_queries
    counts = kernels.count_within(queries, codes, radius, n_threads=n_threads)
    assert_same([counts], [reference_search.count_within(queries, codes, radius)])
    assert counts.sum() == found.offsets[-1]
    histogram = kernels.hamming_histogram(queries, codes, n_threads=n_threads)
    assert_same([histogram], [reference_search.hamming_histogram(queries, codes)])
    assert (histogram.sum(axis=1) == n).all()


@given(
    seed=st.integers(0, 2**32 - 1),
    n=sizes,
    n_queries=st.sampled_from([0, 1, 5, 70]),
    n_words=st.integers(1, 4),
    flips=flips_of,
    k=st.sampled_from([1, 3, 64, 2000]),
    per_word=st.sampled_from([None, 5, 7, 8]),
    n_threads=st.sampled_from([1, 3]),
)
@settings(max_examples=60, deadline=None)
def test_the_multi_index_agrees_with_the_reference(
    seed: int, n: int, n_queries: int, n_words: int, flips: float, k: int, per_word: int | None, n_threads: int
) -> None:
    rng = np.random.default_rng(seed)
    both = clustered_codes(rng, n + n_queries, n_words, flips)
    queries, codes = both[:n_queries], both[n_queries:]
    queries.flags.writeable = codes.flags.writeable = False
    index = kernels.MultiIndex(codes, tables_per_word=per_word)
    found = index.search(queries, k, n_threads=n_threads)
    assert_same(found, reference_search.MultiIndex(codes).search(queries, k))
    assert index.n_distinct == len(np.unique(codes, axis=0))


@pytest.mark.parametrize("n_words", [1, 2, 3, 4])
@pytest.mark.parametrize("per_word", [3, 4, 6])
@pytest.mark.parametrize("flips", [0.01, 0.06, 0.5])
def test_the_multi_index_over_many_codes(n_words: int, per_word: int, flips: float) -> None:
    # Near queries end in the first buckets, far ones after many of them, those of random codes with a scan of all.
    rng = np.random.default_rng(n_words)
    codes = clustered_codes(rng, 30_011, n_words, flips)
    queries = np.concatenate([codes[:20] ^ np.uint64(1 << 40), clustered_codes(rng, 5, n_words, 0.5)])
    index = kernels.MultiIndex(codes, tables_per_word=per_word)
    assert_same(index.search(queries, 12), reference.hamming_topk(queries, codes, 12))


def test_the_multi_index_takes_more_lookups_than_are_ordered_at_once() -> None:
    codes = clustered_codes(np.random.default_rng(9), 40_000, 1, 0.03)
    queries = codes[:18_000] ^ np.uint64(0xFFF)  # three bits of each substring
    index = kernels.MultiIndex(codes, tables_per_word=4)
    expected = kernels.hamming_topk(queries, codes, 5)
    assert (expected[0][:, -1] > 7).sum() * comb(16, 2) > LOOKUPS  # those that look two bits far
    assert_same(index.search(queries, 5), expected)


def test_the_multi_index_gives_rows_of_equal_codes_in_order() -> None:
    codes = np.zeros((3 * CHUNK, 1), np.uint64)
    codes[::3] = 1
    index = kernels.MultiIndex(codes)
    assert (index.n_rows, index.n_distinct) == (3 * CHUNK, 2)
    distances, rows = index.search(np.ones((1, 1), np.uint64), CHUNK + 2)
    assert rows[0].tolist() == [*range(0, 3 * CHUNK, 3), 1, 2]
    assert distances[0].tolist() == [0] * CHUNK + [1, 1]


def test_search_takes_views_and_refuses_what_does_not_fit() -> None:
    rng = np.random.default_rng(3)
    wide = rng.integers(0, 2**63, (900, 6), dtype=np.uint64)
    codes = wide[4::3, ::3]
    index = kernels.MultiIndex(codes)
    for view in (codes[::2], codes[1:50:7]):
        assert_same(kernels.hamming_radius(view, codes, 50), kernels.hamming_radius(view.copy(), codes.copy(), 50))
        assert_same(index.search(view, 4), kernels.hamming_topk(view.copy(), codes.copy(), 4))
        assert_same([kernels.hamming_histogram(view, codes)], [kernels.hamming_histogram(view.copy(), codes.copy())])
    with pytest.raises(ValueError, match="radius is -1"):
        kernels.hamming_radius(codes, codes, -1)
    with pytest.raises(ValueError, match=f"{len(codes)} codes are within 0 bits of the {len(codes)} queries, more"):
        kernels.hamming_radius(codes, codes, 0, max_results=5)
    with pytest.raises(TypeError, match="queries has dtype int64"):
        kernels.hamming_histogram(codes.astype(np.int64), codes)
    with pytest.raises(ValueError, match="2 words a row, expected 6"):
        kernels.hamming_radius(wide, codes, 1)
    with pytest.raises(ValueError, match="k is 0"):
        index.search(codes, 0)
    with pytest.raises(ValueError, match="6 words a row, expected 2"):
        index.search(wide, 1)
    with pytest.raises(ValueError, match="tables_per_word is 2"):
        kernels.MultiIndex(codes, tables_per_word=2)
    with pytest.raises(ValueError, match="at most 4 words"):
        kernels.MultiIndex(wide)


@pytest.mark.parametrize("n_queries", [1, 2, 60])
def test_threads_that_share_the_codes_give_the_same(n_queries: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hashstream.kernels.hamming.SHARED_CODES", 1000)
    codes = clustered_codes(np.random.default_rng(5), 5077, 2, 0.02)
    queries = codes[:n_queries]
    for k in (10, 300):
        expected = reference.hamming_topk(queries, codes, k)
        for _ in range(10):  # threads come and go in another order each time
            assert_same(kernels.hamming_topk(queries, codes, k, n_threads=3), expected)


def test_the_plan_counts_the_work(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(6)
    monkeypatch.setattr("hashstream.kernels.plan.FEWEST_CODES", 1)
    monkeypatch.setattr("hashstream.kernels.plan.LOOKUP", 20)  # or it never pays among so few
    far = clustered_codes(rng, 40_000, 1, 0.5)
    near = far.copy()
    near[1::2] = near[::2] ^ np.uint64(1 << 9)  # pairs
    many = 10**9
    assert kernels.plan_search(near[:50], near, 2, n_queries=many).use_index
    for plan in (
        kernels.plan_search(near[:50], near, 2),  # too few to pay for building
        kernels.plan_search(far[:50] ^ np.uint64(0xFFFFFFFF), far, 2, n_queries=many),
        kernels.plan_search(near[:50], near, 500, n_queries=many),
        kernels.plan_search(near[:0], near, 2, n_queries=many),
        kernels.plan_search(np.tile(near[:50], 5), np.tile(near, 5), 2, n_queries=many),
    ):
        assert not plan.use_index
    with pytest.raises(ValueError, match="k is 0"):
        kernels.plan_search(near, near, 0)


@pytest.mark.parametrize("n_words", [1, 3])
def test_one_query_finds_the_same_where_memory_is_asked_for_and_where_not(
    n_words: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    rng = np.random.default_rng(n_words)
    codes, query = clustered_codes(rng, 1500, n_words, 0.2), clustered_codes(rng, 1, n_words, 0.2)
    expected = reference.hamming_topk(query, codes, 20)
    for reads_ahead in (True, False):  # the processor at hand has but one of them
        monkeypatch.setattr(hamming, "READS_AHEAD", reads_ahead)
        scan = numba.njit(_nrt=False)(hamming._topk_one.py_func)
        distances, rows = np.full(20, 64 * n_words + 1, np.int32), np.full(20, -1, np.int64)
        scan(query[0], codes, codes.ravel(), 20, (0,) * n_words, distances, rows)
        np.testing.assert_array_equal(distances, expected[0][0])
        np.testing.assert_array_equal(rows, expected[1][0])


def test_compiled_code_uses_what_the_environment_allows() -> None:
    @numba.njit
    def count(words):  # type: ignore[no-untyped-def]
        total = np.uint64(0)
        for word in words:
            total += popcount(word)
        return total

    assert count(np.arange(64, dtype=np.uint64)) == 192
    (asm,) = count.inspect_asm().values()
    if os.environ.get(NO_AVX512, "0") not in ("", "0"):
        assert not has_feature("avx512f")
        assert "zmm" not in asm
        assert "vpopcnt" not in asm
    elif has_feature("avx512vpopcntdq"):
        assert "vpopcntq" in asm


def test_bare_kernels_do_not_count_who_holds_arrays() -> None:
    def sum_rows(values, out):  # type: ignore[no-untyped-def]
        for row in range(len(values)):
            part = values[row]
            if part[0] > 0.0:
                out[row] = _total(part)

    values = np.arange(6.0).reshape(2, 3)
    texts = {}
    for decorate in (jit, bare):
        kernel: Any = decorate(sum_rows)
        kernel._cache = NullCache()  # of a cached kernel numba does not show the code
        out = np.zeros(2)
        kernel(values, out)
        np.testing.assert_array_equal(out, [0.0, 12.0])
        (texts[decorate],) = kernel.inspect_llvm().values()
    assert "NRT_incref" in texts[jit]
    assert "NRT_" not in texts[bare]


@bare
def _total(values):  # type: ignore[no-untyped-def]
    total = 0.0
    for i in range(len(values)):
        total += values[i]
    return total


@pytest.mark.slow
def test_without_avx512_the_same_tests_pass() -> None:
    if os.environ.get(NO_AVX512, "0") not in ("", "0"):
        pytest.skip(f"{NO_AVX512} is set already")
    if not has_feature("avx512f"):
        pytest.skip("numba compiles without AVX-512 here anyway")
    chosen = "compiled_code or takes_views or topk_over_many_blocks and -2 or index_over_many_codes and 01-4-2"
    files = ["tests/kernels/test_kernels_search.py", "tests/kernels/test_kernels_codes.py"]
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *files, "-k", chosen],
        env={**os.environ, NO_AVX512: "1"},
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "skipped" not in done.stdout
