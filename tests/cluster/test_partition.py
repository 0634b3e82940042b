"""Clustering of tokens: weights count, methods agree with their definitions, settings are checked."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.cluster.hierarchy import fcluster, ward
from sklearn.metrics import adjusted_rand_score

from hashstream.buckets import Tokens
from hashstream.cluster import METHODS, TransformerSettings, cluster_tokens, partition, scaled_points
from hashstream.cluster.confidence import assignment_confidence
from hashstream.cluster.kmeans import refine_by_kmeans, weighted_kmeans, weighted_means
from hashstream.cluster.neighbours import token_neighbours
from hashstream.cluster.partition import clustering_prefix
from hashstream.cluster.ward import cut_tree
from hashstream.errors import SettingsError
from hashstream.kernels import ward_linkage

#: As little training as shows that the parts fit together.
QUICK = TransformerSettings(n_steps=15, kl_steps=5, batch_tokens=32, n_hidden=16, n_neighbours=4)


def blobs(n: int = 400, k: int = 5, seed: int = 0, n_dims: int = 12) -> tuple[Tokens, np.ndarray]:
    """Tokens with full-length codes around k centres, and the centre of each."""
    rng = np.random.default_rng(seed)
    truth = rng.integers(0, k, n)
    centres = rng.standard_normal((k, n_dims)) * 8
    means = (centres[truth] + rng.standard_normal((n, n_dims))).astype(np.float32)
    codes = np.sort(rng.choice(2**20, n, replace=False)).astype(np.uint64)[:, None]
    counts = rng.integers(1, 30, n)
    return Tokens(codes=codes, counts=counts, means=means, bucket_bits=20), truth


@pytest.mark.parametrize("method", METHODS)
def test_methods_find_clear_groups(method: str) -> None:
    tokens, truth = blobs()
    known = cluster_tokens(tokens, method=method, n_clusters=5, bucket_bits=20, transformer=QUICK)
    assert known.n_clusters == 5
    assert adjusted_rand_score(truth, known.labels) > 0.99
    auto = cluster_tokens(tokens, method=method, bucket_bits=20, transformer=QUICK)
    assert adjusted_rand_score(truth, auto.labels) > 0.8
    assert set(auto.labels) == set(range(auto.n_clusters))


@pytest.mark.parametrize("method", METHODS)
def test_same_seed_same_clusters(method: str) -> None:
    tokens, _ = blobs(seed=4)
    a, b = (cluster_tokens(tokens, method=method, n_clusters=7, seed=3, transformer=QUICK) for _ in range(2))
    assert np.array_equal(a.labels, b.labels)


def test_tokens_stand_for_their_cells() -> None:
    """Ward of weighted tokens cuts as Ward of the cells does."""
    rng = np.random.default_rng(1)
    points = rng.standard_normal((40, 3)).astype(np.float32)
    counts = rng.integers(1, 6, 40)
    linkage = ward_linkage(points, counts.astype(np.float64))
    cells = ward(np.repeat(points, counts, axis=0).astype(np.float64))
    for k in (2, 5, 11):
        mine = np.repeat(cut_tree(linkage, k), counts)
        assert adjusted_rand_score(fcluster(cells, k, "maxclust"), mine) == pytest.approx(1.0)


def test_cut_gives_exactly_k_even_with_ties() -> None:
    points = np.zeros((12, 2), dtype=np.float32)
    linkage = ward_linkage(points, np.ones(12))
    for k in range(1, 13):
        assert len(np.unique(cut_tree(linkage, k))) == k


def test_kmeans_uses_the_counts() -> None:
    points = np.array([[0.0], [1.0], [10.0]], dtype=np.float32)
    labels = weighted_kmeans(points, np.array([1, 1000, 1]), 2, seed=0)
    assert labels[0] == labels[1] != labels[2]
    means = weighted_means(points, np.array([1, 3, 2]), np.array([0, 0, 1]), 2)
    np.testing.assert_allclose(means, [[0.75], [10.0]])
    assert refine_by_kmeans(points, np.array([1, 1, 1]), np.array([0, 1, 1])).tolist() == [0, 0, 1]


def test_a_given_start_is_taken_where_it_is_tighter() -> None:
    tokens, truth = blobs(n=600, k=30, n_dims=4)

    def spread(labels: np.ndarray) -> float:
        means = weighted_means(tokens.means, tokens.counts, labels, 30)
        return float((tokens.counts[:, None] * (tokens.means - means[labels]) ** 2).sum())

    alone = weighted_kmeans(tokens.means, tokens.counts, 30, seed=0, n_init=1)
    helped = weighted_kmeans(tokens.means, tokens.counts, 30, seed=0, n_init=1, start=truth)
    assert spread(helped) < 0.999 * spread(alone)
    poor = weighted_kmeans(tokens.means, tokens.counts, 30, seed=0, n_init=1, start=np.arange(600) % 30)
    assert spread(poor) <= spread(alone) * 1.001


def test_components_are_divided_by_the_root_of_their_deviation() -> None:
    tokens, _ = blobs()
    w = tokens.counts / tokens.counts.sum()
    before = np.sqrt(np.cov(tokens.means.T, aweights=tokens.counts, bias=True).diagonal())
    after = np.sqrt(w @ scaled_points(tokens).astype(np.float64) ** 2)
    np.testing.assert_allclose(after, np.sqrt(before), rtol=1e-4)


def test_prefix_rule() -> None:
    tokens, _ = blobs(n=3000)
    bits = clustering_prefix(tokens)
    assert tokens.n_prefixes(bits) * 3 <= tokens.n_cells
    assert bits == 20 or tokens.n_prefixes(bits + 1) * 3 > tokens.n_cells
    singles = Tokens(tokens.codes, np.ones(3000, dtype=np.int64), tokens.means, 20)
    assert 8 <= clustering_prefix(singles) < 12
    assert singles.n_prefixes(clustering_prefix(singles, at_least=2500)) >= 2500


def test_prefix_rule_bounds_the_number_of_points(monkeypatch: pytest.MonkeyPatch) -> None:
    tokens, _ = blobs(n=3000)
    monkeypatch.setattr(partition, "MOST_POINTS", 500)
    bits = clustering_prefix(tokens)
    assert tokens.n_prefixes(bits) <= 500 < tokens.n_prefixes(bits + 1)


def test_shortened_tokens_are_exact_merges() -> None:
    tokens, _ = blobs(n=2000)
    short, parent = tokens.shorten(9)
    prefixes = tokens.codes[:, 0] & np.uint64(511)
    assert np.array_equal(short.codes[:, 0], np.unique(prefixes))
    assert np.array_equal(short.codes[parent, 0], prefixes)
    assert short.n_cells == tokens.n_cells
    for row in (0, short.n_tokens - 1):
        inside = parent == row
        mean = np.average(tokens.means[inside].astype(np.float64), axis=0, weights=tokens.counts[inside])
        np.testing.assert_allclose(short.means[row], mean, rtol=1e-5)


def test_neighbours_leave_the_token_itself_out() -> None:
    points = np.array([[0.0], [0.0], [1.0], [5.0]], dtype=np.float32)
    found = token_neighbours(points, 2)
    assert all(i not in row for i, row in enumerate(found.indices.tolist()))
    assert found.indices[0, 0] == 1
    assert token_neighbours(points, 99).indices.shape == (4, 3)
    assert token_neighbours(points[:1], 5).indices.shape == (1, 0)


def test_neighbours_in_a_group_far_from_the_centre_are_in_exact_order() -> None:
    """Products of points so far out lose all that tells the group's members apart."""
    rng = np.random.default_rng(0)
    centres = rng.standard_normal((30, 1, 6)) * 1000
    points = (centres + rng.standard_normal((30, 10, 6)) * 0.01).reshape(-1, 6).astype(np.float32)
    exact = ((points[:, None].astype(np.float64) - points) ** 2).sum(axis=2)
    np.fill_diagonal(exact, np.inf)
    np.testing.assert_array_equal(token_neighbours(points, 4).indices, np.argsort(exact, axis=1, kind="stable")[:, :4])


