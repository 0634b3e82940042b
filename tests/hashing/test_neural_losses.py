"""The four terms of the loss: gradients against finite differences, values against plain definitions and scipy."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.stats

torch = pytest.importorskip("torch", reason="torch (the extra `neural`) is not installed")
from torch.autograd import gradcheck  # noqa: E402

from hashstream.hashing.neural.losses import (  # noqa: E402
    bucket_contrast,
    bucket_entropy,
    bucket_ids,
    neighbour_contrast,
    zinb_loss,
)
from hashstream.hashing.neural.model import DISPERSION_RANGE, MEAN_RANGE, Zinb, zinb_parameters  # noqa: E402


def units(n: int = 7, n_units: int = 6, seed: int = 0) -> torch.Tensor:
    """Units in 0..1, float64, asking for gradients."""
    generator = torch.Generator().manual_seed(seed)
    values = torch.rand(n, n_units, generator=generator, dtype=torch.float64) * 0.9 + 0.05
    return values.requires_grad_()


def unit_rows(x: np.ndarray) -> np.ndarray:
    return x / np.linalg.norm(x, axis=1, keepdims=True)


def test_gradients_of_the_neighbour_contrast() -> None:
    assert gradcheck(lambda a, b: neighbour_contrast(a, b, 0.3), (units(), units(seed=1)))


def test_gradients_of_the_bucket_contrast() -> None:
    buckets = torch.tensor([0, 1, 1, 2, 0, 1, 3])
    assert gradcheck(lambda e: bucket_contrast(e, buckets, 0.5), (units(),))


def test_gradients_of_the_bucket_entropy() -> None:
    assert gradcheck(lambda e: bucket_entropy(e, 2, 3), (units(),))
    assert gradcheck(lambda e: bucket_entropy(e, 2, 2), (units(),))


def test_gradients_of_the_zinb_loss_through_its_limits() -> None:
    counts = torch.tensor([[0.0, 1.0, 5.0], [2.0, 0.0, 40.0]], dtype=torch.float64)
    # Among the raw values are some beyond the limits of mean and dispersion, where the gradient must be zero.
    mean = torch.tensor([[0.3, -1.0, 2.0], [-14.0, 15.0, 1.0]], dtype=torch.float64, requires_grad=True)
    dispersion = torch.tensor([[0.5, -12.0, 3.0], [1.0, -2.0, 0.1]], dtype=torch.float64, requires_grad=True)
    dropout = torch.tensor([[-3.0, 0.2, 2.0], [0.0, 4.0, -1.0]], dtype=torch.float64, requires_grad=True)
    factors = torch.tensor([0.5, 2.0], dtype=torch.float64)

    def loss(*raw: torch.Tensor) -> torch.Tensor:
        return zinb_loss(counts, zinb_parameters(*raw, factors))

    assert gradcheck(loss, (mean, dispersion, dropout))
    loss(mean, dispersion, dropout).backward()
    assert mean.grad is not None
    assert dispersion.grad is not None
    assert mean.grad[1, 0] == mean.grad[1, 1] == dispersion.grad[0, 1] == 0
    assert (mean.grad[0] != 0).all()


def test_zinb_loss_is_that_of_scipy() -> None:
    rng = np.random.default_rng(0)
    shape = (40, 5)
    counts = rng.negative_binomial(2, 0.3, shape) * (rng.random(shape) > 0.4)
    mean, size, share = rng.gamma(2, 2, shape), rng.gamma(2, 1, shape), rng.random(shape)
    zinb = Zinb(*(torch.from_numpy(a) for a in (mean, size, np.log(share / (1 - share)))))
    likelihood = (1 - share) * scipy.stats.nbinom.pmf(counts, size, size / (size + mean)) + share * (counts == 0)
    found = zinb_loss(torch.from_numpy(counts.astype(float)), zinb).item()
    assert found == pytest.approx(-np.log(likelihood).mean(), rel=1e-10)


def test_zinb_parameters_are_limited_and_scaled() -> None:
    raw = torch.tensor([[-100.0, 0.0, 100.0]])
    zinb = zinb_parameters(raw, raw, raw, torch.tensor([2.0]))
    assert zinb.mean.tolist()[0] == pytest.approx([2 * MEAN_RANGE[0], 2.0, 2 * MEAN_RANGE[1]])
    assert zinb.dispersion.tolist()[0] == pytest.approx([DISPERSION_RANGE[0], np.log(2), 100.0])
    assert torch.isfinite(zinb_loss(torch.tensor([[0.0, 3.0, 1e6]]), zinb))


def test_neighbour_contrast_by_definition() -> None:
    a, b = units(5), units(5, seed=3)
    similarity = unit_rows(a.detach().numpy()) @ unit_rows(b.detach().numpy()).T / 0.2
    losses = []
    for i in range(5):
        losses.append(-np.log(np.exp(similarity[i, i]) / np.exp(similarity[i]).sum()))
        losses.append(-np.log(np.exp(similarity[i, i]) / np.exp(similarity[:, i]).sum()))
    assert neighbour_contrast(a, b, 0.2).item() == pytest.approx(np.mean(losses))
    assert neighbour_contrast(a, a, 0.2) < neighbour_contrast(a, a.flip(0), 0.2)


def test_bucket_contrast_by_definition() -> None:
    e = units(7)
    buckets = np.array([0, 1, 1, 2, 0, 1, 3])
    cells = e.detach().numpy()
    means = unit_rows(np.array([cells[buckets == b].mean(axis=0) for b in range(4)]))
    similarity = np.exp(unit_rows(cells) @ means.T / 0.5)
    each = -np.log(similarity[np.arange(7), buckets] / similarity.sum(axis=1))
    expected = np.mean([each[buckets == b].mean() for b in range(4)])
    assert bucket_contrast(e, torch.from_numpy(buckets), 0.5).item() == pytest.approx(expected)


def test_one_bucket_and_buckets_of_one_cell_do_no_harm() -> None:
    e = units(4)
    assert bucket_contrast(e, torch.zeros(4, dtype=torch.int64), 0.5).item() == pytest.approx(0, abs=1e-12)
    assert torch.isfinite(bucket_contrast(e, torch.arange(4), 0.5))


def test_bucket_ids_round_the_first_units_of_every_head() -> None:
    e = torch.tensor([[0.9, 0.1, 0.9, 0.2], [0.8, 0.9, 0.7, 0.9], [0.1, 0.9, 0.9, 0.2], [0.9, 0.9, 0.2, 0.1]])
    ids = bucket_ids(e, 2, 1).tolist()
    assert ids[0] == ids[1]
    assert len(set(ids)) == 3
    assert len(set(bucket_ids(e, 2, 2).tolist())) == 4


def corners(bits: list[list[int]]) -> torch.Tensor:
    return torch.tensor(bits, dtype=torch.float64)


def test_bucket_entropy_is_least_for_sure_and_equal_buckets() -> None:
    equal = corners([[a, b, c] for a in (0, 1) for b in (0, 1) for c in (0, 1)])
    assert bucket_entropy(equal, 1, 3).item() == pytest.approx(0, abs=1e-9)
    assert bucket_entropy(equal.repeat(1, 2), 2, 3).item() == pytest.approx(0, abs=1e-9)
    one_bucket = torch.zeros(8, 3, dtype=torch.float64)
    unsure = torch.full((8, 3), 0.5, dtype=torch.float64)
    assert bucket_entropy(one_bucket, 1, 3).item() == pytest.approx(1)
    assert bucket_entropy(unsure, 1, 3).item() == pytest.approx(1)
    copied = corners([[a, a, a] for a in (0, 1)] * 4)
    assert bucket_entropy(copied, 1, 3).item() == pytest.approx(2 / 3)
    uneven = corners([[0, 0, 0]] * 6 + [[1, 1, 1], [1, 0, 1]])
    assert 0.3 < bucket_entropy(uneven, 1, 3).item() < 1


def test_bucket_entropy_drives_bits_to_balance_and_not_to_zero() -> None:
    """The published balance term ends with every bit 0; this one must leave bits on in about half of the cells."""
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(64, 3, generator=generator) - 2.0  # nine cells of ten have a given bit off
    logits.requires_grad_()
    before = float((logits > 0).float().mean())
    optimiser = torch.optim.Adam([logits], lr=0.2)
    for _ in range(60):
        optimiser.zero_grad()
        bucket_entropy(torch.sigmoid(logits), 1, 3).backward()
        optimiser.step()
    on = (logits > 0).float().mean(dim=0)
    assert before < 0.1
    assert ((on > 0.35) & (on < 0.65)).all()
    assert len(torch.unique(logits > 0, dim=0)) == 8
