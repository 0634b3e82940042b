"""The code book and the losses of the supervised hash function."""

from __future__ import annotations

import numpy as np
import pytest

from hashstream.errors import SettingsError
from hashstream.hashing.anchors import code_book


@pytest.mark.parametrize("n_classes", [2, 3, 6, 7, 19, 64, 65, 128, 129, 300])
@pytest.mark.parametrize("n_bits", [64, 100])
def test_distances_are_guaranteed_and_columns_vary(n_classes: int, n_bits: int) -> None:
    book = code_book(n_classes, n_bits)
    bits = book.anchors.astype(np.int64)
    assert bits.shape == (n_classes, n_bits)
    distance = (bits[:, None] != bits[None]).sum(axis=2)
    np.fill_diagonal(distance, n_bits + 1)
    assert distance.min() == book.minimum_distance >= book.guaranteed_distance
    assert ((bits.sum(axis=0) > 0) & (bits.sum(axis=0) < n_classes)).all()
    if n_classes <= 128:
        assert book.minimum_distance >= 32


def test_a_thousand_classes_are_farther_apart_than_random_rows() -> None:
    book = code_book(1_000, 64)
    bits = 2.0 * book.anchors - 1.0
    nearest = (bits @ bits.T).argmax(axis=1)
    assert np.array_equal(nearest, np.arange(1_000)), "every anchor is its own nearest"
    assert book.minimum_distance >= book.guaranteed_distance > 14


def test_similar_classes_get_near_anchors() -> None:
    rng = np.random.default_rng(0)
    group = np.repeat(np.arange(20), 10)
    means = rng.standard_normal((20, 8))[group] + 0.1 * rng.standard_normal((200, 8))
    book = code_book(200, 64, similarity=np.corrcoef(means), seed=1)
    bits = book.anchors.astype(np.int64)
    distance = (bits[:, None] != bits[None]).sum(axis=2)
    same = (group[:, None] == group) & ~np.eye(200, dtype=bool)
    assert distance[same].mean() < distance[group[:, None] != group].mean() - 1


def test_code_books_that_cannot_be() -> None:
    with pytest.raises(SettingsError, match="1 classes"):
        code_book(1, 64)
    with pytest.raises(SettingsError, match="--bits 8"):
        code_book(3, 8)
    with pytest.raises(SettingsError, match="raise --bits"):
        code_book(100_000, 16)


def test_gradients_of_the_losses() -> None:
    torch = pytest.importorskip("torch")
    from hashstream.hashing.anchors import losses

    generator = torch.Generator().manual_seed(0)
    anchors = torch.from_numpy(2.0 * code_book(5, 16).anchors - 1.0)
    classes = torch.tensor([0, 1, 4, 4, 2, 3])
    weights = losses.class_weights(torch.tensor([1, 10, 100, 1000, 5]), 0.9999)
    assert weights.sum() == pytest.approx(5.0)
    assert weights[0] > weights[4] > weights[1] > weights[2] > weights[3]
    units = torch.tanh(torch.randn(6, 16, generator=generator, dtype=torch.float64)).requires_grad_()
    assert torch.autograd.gradcheck(
        lambda x: losses.margin_cosine_loss(x, classes, anchors, scale=8.0, margin=0.2), (units,)
    )
    assert torch.autograd.gradcheck(
        lambda x: losses.schash_loss(x, classes, anchors, weights, quantisation=0.1), (units,)
    )


def test_losses_are_what_their_sources_say() -> None:
    torch = pytest.importorskip("torch")
    from hashstream.hashing.anchors import losses

    anchors = torch.tensor([[1.0, -1.0], [1.0, 1.0]], dtype=torch.float64)
    units = torch.tensor([[0.5, -0.2]], dtype=torch.float64)
    classes, weights = torch.tensor([0]), torch.tensor([2.0, 1.0], dtype=torch.float64)
    entropy = -np.log([0.75, 0.6]).mean() * 2
    pull = 0.1 * np.mean([(0.5 - 1) ** 2, (0.2 - 1) ** 2])
    found = losses.schash_loss(units, classes, anchors, weights, quantisation=0.1)
    assert float(found) == pytest.approx(entropy + pull)
    similarity = np.array([0.7 / 2, 0.3 / 2])
    odds = 3.0 * (similarity - np.array([0.1, 0.0]))
    expected = -(odds[0] - np.log(np.exp(odds).sum()))
    found = losses.margin_cosine_loss(units, classes, anchors, scale=3.0, margin=0.1)
    assert float(found) == pytest.approx(expected)
