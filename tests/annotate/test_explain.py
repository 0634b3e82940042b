"""Gradients of anchor scores against finite differences, and what integrated gradients must add up to."""

from __future__ import annotations

import numpy as np
import pytest

from hashstream.annotate.explain import HashLayers, attributions
from hashstream.errors import SettingsError

ACTIVATIONS = [("linear",), ("relu",), ("sigmoid",), ("tanh",), ("relu", "sigmoid", "tanh"), ("linear", "relu")]


def layers_of(activations: tuple[str, ...], seed: int = 0, n_genes: int = 12, n_bits: int = 10) -> HashLayers:
    rng = np.random.default_rng(seed)
    sizes = [n_genes, *(9 - i for i in range(len(activations)))]
    return HashLayers(
        weights=tuple(rng.standard_normal((a, b)) / 2 for a, b in zip(sizes, sizes[1:], strict=False)),
        biases=tuple(rng.standard_normal(b) / 3 for b in sizes[1:]),
        activations=activations,
        bit_weight=rng.standard_normal((sizes[-1], n_bits)) / 2,
        bit_bias=rng.standard_normal(n_bits) / 3,
    )


def inputs(seed: int = 1, n: int = 7) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    return rng.standard_normal((n, 12)), rng.choice([-1.0, 1.0], 10)


@pytest.mark.parametrize("activations", ACTIVATIONS, ids="-".join)
@pytest.mark.parametrize("score", ["tanh", "linear"])
def test_gradients_equal_finite_differences(activations: tuple[str, ...], score: str) -> None:
    layers, (z, direction) = layers_of(activations), inputs()
    found = attributions(layers, z, direction, method="gradient", score=score)
    step = 1e-6
    for gene in range(12):
        moved = np.eye(12)[gene] * step
        difference = layers.scores(z + moved, direction, score) - layers.scores(z - moved, direction, score)
        np.testing.assert_allclose(found.values[:, gene], difference / (2 * step), rtol=1e-6, atol=1e-8)
    assert np.abs(found.values).max() > 1e-3


@pytest.mark.parametrize("activations", ACTIVATIONS, ids="-".join)
def test_integrated_gradients_add_up(activations: tuple[str, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    """Completeness: a cell's values add up to the difference between its score and the baseline's."""
    monkeypatch.setattr("hashstream.annotate.explain._BLOCK_ELEMENTS", 2000)
    layers, (z, direction) = layers_of(activations), inputs()
    kinks = "relu" in activations
    for baseline in (None, np.full(12, 0.3)):
        found = attributions(layers, z, direction, method="integrated", baseline=baseline, n_steps=200 if kinks else 64)
        start = np.zeros(12) if baseline is None else baseline
        expected = layers.scores(z, direction) - layers.scores(start[None], direction)
        tolerance = 2e-3 if kinks else 1e-9
        np.testing.assert_allclose(found.values.sum(axis=1), expected, atol=tolerance)
        assert found.gap == pytest.approx(np.abs(found.values.sum(axis=1) - expected).max())
        assert np.abs(expected).max() > 10 * tolerance
        one = attributions(
            layers, z[2:3], direction, method="integrated", baseline=baseline, n_steps=200 if kinks else 64
        )
        np.testing.assert_allclose(one.values[0], found.values[2])


def test_integrated_gradients_of_a_linear_function_are_input_times_weight() -> None:
    layers, (z, direction) = layers_of(("linear",)), inputs()
    weights = layers.weights[0] @ layers.bit_weight @ direction / 10
    found = attributions(layers, z, direction, method="integrated", score="linear", n_steps=1)
    np.testing.assert_allclose(found.values, z * weights)
    assert found.gap < 1e-12


def test_the_score_is_the_distance_that_schash_takes() -> None:
    layers, (z, anchor) = layers_of(("tanh",)), inputs()
    distance = np.abs(anchor - np.tanh(layers.bits(z))).sum(axis=1)
    np.testing.assert_allclose(layers.scores(z, anchor), 1 - distance / 10)
    other = inputs(5)[1]
    both = attributions(layers, z, anchor - other, method="gradient").values
    apart = sum(sign * attributions(layers, z, a, method="gradient").values for sign, a in ((1, anchor), (-1, other)))
    np.testing.assert_allclose(both, apart, atol=1e-15)


def test_genes_that_do_nothing_get_nothing_and_large_inputs_do_no_harm() -> None:
    layers, (z, direction) = layers_of(("sigmoid",)), inputs()
    layers.weights[0][4] = 0.0
    for method in ("gradient", "integrated"):
        assert (attributions(layers, z, direction, method=method).values[:, 4] == 0).all()
        assert np.isfinite(attributions(layers, z * 1e6, direction, method=method).values).all()


def test_what_does_not_fit_is_refused() -> None:
    layers, (z, direction) = layers_of(("tanh",)), inputs()
    with pytest.raises(SettingsError, match="--method is 'lime'"):
        attributions(layers, z, direction, method="lime")
    with pytest.raises(SettingsError, match="--score is 'sign'"):
        attributions(layers, z, direction, method="gradient", score="sign")
    with pytest.raises(SettingsError, match="steps is 0"):
        attributions(layers, z, direction, method="integrated", n_steps=0)
    with pytest.raises(ValueError, match=r"z has shape \(7, 11\)"):
        attributions(layers, z[:, 1:], direction, method="gradient")
    assert attributions(layers, z[:0], direction, method="integrated").values.shape == (0, 12)
