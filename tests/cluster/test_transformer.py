"""`cluster --method transformer` as a whole: what it finds, that it repeats, and what it says when it cannot work."""

from __future__ import annotations

import sys

import numpy as np
import pytest
from sklearn.metrics import adjusted_rand_score

from hashstream.buckets import Tokens
from hashstream.cluster.transformer import TransformerSettings, learn_tokens, token_sequences, transformer_clusters
from hashstream.errors import SettingsError, TrainingError
from tests.cluster.simulate import noisy_buckets

torch = pytest.importorskip("torch")

QUICK = TransformerSettings(n_hidden=16, n_steps=30, kl_steps=5, batch_tokens=32)


def test_clear_groups_are_found() -> None:
    tokens, points, _, truth = noisy_buckets()
    found = transformer_clusters(tokens, points, 4, settings=QUICK)
    assert adjusted_rand_score(truth, found.labels) > 0.98
    assert found.labels.dtype == np.int32
    assert found.points.dtype == np.float32
    assert found.points.shape == points.shape
    steps = [(entry["phase"], entry["step"]) for entry in found.history]
    assert steps == [("denoising", 25), ("denoising", 30), ("clustering", 5)]
    assert set(found.history[-1]) == {"phase", "step", "denoise", "consistency", "kl"}


def test_learned_tokens_are_nearer_to_the_truth() -> None:
    """The posterior mean of a noisy bucket beats the bucket; one of very many cells is left where it is."""
    tokens, points, truth, _ = noisy_buckets(n=300)
    settings = TransformerSettings(n_hidden=16, n_steps=80, batch_tokens=64, correction=1.0)
    learned = learn_tokens(tokens, points, settings=settings)
    few = tokens.counts < 5
    before, after = (((x - truth)[few] ** 2).mean() for x in (points, learned))
    assert after < 0.7 * before
    moved = np.linalg.norm(learned - points, axis=1)
    assert moved[tokens.counts == 1000].max() < 0.2 * moved[tokens.counts == 1].mean()


def test_without_correction_tokens_stay_where_they_are() -> None:
    tokens, points, _, _ = noisy_buckets()
    found = transformer_clusters(tokens, points, 4, settings=TransformerSettings(n_steps=1, kl_steps=0, correction=0.0))
    assert np.array_equal(found.points, points)


def test_one_seed_gives_one_result_and_leaves_torch_alone() -> None:
    tokens, points, _, _ = noisy_buckets(n=120)
    torch.manual_seed(5)
    before, threads = torch.get_rng_state(), torch.get_num_threads()
    a = transformer_clusters(tokens, points, 6, settings=QUICK, seed=3)
    assert torch.equal(before, torch.get_rng_state())
    assert torch.get_num_threads() == threads
    torch.manual_seed(6)
    b = transformer_clusters(tokens, points, 6, settings=QUICK, seed=3, n_threads=2)
    assert np.array_equal(a.labels, b.labels)
    assert np.array_equal(a.points, b.points)
    other = transformer_clusters(tokens, points, 6, settings=QUICK, seed=4)
    assert not np.array_equal(a.points, other.points)


def test_clustering_starts_from_the_learned_tokens() -> None:
    tokens, points, _, _ = noisy_buckets(n=80)
    alone = learn_tokens(tokens, points, settings=QUICK, seed=2)
    unsharpened = transformer_clusters(
        tokens, points, 4, settings=TransformerSettings(n_hidden=16, n_steps=30, kl_steps=0, batch_tokens=32), seed=2
    )
    assert np.array_equal(alone, unsharpened.points)
    sharpened = transformer_clusters(tokens, points, 4, settings=QUICK, seed=2)
    assert not np.array_equal(alone, sharpened.points)


def test_progress_counts_every_step() -> None:
    tokens, points, _, _ = noisy_buckets(n=60)
    seen: list[tuple[int, int]] = []
    transformer_clusters(tokens, points, 4, settings=QUICK, progress=lambda done, total: seen.append((done, total)))
    assert seen == [(i, 35) for i in range(1, 36)]
    seen.clear()
    learn_tokens(tokens, points, settings=QUICK, progress=lambda done, total: seen.append((done, total)))
    assert seen[-1] == (30, 30)


