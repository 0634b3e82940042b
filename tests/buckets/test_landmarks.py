"""Which cells are landmarks."""

from __future__ import annotations

import numpy as np
import pytest

from hashstream.buckets import landmark_rows
from hashstream.buckets.landmarks import _hash


@pytest.mark.parametrize("n_cells", [0, 1, 49, 50])
def test_all_of_few_cells_are_landmarks(n_cells: int) -> None:
    np.testing.assert_array_equal(landmark_rows(n_cells, 50), np.arange(n_cells))


@pytest.mark.parametrize(("n_cells", "n_landmarks"), [(51, 50), (1000, 1), (1000, 999), (5000, 300), (2_500_000, 2000)])
def test_landmarks_have_the_smallest_hashes(n_cells: int, n_landmarks: int) -> None:
    rows = landmark_rows(n_cells, n_landmarks)
    assert (rows.dtype, len(rows)) == (np.int64, n_landmarks)
    assert (np.diff(rows) > 0).all()
    hashes = _hash(np.arange(n_cells, dtype=np.uint64))
    assert len(np.unique(hashes)) == n_cells
    others = np.delete(hashes, rows)
    assert hashes[rows].max() < others.min()


def test_landmarks_of_more_cells_are_landmarks_of_fewer() -> None:
    fewer, more = landmark_rows(40_000, 1000), landmark_rows(100_000, 1000)
    assert np.isin(more[more < 40_000], fewer).all()


def test_landmarks_lie_everywhere() -> None:
    rows = landmark_rows(1_000_000)
    assert len(rows) == 20_000
    counts = np.histogram(rows, 20, (0, 1_000_000))[0]
    # Multinomial: a twentieth of 20,000 has a deviation of 31.
    assert np.abs(counts - 1000).max() < 150
    assert abs((rows & 1).mean() - 0.5) < 0.02
