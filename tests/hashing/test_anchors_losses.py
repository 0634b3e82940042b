"""The losses against their definitions in plain NumPy, and their gradients against finite differences."""

from __future__ import annotations

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="torch (the extra `neural`) is not installed")

from hashstream.hashing.anchors.losses import (  # noqa: E402
    anchor_similarity,
    class_weights,
    margin_cosine_loss,
    schash_loss,
    signs,
)

N, C, B = 7, 3, 10


@pytest.fixture
def units() -> torch.Tensor:
    return torch.from_numpy(np.tanh(np.random.default_rng(0).standard_normal((N, B)))).requires_grad_()


@pytest.fixture
def anchors() -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(1).choice([-1.0, 1.0], (C, B)))


CLASSES = torch.tensor([0, 1, 2, 2, 1, 0, 2])


def test_schash_loss_is_its_definition(units: torch.Tensor, anchors: torch.Tensor) -> None:
    weights = torch.tensor([0.5, 1.0, 1.5], dtype=torch.float64)
    h, a = units.detach().numpy(), anchors.numpy()
    total = 0.0
    for i in range(N):
        for j in range(B):
            p, t = (h[i, j] + 1) / 2, (a[CLASSES[i], j] + 1) / 2
            total += float(weights[CLASSES[i]]) * -(t * np.log(p) + (1 - t) * np.log(1 - p))
    expected = total / (N * B) + 0.3 * ((np.abs(h) - 1) ** 2).mean()
    found = schash_loss(units, CLASSES, anchors, weights, quantisation=0.3)
    assert found.item() == pytest.approx(expected, rel=1e-12)


def test_schash_loss_is_finite_where_units_are_saturated_and_wrong(anchors: torch.Tensor) -> None:
    worst = (-anchors[CLASSES]).clone().requires_grad_()
    loss = schash_loss(worst, CLASSES, anchors, torch.ones(C, dtype=torch.float64), quantisation=0.0)
    loss.backward()
    assert loss.item() == pytest.approx(100.0)
    assert torch.isfinite(worst.grad).all()


def test_margin_cosine_loss_is_its_definition(units: torch.Tensor, anchors: torch.Tensor) -> None:
    similarity = units.detach().numpy() @ anchors.numpy().T / B
    expected = 0.0
    for i, c in enumerate(CLASSES.tolist()):
        logits = 8.0 * (similarity[i] - 0.2 * (np.arange(C) == c))
        expected -= logits[c] - np.log(np.exp(logits).sum())
    found = margin_cosine_loss(units, CLASSES, anchors, scale=8.0, margin=0.2)
    assert found.item() == pytest.approx(expected / N, rel=1e-12)


def test_similarity_of_bits_is_their_hamming_distance(anchors: torch.Tensor) -> None:
    bits = torch.from_numpy(np.random.default_rng(2).choice([-1.0, 1.0], (5, B)))
    distance = (bits[:, None] != anchors[None]).sum(dim=2)
    assert torch.allclose(anchor_similarity(bits, anchors), 1 - 2 * distance.double() / B)


def test_gradients(units: torch.Tensor, anchors: torch.Tensor) -> None:
    weights = torch.tensor([0.5, 1.0, 1.5], dtype=torch.float64)
    check = torch.autograd.gradcheck
    assert check(lambda h: schash_loss(h, CLASSES, anchors, weights, quantisation=0.3), (units,))
    assert check(lambda h: margin_cosine_loss(h, CLASSES, anchors, scale=8.0, margin=0.2), (units,))


def test_class_weights_add_up_and_favour_the_rare() -> None:
    sizes = torch.tensor([10, 1000, 100_000])
    weights = class_weights(sizes, 0.9999).numpy()
    b = 0.9999
    plain = (1 - b) / (1 - b ** sizes.numpy().astype(float))
    np.testing.assert_allclose(weights, plain / plain.sum() * 3, rtol=1e-9)
    assert weights.sum() == pytest.approx(3)
    assert weights[0] > weights[1] > weights[2]
    assert class_weights(sizes, 0.0).tolist() == [1.0, 1.0, 1.0]


def test_signs_let_the_gradient_of_tanh_through() -> None:
    values = torch.tensor([-2.0, -0.1, 0.0, 0.3, 5.0], requires_grad=True)
    found = signs(values)
    assert found.tolist() == [-1.0, -1.0, -1.0, 1.0, 1.0]
    (found * torch.tensor([1.0, 2.0, 3.0, 4.0, 5.0])).sum().backward()
    expected = torch.tensor([1.0, 2.0, 3.0, 4.0, 5.0]) * (1 - torch.tanh(values.detach()) ** 2)
    assert torch.allclose(values.grad, expected)
