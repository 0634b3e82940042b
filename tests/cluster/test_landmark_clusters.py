"""Landmarks: smoothed over those near them, and their clusters."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from sklearn.metrics import adjusted_rand_score

from hashstream.cluster import cluster_landmarks
from hashstream.cluster.landmarks import SMOOTHED_OVER, smoothed
from hashstream.cluster.neighbours import token_neighbours
from hashstream.cluster.scale import scaled
from hashstream.errors import SettingsError


def noisy_points(n: int, n_dims: int = 20) -> tuple[np.ndarray, np.ndarray]:
    """Points around five centres, and which centre."""
    rng = np.random.default_rng(n)
    types = rng.integers(0, 5, n)
    return (rng.normal(0, 2, (5, n_dims))[types] + rng.normal(0, 1.2, (n, n_dims))).astype(np.float32), types


@pytest.mark.parametrize("n", [1, 2, 10, 300])
def test_landmarks_are_averaged_with_their_nearest(n: int) -> None:
    embedding, _ = noisy_points(n)
    before = embedding.copy()
    got = smoothed(embedding, n_threads=2)
    np.testing.assert_array_equal(embedding, before)
    assert (got.shape, got.dtype) == (embedding.shape, np.float32)
    points = scaled(embedding, np.ones(n, np.int64)).astype(np.float64)
    near = token_neighbours(points.astype(np.float32), SMOOTHED_OVER)
    for row in range(0, n, 7):
        weights = np.append(1.0, near.weights[row])
        rows = np.append(row, near.indices[row])
        np.testing.assert_allclose(got[row], weights @ points[rows] / weights.sum(), atol=1e-5)


def test_noise_is_averaged_out_and_an_outlier_stays_where_it_is() -> None:
    embedding, types = noisy_points(2000)
    embedding[0] = 60.0
    points = scaled(embedding, np.ones(2000, np.int64))
    got = smoothed(embedding)
    within = [np.linalg.norm(p[types == 3] - p[types == 3].mean(axis=0), axis=1).mean() for p in (points, got)]
    assert within[1] < 0.9 * within[0]
    near = np.linalg.norm(got[0] - points[1:], axis=1).min()
    assert near > 0.5 * np.linalg.norm(points[0] - points[1:], axis=1).min()


@pytest.mark.parametrize("method", ["leiden", "ward", "kmeans"])
def test_clusters_are_the_types(method: str) -> None:
    embedding, types = noisy_points(3000)
    labels, chosen_by = cluster_landmarks(embedding, method=method)
    assert adjusted_rand_score(types, labels) > 0.95
    assert "of 3,000 landmarks" in chosen_by
    three, chosen_by = cluster_landmarks(embedding, method=method, n_clusters=3)
    assert chosen_by.startswith("user")
    assert three.max() + 1 == 3 if method != "leiden" else three.max() + 1 in (3, 4, 5)  # as near as the graph allows
    np.testing.assert_array_equal(np.unique(three), np.arange(three.max() + 1))


def test_communities_at_a_resolution() -> None:
    embedding, _ = noisy_points(3000)
    labels, finer = (cluster_landmarks(embedding, method="leiden", resolution=value)[0] for value in (1.0, 8.0))
    assert finer.max() > labels.max()
    assert cluster_landmarks(embedding[:1], method="ward", n_clusters=1)[0].tolist() == [0]


@pytest.mark.parametrize(
    ("settings", "words"),
    [({"method": "ward", "resolution": 1.0}, "excludes --n-clusters"), ({"method": "x"}, "expected one of"),
     ({"method": "ward", "n_clusters": 11}, "11 clusters asked for, but there are 10 landmarks")],
)  # fmt: skip
def test_odd_settings_are_refused(settings: dict[str, Any], words: str) -> None:
    with pytest.raises(SettingsError, match=words):
        cluster_landmarks(noisy_points(10)[0], **settings)
