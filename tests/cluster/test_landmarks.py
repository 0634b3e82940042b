"""Landmarks: drawn cells, smoothed over those near them, and their communities."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.metrics import adjusted_rand_score

from hashstream.cluster.landmarks import SMOOTHED_OVER, Drawn, landmark_communities, smooth_codes
from hashstream.kernels import pack_bits, unpack_bits


def noisy_codes(n: int, n_bits: int, flipped: float = 0.15) -> tuple[np.ndarray, np.ndarray]:
    """Codes of five types, a share of whose bits is flipped, and the types."""
    rng = np.random.default_rng(n_bits)
    centres = rng.random((5, n_bits)) < 0.5
    types = rng.integers(0, 5, n)
    return pack_bits(centres[types] ^ (rng.random((n, n_bits)) < flipped)), types


@pytest.mark.parametrize("n_bits", [20, 64, 130])
def test_codes_are_averaged_over_the_nearest(n_bits: int) -> None:
    pool, _ = noisy_codes(400, n_bits)
    landmarks = pool[::7]
    got = smooth_codes(landmarks, pool, n_bits, n_threads=2)
    assert (got.shape, got.dtype) == ((len(landmarks), n_bits), np.float32)
    bits = 2.0 * unpack_bits(pool, n_bits) - 1
    for row in (0, 5):
        distances = np.bitwise_count(landmarks[row] ^ pool).sum(axis=1).astype(int)
        near = np.argsort(distances, kind="stable")[:SMOOTHED_OVER]
        weights = np.exp(-0.5 * (distances[near] / (8.0 * n_bits / 64)) ** 2)
        np.testing.assert_allclose(got[row], weights @ bits[near] / weights.sum(), atol=1e-5)


def test_communities_are_the_types() -> None:
    pool, types = noisy_codes(3000, 64)
    drawn = Drawn.of(3000, seed=1)
    np.testing.assert_array_equal(drawn.pool, np.arange(3000))
    points = smooth_codes(pool[drawn.landmarks], pool, 64)
    labels, chosen_by = landmark_communities(points, resolution=None, n_clusters=None, seed=0)
    assert adjusted_rand_score(types[drawn.landmarks], labels) > 0.95
    assert "3,000 landmarks at resolution 1" in chosen_by
    three, chosen_by = landmark_communities(points, resolution=None, n_clusters=3, seed=0)
    assert "3 asked for" in chosen_by
    assert three.max() + 1 in (3, 4, 5)  # as near as the graph allows
    finer, _ = landmark_communities(points, resolution=8.0, n_clusters=None, seed=0)
    assert finer.max() > labels.max()


def test_cells_are_drawn_at_random_and_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hashstream.cluster.landmarks.N_POOL", 500)
    monkeypatch.setattr("hashstream.cluster.landmarks.N_LANDMARKS", 50)
    drawn = Drawn.of(10_000, seed=4)
    assert (len(drawn.pool), len(drawn.landmarks)) == (500, 50)
    for rows, limit in ((drawn.pool, 10_000), (drawn.landmarks, 500)):
        assert (np.diff(rows) > 0).all()
        assert rows[0] < limit / 5
        assert 0.8 * limit < rows[-1] < limit
    assert np.array_equal(drawn.pool, Drawn.of(10_000, seed=4).pool)
    assert not np.array_equal(drawn.pool, Drawn.of(10_000, seed=5).pool)
