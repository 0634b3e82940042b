"""The discriminant of types, against scikit-learn's."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis

from hashstream.annotate.discriminant import TypeDiscriminant, whiten
from hashstream.hashing.anchors.calibrate import expected_calibration_error


def cells(n: int, seed: int, n_types: int = 4, distance: float = 3.0) -> tuple[np.ndarray, np.ndarray]:
    """Points of types that scatter alike, some rarer than others."""
    fixed = np.random.default_rng(99)
    centres = fixed.normal(size=(n_types, 6)) * distance / np.sqrt(2 * 6)
    scatter = fixed.normal(size=(6, 6)) / 3 + np.eye(6)
    rng = np.random.default_rng(seed)
    share = np.arange(1, n_types + 1) / np.arange(1, n_types + 1).sum()
    labels = np.concatenate([np.arange(n_types), rng.choice(n_types, n - n_types, p=share)])
    return (centres[labels] + rng.normal(size=(n, 6)) @ scatter).astype(np.float32), labels


def test_it_is_the_one_of_scikit_learn(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hashstream.annotate.discriminant.SHRINKAGE", 0.0)
    points, labels = cells(900, 0)
    others, _ = cells(300, 1)
    found = TypeDiscriminant.of(points, labels, np.bincount(labels))
    meant = LinearDiscriminantAnalysis(solver="lsqr").fit(points, labels)
    odds = found.log_odds(others) / found.scale
    theirs = meant.decision_function(others)
    np.testing.assert_allclose(odds - odds[:, :1], theirs - theirs[:, :1], rtol=1e-3, atol=1e-3)
    probabilities = found.probabilities(others)
    np.testing.assert_allclose(probabilities.sum(axis=1), 1, rtol=1e-5)
    assert np.array_equal(probabilities.argmax(axis=1), odds.argmax(axis=1))


def test_probabilities_are_right_as_often_as_they_say() -> None:
    """Also where there are so few cells that the closed form is too sure."""
    points, labels = cells(60, 2, distance=2.0)
    others, truth = cells(5000, 3, distance=2.0)
    found = TypeDiscriminant.of(points, labels, np.bincount(labels))
    assert found.scale < 1
    shares = found.probabilities(others)
    right = shares.argmax(axis=1) == truth
    error = expected_calibration_error(shares.max(axis=1), right)
    sure = found.log_odds(others) / found.scale
    sure = np.exp(sure - sure.max(axis=1, keepdims=True))
    plain = expected_calibration_error((sure / sure.sum(axis=1, keepdims=True)).max(axis=1), right)
    assert error < plain
    assert error < 0.1


def test_points_that_stand_for_cells_count_as_many() -> None:
    points, labels = cells(400, 4)
    rare = labels == 3
    counts = np.zeros((2, 4))
    counts[:, 3] = (rare.sum() // 2, rare.sum() - rare.sum() // 2)
    members = np.flatnonzero(rare)
    halves = np.split(members, [rare.sum() // 2])
    means = np.stack([points[half].mean(axis=0) for half in halves])
    whole = TypeDiscriminant.of(points, labels, np.bincount(labels))
    found = TypeDiscriminant.of(points[~rare], labels[~rare], np.bincount(labels), more=(means, counts))
    others, truth = cells(2000, 5)
    agree = found.probabilities(others).argmax(axis=1) == whole.probabilities(others).argmax(axis=1)
    assert agree.mean() > 0.95
    assert (found.probabilities(others).argmax(axis=1)[truth == 3] == 3).mean() > 0.6


def test_a_type_of_one_cell_and_one_type() -> None:
    points, labels = cells(40, 6)
    labels[labels == 0] = 1
    labels[7] = 0
    found = TypeDiscriminant.of(points, labels, np.bincount(labels))
    assert np.isfinite(found.probabilities(points)).all()
    one = TypeDiscriminant.of(points, np.zeros(40, int), np.array([40]))
    assert one.probabilities(points).tolist() == [[1.0]] * 40


def test_whitening() -> None:
    points, _ = cells(500, 7)
    covariance = np.cov(points.T).astype(float)
    whitening = whiten(covariance, 0.0)
    np.testing.assert_allclose(whitening.T @ covariance @ whitening, np.eye(6), atol=1e-5)
    assert np.isfinite(whiten(np.zeros((3, 3)), 0.1)).all()