def test_one_token_is_one_cluster() -> None:
    one = Tokens(np.zeros((1, 1), np.uint64), np.array([7]), np.zeros((1, 4), np.float32), 16)
    for method in METHODS:
        assert cluster_tokens(one, method=method).n_clusters == 1


def test_two_tokens() -> None:
    two = Tokens(np.array([[0], [1]], np.uint64), np.array([7, 1]), np.eye(2, 4, dtype=np.float32), 16)
    for method in METHODS:
        assert cluster_tokens(two, method=method, n_clusters=2, transformer=QUICK).labels.tolist() in ([0, 1], [1, 0])
        assert cluster_tokens(two, method=method, transformer=QUICK).n_clusters in (1, 2)


def test_bad_settings() -> None:
    tokens, _ = blobs(n=50)
    with pytest.raises(SettingsError, match="51 clusters asked for, but the run has 50"):
        cluster_tokens(tokens, n_clusters=51)
    with pytest.raises(SettingsError, match="resolution"):
        cluster_tokens(tokens, method="ward", resolution=1.0)
    with pytest.raises(SettingsError, match="expected one of"):
        cluster_tokens(tokens, method="dbscan")
    with pytest.raises(SettingsError, match="bucket_bits is 21"):
        cluster_tokens(tokens, bucket_bits=21)


def test_leiden_of_learned_tokens() -> None:
    tokens, truth = blobs()
    found = cluster_tokens(tokens, method="transformer", resolution=0.5, bucket_bits=20, transformer=QUICK)
    assert adjusted_rand_score(truth, found.labels) > 0.8
    assert found.chosen_by == "Leiden communities at resolution 0.5 of the learned tokens"


@pytest.mark.parametrize("method", ["kmeans", "ward"])
def test_the_own_mean_is_the_nearest_where_the_method_says_so(method: str) -> None:
    """Confidence is measured where the method looked: k-means at the components as they are."""
    rng = np.random.default_rng(2)
    tokens, _ = blobs(2000, k=1)
    tokens.means[:] = rng.standard_normal((2000, 12)) * np.linspace(8, 0.2, 12)
    found = cluster_tokens(tokens, method=method, n_clusters=20, bucket_bits=20)
    assert (found.confidence < 0.5).mean() < 0.005


def test_confidence_is_high_inside_and_even_between() -> None:
    points = np.array([[-5.0, 0.0], [-5.2, 0.0], [5.0, 0.0], [5.2, 0.0], [0.0, 0.0], [6.0, 0.0]], dtype=np.float32)
    counts = np.array([100, 100, 100, 100, 1, 1])
    found, other = assignment_confidence(points, counts, np.array([0, 0, 1, 1, 0, 0]))
    assert other.tolist() == [1, 1, 0, 0, 1, 1]
    assert (found[:4] > 0.95).all()
    assert found[4] == pytest.approx(0.5, abs=0.05)
    assert found[5] < 0.05, "given to the farther cluster"
    assert assignment_confidence(points, counts, np.zeros(6, dtype=int))[0].tolist() == [1.0] * 6
