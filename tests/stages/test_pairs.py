"""Counts of pairs that come in blocks."""

from __future__ import annotations

import numpy as np
import pytest

import hashstream.stages.pairs as pairs
from hashstream.stages.pairs import PairCounter


@pytest.mark.parametrize("pending", [10, 1 << 22])
def test_pairs_are_added_up_over_blocks(monkeypatch: pytest.MonkeyPatch, pending: int) -> None:
    monkeypatch.setattr(pairs, "_PENDING", pending)
    rng = np.random.default_rng(0)
    expected, counter = np.zeros((50, 7), np.int64), PairCounter(7)
    for n in (0, 30, 500, 1):
        first, second = rng.integers(0, 50, n), rng.integers(0, 7, n).astype(np.int32)
        amounts = rng.integers(0, 4, n) if n > 30 else None
        counter.add(first, second, amounts)
        np.add.at(expected, (first, second), 1 if amounts is None else amounts)
    found = counter.pairs()
    assert [*zip(found.first, found.second, strict=True)] == [*zip(*np.nonzero(expected), strict=True)]
    assert np.array_equal(found.counts, expected[expected > 0])


def test_no_pairs() -> None:
    assert [len(values) for values in PairCounter(3).pairs()] == [0, 0, 0]
