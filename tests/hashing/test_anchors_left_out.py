"""What leaving out types in turn teaches about novelty."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from hashstream.annotate.anchors import (
    DOUBT,
    N_FEATURES,
    OTHERS,
    common_profile,
    novelty_features,
    profile_sizes,
    typical_fit_to_others,
)
from hashstream.hashing.anchors.left_out import NoveltyWeights, cells_to_fit, first_feature_alone, learn_weights
from hashstream.hashing.anchors.novelty import fits
from hashstream.hashing.anchors.settings import AnchorSettings

SMALL = AnchorSettings(n_components=8, novelty_bits=64)


def cells(n_types: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """40 cells a type in 32 dimensions, of which the first 8 hold the types apart."""
    rng = np.random.default_rng(seed)
    classes = np.repeat(np.arange(n_types), 40)
    means = np.random.default_rng(7).normal(0, 4, (n_types, 8))
    x = rng.standard_normal((len(classes), 32))
    x[:, :8] += means[classes]
    return x, classes


def learned(n_types: int, seed: int = 0) -> NoveltyWeights:
    rng = np.random.default_rng(seed)
    return learn_weights(*cells(n_types), *cells(n_types, 1), n_types, SMALL, rng=rng)


def test_a_cell_that_fits_its_label_less_is_more_novel() -> None:
    found = learned(6)
    assert found.n_types == 6
    assert found.weights[0] > 0.5
    assert (found.spread > 0).all()


def test_the_weights_depend_on_the_seed_alone() -> None:
    one, again, other = learned(5), learned(5), learned(5, seed=1)
    for field in dataclasses.fields(one):
        assert np.array_equal(getattr(one, field.name), getattr(again, field.name)), field.name
    assert not np.array_equal(one.weights, other.weights)


@pytest.mark.parametrize("n_types", [2, 3])
def test_of_two_types_none_can_be_spared(n_types: int) -> None:
    found = learned(n_types)
    assert found.n_types == (3 if n_types == 3 else 0)
    if n_types == 2:
        assert found.table(np.ones((4, N_FEATURES))).tolist() == [0, 1, 0, 0]


def test_a_table_is_centred_on_validation_cells() -> None:
    weights = NoveltyWeights(np.array([1.0, -2.0, 3.0]), 0.25, np.zeros(3), np.array([2.0, 1.0, 1.0]), 4)
    features = np.random.default_rng(0).normal(5, 3, (50, N_FEATURES))
    table = weights.table(features)
    assert (table[0] + features @ table[1:]).mean() == pytest.approx(0.25)
    assert table[1 + OTHERS] == -2.0
    assert table[1 + DOUBT] == pytest.approx(3 / features[:, DOUBT].std())
    # Validation cells of which all are sure do not make a doubt weigh without bounds.
    features[:, DOUBT] = -13
    assert weights.table(features)[1 + DOUBT] == pytest.approx(15)
    assert first_feature_alone().table(features).tolist() == [0, 1, 0, 0]


def test_rare_types_keep_their_cells() -> None:
    classes = np.repeat([0, 1, 2], [60_000, 55, 20])
    chosen = cells_to_fit(classes, np.random.default_rng(0))
    assert np.bincount(classes[chosen])[1:].tolist() == [50, 20]
    assert 9_500 < len(chosen) < 10_500
    assert (np.diff(chosen) > 0).all()
    assert len(cells_to_fit(classes[-75:], np.random.default_rng(0))) == 75


def test_features_are_means_over_the_other_profiles() -> None:
    rng = np.random.default_rng(2)
    profile = rng.integers(-1000, 1001, (4, 40)).astype(np.int16)
    signs = np.where(rng.random((9, 40)) < 0.5, -1, 1).astype(np.float32)
    labels = rng.integers(0, 4, 9)
    sizes = profile_sizes(profile)
    found = novelty_features(
        fits(signs, profile[labels]),
        signs @ common_profile(profile) / 40_000,
        np.linspace(0.3, 1, 9),
        (np.zeros((9, 2)), np.ones((9, 2))),
        sizes[labels],
        4,
    )
    unit = profile / 1000 / np.repeat(sizes, 20, axis=1)
    for row in range(9):
        others = [c for c in range(4) if c != labels[row]]
        meant = np.mean([(signs[row] * unit[c]).mean() for c in others])
        assert found[row, OTHERS] == pytest.approx(-meant, abs=2e-3)
    assert found[-1, DOUBT] == pytest.approx(np.log(1e-6))
    # Of a type's own cells: the same mean with the profile itself for the signs.
    own = [np.mean([(profile[c] / 1000 * unit[d]).mean() for d in range(4) if d != c]) for c in range(4)]
    np.testing.assert_allclose(typical_fit_to_others(profile), own, atol=2e-3)
