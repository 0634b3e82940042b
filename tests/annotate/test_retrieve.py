"""Counting reference cells by code, and the composition of the nearest, against plain counts of single cells."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hashstream.annotate.composition import CodeCounter, join_columns
from hashstream.annotate.retrieve import MISSING, ReferenceCells, bit_margins
from hashstream.kernels import pack_bits
from hashstream.kernels.retrieve import CountedCodes


def random_cells(seed: int, n: int, n_words: int = 1, spread: int = 6) -> tuple[np.ndarray, np.ndarray]:
    """Codes of single cells, of which many are equal, and categories from 0 to 4, or -1."""
    rng = np.random.default_rng(seed)
    codes = rng.integers(0, 2**64, (n, n_words), dtype=np.uint64) >> np.uint64(64 - spread)
    return codes, rng.integers(-1, 5, n)


def counted(codes: np.ndarray, categories: np.ndarray, block: int = 10**6) -> CountedCodes:
    counter = CodeCounter(codes.shape[1])
    for start in range(0, len(codes), block):
        counter.add(codes[start : start + block], categories[start : start + block])
    return counter.result(5)


def entries(cells: CountedCodes) -> Counter:
    """Every (code, category) with its cells, MISSING included."""
    found: Counter = Counter()
    for row, code in enumerate(map(tuple, cells.codes.tolist())):
        part = slice(cells.starts[row], cells.starts[row + 1])
        for category, amount in zip(cells.categories[part].tolist(), cells.amounts[part].tolist(), strict=True):
            found[code, category] += amount
        found[code, MISSING] += int(cells.counts[row] - cells.amounts[part].sum())
    return +found


@given(
    seed=st.integers(0, 2**32 - 1),
    n=st.sampled_from([0, 1, 64, 300]),
    n_words=st.integers(1, 3),
    spread=st.sampled_from([2, 6, 64]),
    block=st.sampled_from([1, 7, 1000]),
)
@settings(max_examples=40, deadline=None)
def test_counting_does_not_depend_on_blocks(seed: int, n: int, n_words: int, spread: int, block: int) -> None:
    codes, categories = random_cells(seed, n, n_words, spread)
    cells = counted(codes, categories, block)
    assert entries(cells) == Counter(zip(map(tuple, codes.tolist()), categories.tolist(), strict=True))
    last_word_first = [tuple(code[::-1]) for code in cells.codes.tolist()]
    assert last_word_first == sorted({tuple(code[::-1]) for code in codes.tolist()})
    for row in range(cells.n_codes):
        of_row = cells.categories[cells.starts[row] : cells.starts[row + 1]]
        assert (np.diff(of_row) > 0).all()


@given(seed=st.integers(0, 2**32 - 1), sizes=st.tuples(*[st.sampled_from([0, 1, 50, 200])] * 2))
@settings(max_examples=30, deadline=None)
def test_counted_cells_can_be_added(seed: int, sizes: tuple[int, int]) -> None:
    one, two = (random_cells(seed + i, n) for i, n in enumerate(sizes))
    counter = CodeCounter(1)
    counter.add_counted(counted(*one))
    counter.add(*two)
    together = counted(np.concatenate([one[0], two[0]]), np.concatenate([one[1], two[1]]))
    for name in ("codes", "counts", "starts", "categories", "amounts"):
        np.testing.assert_array_equal(getattr(counter.result(5), name), getattr(together, name))


def brute_force(codes: np.ndarray, query: np.ndarray, k: int) -> np.ndarray:
    """Which cells are as near as the k-th nearest: (n,) bool."""
    distances = np.bitwise_count(codes ^ query).sum(axis=1)
    return distances <= np.sort(distances)[min(k, len(codes)) - 1]


@pytest.mark.parametrize("k", [1, 30, 100, 5000])
@pytest.mark.parametrize("spread", [6, 40])
def test_composition_equals_a_brute_force_count(k: int, spread: int) -> None:
    """Two columns at once, on random codes with many ties; each neighbour is counted once in either column."""
    codes, types = random_cells(1, 1000, 1, spread)
    batches = np.random.default_rng(2).integers(0, 3, 1000)
    reference = ReferenceCells.of_columns([counted(codes, types), counted(codes, batches)])
    queries = random_cells(3, 40, 1, spread)[0]
    found = reference.nearest(queries, k, n_threads=2)
    rows = reference.rows(found)
    for q in range(40):
        near = brute_force(codes, queries[q], k)
        assert found.n_cells[q] == near.sum()
        expected = [Counter(types[near].tolist()), Counter(batches[near].tolist())]
        mine = rows.query == q
        for column in (0, 1):
            part = mine & (rows.column == column)
            assert dict(zip(rows.category[part].tolist(), rows.n_cells[part].tolist(), strict=True)) == expected[column]
            assert rows.share[part].sum() == pytest.approx(1.0)
    assert (rows.n_cells > 0).all()
    assert (np.diff(rows.query) >= 0).all()


def test_prefix_looks_at_the_first_bits_only() -> None:
    codes, types = random_cells(1, 500, 2, 64)
    reference = ReferenceCells.of_columns([counted(codes, types)])
    for bits in (5, 64, 70):
        mask = np.array([(1 << min(bits, 64)) - 1, (1 << max(bits - 64, 0)) - 1], dtype=np.uint64)
        n_words = 1 if bits <= 64 else 2
        shortened = reference.prefix(bits)
        found = shortened.nearest(np.ascontiguousarray((codes & mask)[:20, :n_words]), 60)
        for q in range(20):
            near = brute_force(codes & mask, codes[q] & mask, 60)
            assert found.composition[q].tolist() == np.bincount(types[near] + 1, minlength=6)[1:].tolist()
    assert reference.prefix(128) is reference


def test_asymmetric_ranking_prefers_cheap_bits() -> None:
    """By bits both cells are one away from the query; by its margins the first is much nearer."""
    codes = pack_bits(np.array([[False, True, True], [True, True, False]]))
    reference = ReferenceCells.of_columns([counted(codes, np.array([3, 4]))])
    embedding = np.array([[0.1, 2.0, 2.0]])
    margins = bit_margins(embedding, np.eye(3), np.zeros(3), 3)
    assert reference.nearest(pack_bits(margins), 1).composition.tolist() == [[0, 0, 0, 1, 1]]
    found = reference.nearest_asymmetric(margins, 1, n_candidates=2)
    assert found.composition.tolist() == [[0, 0, 0, 1, 0]]
    assert found.radius[0] == pytest.approx(0.1)


def test_columns_of_other_cells_are_not_joined() -> None:
    one, two = counted(*random_cells(1, 50)), counted(*random_cells(2, 50))
    with pytest.raises(ValueError, match="different codes"):
        join_columns([one, two])
    with pytest.raises(ValueError, match="no columns"):
        join_columns([])