@pytest.mark.parametrize("n", [1, 2, 3])
def test_very_few_buckets(n: int) -> None:
    tokens, points, _, _ = noisy_buckets(n=60)
    few = Tokens(
        tokens.codes[:n], tokens.counts[:n], tokens.means[:n], 12, tokens.half_counts[:n], tokens.half_means[:n]
    )
    short = TransformerSettings(n_hidden=16, n_steps=3, kl_steps=3)
    for k in range(1, n + 1):
        found = transformer_clusters(few, points[:n], k, settings=short)
        assert len(np.unique(found.labels)) == k
        assert np.isfinite(found.points).all()
    assert learn_tokens(few, points[:n], settings=short).shape == (n, points.shape[1])


def test_buckets_of_one_cell_or_without_halves() -> None:
    """There is nothing to hold out of a cell, nor in runs of old: such tokens are told from their neighbours."""
    tokens, points, _, truth = noisy_buckets()
    ones = np.ones_like(tokens.counts)
    half = np.arange(len(ones)) % 2
    single = Tokens(tokens.codes, ones, tokens.means, 12, half, np.repeat(tokens.means[:, None], 2, axis=1))
    plain = Tokens(tokens.codes, tokens.counts, tokens.means, 12)
    for some in (single, plain):
        found = transformer_clusters(some, points, 4, settings=QUICK)
        assert adjusted_rand_score(truth, found.labels) > 0.9


def test_a_bucket_in_several_batches() -> None:
    """Tokens of a bucket and a batch share codes; each is a neighbour of the others."""
    tokens, points, _, _ = noisy_buckets(n=100)
    twice = [np.repeat(a, 2, axis=0) for a in (tokens.codes, tokens.counts, tokens.means, tokens.half_counts)]
    both = Tokens(*twice[:3], 12, twice[3], np.repeat(tokens.half_means, 2, axis=0), np.tile(np.int32([0, 1]), 100))
    members = token_sequences(both, np.repeat(points, 2, axis=0), 5).members
    assert np.array_equal(members[:, 1], np.arange(200) ^ 1)
    assert len(np.unique(transformer_clusters(both, np.repeat(points, 2, axis=0), 4, settings=QUICK).labels)) == 4


@pytest.mark.filterwarnings("ignore:Number of distinct clusters")
def test_equal_buckets_do_not_crash() -> None:
    tokens, points, _, _ = noisy_buckets(n=30)
    found = transformer_clusters(tokens, np.zeros_like(points), 3, settings=QUICK)
    assert found.labels.min() == 0
    assert np.isfinite(found.points).all()


def test_missing_torch_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    tokens, points, _, _ = noisy_buckets(n=30)
    monkeypatch.setitem(sys.modules, "torch", None)
    for call in (lambda: transformer_clusters(tokens, points, 3), lambda: learn_tokens(tokens, points)):
        with pytest.raises(
            SettingsError, match=r"pip install 'hashstream\[neural\]'.*--method ward, kmeans and leiden"
        ):
            call()


def test_a_loss_that_is_not_a_number_stops_with_step_and_settings() -> None:
    tokens, points, _, _ = noisy_buckets(n=60)
    settings = TransformerSettings(n_hidden=16, n_steps=40, batch_tokens=32, learning_rate=1e30)
    with pytest.raises(TrainingError, match=r"step \d+ of denoising.*denoise nan.*learning_rate=1e\+30"):
        transformer_clusters(tokens, points, 3, settings=settings)


def test_too_many_clusters() -> None:
    tokens, points, _, _ = noisy_buckets(n=30)
    for n_clusters in (0, 31):
        with pytest.raises(SettingsError, match="there are 30 buckets"):
            transformer_clusters(tokens, points, n_clusters)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"n_neighbours": 0}, "n_neighbours is 0"),
        ({"n_hidden": 30}, "4 heads cannot share"),
        ({"dropout": 1.0}, "dropout is 1.0"),
        ({"learning_rate": float("nan")}, "learning_rate is nan"),
        ({"kl_weight": -1.0}, "kl_weight is -1"),
        ({"correction": 1.5}, "correction is 1.5"),
        ({"kl_steps": -1}, "kl_steps is -1"),
        ({"denoise_weight": 0.0, "consistency_weight": 0.0}, "are both 0"),
    ],
)
def test_bad_settings(settings: dict[str, float], message: str) -> None:
    with pytest.raises(SettingsError, match=message):
        TransformerSettings(**settings)  # type: ignore[arg-type]
