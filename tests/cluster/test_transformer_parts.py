"""The parts of the bucket Transformer: sequences, model, losses, batches."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from hashstream.buckets import Tokens  # noqa: E402
from hashstream.cluster.transformer import TransformerSettings, losses, token_sequences  # noqa: E402
from hashstream.cluster.transformer.adamw import AdamW, Group  # noqa: E402
from hashstream.cluster.transformer.batches import BatchMaker, make_inputs  # noqa: E402
from hashstream.cluster.transformer.model import Outputs, posterior  # noqa: E402
from hashstream.cluster.transformer.sequences import prior_variance  # noqa: E402
from hashstream.cluster.transformer.train import infer, make_model, schedule  # noqa: E402
from hashstream.runtime.torch_threads import reproducible  # noqa: E402
from tests.cluster.simulate import noisy_buckets  # noqa: E402


def test_sequences_are_the_nearest_in_hamming_then_in_space() -> None:
    tokens, points, _, _ = noisy_buckets(n=90)
    found = token_sequences(tokens, points, 7)
    assert np.array_equal(found.members[:, 0], np.arange(90))
    bits = np.bitwise_count(tokens.codes ^ tokens.codes.T)
    apart = ((points[:, None].astype(np.float64) - points[None]) ** 2).sum(axis=2)
    for row in range(90):
        order = [int(j) for j in np.lexsort((apart[row], bits[row])) if j != row]
        assert found.members[row, 1:].tolist() == order[:7]
    rows = np.array([3, 50])
    assert np.array_equal(found.differences(rows)[:, 0], bits[rows[:, None], found.members[rows]])
    assert token_sequences(tokens, points, 500).members.shape == (90, 90)


def test_features_of_a_token() -> None:
    tokens, points, _, _ = noisy_buckets(n=50)
    scaled = (points - points.mean(axis=0)) * np.linspace(0.5, 2, points.shape[1], dtype=np.float32)
    found = token_sequences(tokens, scaled, 3)
    assert np.array_equal(found.signs > 0, (tokens.codes >> np.arange(12, dtype=np.uint64)) & np.uint64(1))
    assert set(np.unique(found.signs)) == {-1, 1}
    expected = scaled[:, None] + (tokens.half_means - points[:, None]) * np.linspace(0.5, 2, points.shape[1])[:, None].T
    np.testing.assert_allclose(found.halves(np.arange(50)), expected, atol=1e-3)
    both = (tokens.half_counts > 0) & (tokens.half_counts < tokens.counts)
    assert np.array_equal(found.half_counts[both].sum(axis=1), tokens.counts[both])
    assert (found.half_counts[~both] == 0).all()
    with pytest.raises(ValueError, match="expected 50 rows"):
        token_sequences(tokens, scaled[:49], 3)


def test_spread_comes_from_the_halves() -> None:
    """The variance of a cell was 4, a token without two halves has the mean spread, a wide bucket more."""
    tokens, points, _, _ = noisy_buckets(n=3000)
    found = token_sequences(tokens, points, 3)
    np.testing.assert_allclose(found.noise, 4, rtol=0.15)
    assert (found.spread[found.half_counts[:, 0] == 0] == 0).all()
    assert tokens.half_means is not None
    wide = tokens.half_means.copy()
    row = int(np.flatnonzero(found.half_counts[:, 0] > 0)[0])
    wide[row] = points[row] + 5 * (wide[row] - points[row])
    wider = token_sequences(Tokens(tokens.codes, tokens.counts, points, 12, tokens.half_counts, wide), points, 3)
    assert wider.spread[row] > found.spread[row] + 1


def test_without_halves_a_token_is_its_own() -> None:
    tokens, points, _, _ = noisy_buckets(n=40)
    found = token_sequences(Tokens(tokens.codes, tokens.counts, tokens.means, 12), points, 3)
    assert np.array_equal(found.halves(slice(None))[:, 1], points)
    assert (found.half_counts == 0).all()
    assert (found.spread == 0).all()
    assert (found.noise > 0).all()


def test_the_prior_starts_at_the_variance_about_the_neighbours() -> None:
    """Tokens about 0 with variance 2, seen with a noise of 5 / n, against the mean of all others."""
    rng = np.random.default_rng(1)
    n, counts = 800, rng.choice([1, 5, 20], 800)
    truth = np.sqrt(2) * rng.standard_normal((n, 6))
    half = rng.binomial(counts, 0.5)
    by_half = np.stack([half, counts - half], axis=1)[:, :, None]
    half_means = truth[:, None] + np.sqrt(5 / np.maximum(by_half, 1)) * rng.standard_normal((n, 2, 6))
    means = ((half_means * by_half).sum(axis=1) / counts[:, None]).astype(np.float32)
    codes = rng.integers(0, 2**12, n).astype(np.uint64)[:, None]
    tokens = Tokens(codes, counts, means, 12, half, half_means.astype(np.float32))
    found = prior_variance(token_sequences(tokens, means, n))
    assert found.shape == (6,)
    assert found.mean() == pytest.approx(2, rel=0.15)


def test_posterior_weighs_the_bucket_by_its_cells() -> None:
    x, m = torch.tensor([[4.0]] * 3), torch.tensor([[1.0]] * 3)
    found = posterior(x, torch.tensor([0.0, 2.0, 1e9]), m, torch.tensor([3.0]).log(), torch.tensor([6.0]))
    # Precisions: prior 1/3, data n/6.
    np.testing.assert_allclose(found.mean[:, 0], [1.0, 2.5, 4.0], rtol=1e-5)
    np.testing.assert_allclose(found.variance[:, 0], [3.0, 1.5, 0.0], atol=1e-5)


def one_model(n_layers: int, seed: int = 0):  # type: ignore[no-untyped-def]
    tokens, points, _, _ = noisy_buckets(n=40)
    sequences = token_sequences(tokens, points, 5)
    settings = TransformerSettings(n_hidden=16, n_layers=n_layers, correction=1.0)
    with reproducible(seed):
        model = make_model(sequences, settings).eval()
    rows = np.arange(8)
    return model, sequences, settings, make_inputs(sequences, rows, points[rows], sequences.counts[rows])


def test_each_layer_reads_what_the_one_before_wrote() -> None:
    model, _, _, inputs = one_model(2)
    seen: dict[str, list[torch.Tensor]] = {}
    for name, layer in zip("ab", model.layers, strict=True):
        layer.register_forward_hook(lambda _, args, out, name=name: seen.setdefault(name, [args[0], out]) and None)
    both = model(inputs).mean
    assert torch.equal(seen["b"][0], seen["a"][1])
    assert not torch.equal(seen["b"][0], seen["a"][0])
    model.layers = model.layers[:1]
    assert not torch.allclose(model(inputs).mean, both, atol=1e-6)


def test_every_parameter_learns() -> None:
    """After a step has moved the last layer from 0, the gradient reaches all parameters but unused distances."""
    model, _, _, inputs = one_model(2)
    with torch.no_grad():
        model.correct[-1].weight.normal_()
    found = model(inputs)
    losses.denoise(found, torch.ones_like(found.mean), torch.ones(8), model.noise).backward()
    assert [name for name, p in model.named_parameters() if p.grad is None or not p.grad.any()] == []


def test_hidden_neighbours_do_not_matter_and_distances_do() -> None:
    model, _, _, inputs = one_model(1)
    kept = inputs.kept.clone()
    kept[:, 3] = False
    moved = inputs.points.clone()
    moved[:, 3] += 100
    assert torch.equal(model(inputs._replace(kept=kept)).mean, model(inputs._replace(kept=kept, points=moved)).mean)
    assert not torch.equal(model(inputs).mean, model(inputs._replace(points=moved)).mean)
    with torch.no_grad():
        model.hamming.weight.normal_()
    assert not torch.equal(model(inputs).mean, model(inputs._replace(differences=inputs.differences.flip(0))).mean)


def test_blocks_do_not_matter(monkeypatch: pytest.MonkeyPatch) -> None:
    model, sequences, settings, _ = one_model(2)
    whole = infer(model, sequences, settings)
    monkeypatch.setattr("hashstream.cluster.transformer.train.BLOCK_TOKENS", 7)
    np.testing.assert_allclose(infer(model, sequences, settings), whole, atol=1e-5)


def test_held_out_halves_are_not_shown() -> None:
    tokens, points, _, _ = noisy_buckets(n=60)
    sequences = token_sequences(tokens, points, 5)
    batches = BatchMaker(sequences, TransformerSettings(batch_tokens=40, mask_share=0.3), 0)
    rows, rng = batches.rows(0, 7)
    assert len(np.unique(rows)) == len(rows) == 40
    first, second = batches.views(rows, rng)
    hidden = first.inputs.counts[:, 0].numpy() == 0
    assert 0 < hidden.sum() < 40
    assert (first.inputs.points[hidden, 0] == 0).all()
    assert (first.inputs.spread[hidden, 0] == 0).all()
    assert hidden[sequences.half_counts[rows, 0] == 0].all()
    shown = ~hidden
    np.testing.assert_array_equal(first.inputs.points[shown, 0], sequences.halves(rows[shown])[:, 0])
    np.testing.assert_array_equal(first.target[shown], sequences.halves(rows[shown])[:, 1])
    np.testing.assert_array_equal(second.target[shown], sequences.halves(rows[shown])[:, 0])
    np.testing.assert_array_equal(first.target[hidden], points[rows[hidden]])
    np.testing.assert_array_equal(first.target_counts[hidden], tokens.counts[rows[hidden]])
    total = first.inputs.counts[shown, 0] + first.target_counts[shown]
    np.testing.assert_array_equal(total, tokens.counts[rows[shown]])
    again, rng = batches.rows(0, 7)
    assert np.array_equal(rows, again)
    assert torch.equal(batches.views(again, rng)[0].inputs.kept, first.inputs.kept)


def double(*shape: int, seed: int = 0, positive: bool = False) -> torch.Tensor:
    values = torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    return (values.abs() + 0.3 if positive else values).requires_grad_()


NOISE, COUNTS = double(3, seed=9, positive=True).detach(), torch.tensor([4.0, 0.0, 1.0, 30.0, 2.0], dtype=torch.float64)
TERMS: dict[str, tuple[Callable[..., torch.Tensor], tuple[torch.Tensor, ...]]] = {
    "denoise": (
        lambda mean, variance: losses.denoise(Outputs(mean, variance), double(5, 3, seed=4).detach(), COUNTS, NOISE),
        (double(5, 3), double(5, 3, seed=1, positive=True)),
    ),
    "denoise through the posterior": (
        lambda x, m, log_prior: losses.denoise(
            posterior(x, COUNTS, m, log_prior, NOISE), double(5, 3, seed=4).detach(), COUNTS + 1, NOISE
        ),
        (double(5, 3), double(5, 3, seed=1), double(3, seed=2)),
    ),
    "consistency": (
        lambda first, second: losses.consistency(first, second, NOISE),
        (double(5, 3), double(5, 3, seed=1)),
    ),
    "clustering": (
        lambda points, centres: losses.clustering(
            losses.student_t(points, centres, 1.7, 4.0),
            losses.sharpened(losses.student_t(double(5, 3), double(2, 3, seed=1), 1.7, 4.0), torch.ones(2), 0.5),
            COUNTS,
        ),
        (double(5, 3), double(2, 3, seed=1)),
    ),
}


@pytest.mark.parametrize("name", TERMS)
def test_gradients_agree_with_finite_differences(name: str) -> None:
    term, inputs = TERMS[name]
    assert torch.autograd.gradcheck(term, inputs)
    assert all(g.abs().max() > 1e-6 for g in torch.autograd.grad(term(*inputs), inputs))


def test_denoise_is_the_likelihood_of_the_held_out_mean() -> None:
    mean, variance, target = double(5, 3).detach(), double(5, 3, seed=1, positive=True).detach(), double(5, 3, seed=4)
    some = COUNTS > 0
    deviation = (variance[some] + NOISE / COUNTS[some, None]).sqrt()
    expected = -torch.distributions.Normal(mean[some], deviation).log_prob(target[some]).mean() - np.log(2 * np.pi) / 2
    torch.testing.assert_close(losses.denoise(Outputs(mean, variance), target, COUNTS, NOISE), expected)
    assert losses.denoise(Outputs(mean, variance), target, torch.zeros(5), NOISE) == 0


def test_student_t_and_its_targets() -> None:
    points, centres = torch.tensor([[0.0, 0.0], [3.0, 0.0]]), torch.tensor([[0.0, 0.0], [4.0, 0.0]])
    q = losses.student_t(points, centres, 1.0, 1.0)
    torch.testing.assert_close(q, torch.tensor([[17 / 18, 1 / 18], [1 / 6, 5 / 6]]))
    torch.testing.assert_close(losses.student_t(points * 9, centres * 9, 81.0, 1.0), q)
    p = losses.sharpened(q, torch.tensor([0.5, 0.5]), 1.0)
    assert p[0, 0] > q[0, 0]
    assert p[1, 1] > q[1, 1]
    # Dividing by sizes favours the smaller cluster; without it sizes do not matter.
    lopsided = torch.tensor([0.9, 0.1])
    assert losses.sharpened(q, lopsided, 1.0)[1, 1] > p[1, 1]
    assert torch.equal(losses.sharpened(q, lopsided, 0.0), losses.sharpened(q, lopsided.flip(0), 0.0))
    weights = torch.tensor([3.0, 1.0])
    each = (p * (p / q).log()).sum(dim=1)
    torch.testing.assert_close(losses.clustering(q, p, weights), (3 * each[0] + each[1]) / 4)
    assert losses.clustering(q, q, weights).abs() < 1e-6


def test_adamw_steps_as_that_of_torch() -> None:
    """Against figures of torch.optim.AdamW(lr=0.1, weight_decay=0.5), written down since using it is slow."""
    parameter = torch.tensor([1.0, -2.0], dtype=torch.float64, requires_grad=True)
    still = torch.ones(1, requires_grad=True)
    optimiser = AdamW([Group((parameter, still), 0.2, 0.5)])
    for _ in range(3):
        optimiser.zero_grad()
        (parameter**2 * torch.tensor([1.0, 3.0])).sum().backward()
        optimiser.step(0.5)
    np.testing.assert_allclose(parameter.detach(), [0.5749739307415966, -1.431025243169833], rtol=1e-9)
    assert still == 1


def test_the_learning_rate_rises_and_falls_to_nothing() -> None:
    rates = [schedule(step, 100) for step in range(100)]
    assert rates[9] == max(rates) == 1
    assert rates[0] == pytest.approx(0.1)
    assert rates[-1] < 0.01
    assert schedule(0, 1) == 1
