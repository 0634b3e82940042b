"""Cells assigned by their whole codes."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.special import softmax
from sklearn.linear_model import LogisticRegression

from hashstream.cluster.cells import BitProfiles
from hashstream.kernels import count_set_bits, pack_bits, unpack_bits


def mixed_codes(n_bits: int, n: int = 6000) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Codes of three clusters with their own shares of set bits, the truth, and labels of which a fifth are wrong."""
    rng = np.random.default_rng(n_bits)
    share = rng.random((3, n_bits))
    truth = rng.choice(3, n, p=[0.6, 0.3, 0.1]).astype(np.int32)
    codes = pack_bits((rng.random((n, n_bits)) < share[truth]).astype(np.float32) - 0.5)
    labels = np.where(rng.random(n) < 0.2, rng.integers(0, 3, n), truth).astype(np.int32)
    return codes, truth, labels


@pytest.mark.parametrize("n_bits", [16, 37, 64, 130])
def test_cells_go_to_the_most_probable_cluster(n_bits: int) -> None:
    codes, truth, labels = mixed_codes(n_bits)
    set_bits, sizes = count_set_bits(codes, labels, 3, n_bits), np.bincount(labels)
    bits = unpack_bits(codes, n_bits)
    np.testing.assert_array_equal(set_bits, [bits[labels == c].sum(axis=0) for c in range(3)])
    found, confidence, _ = BitProfiles.of(set_bits, sizes, codes[:500], labels[:500]).assign(codes, n_threads=2)
    share = (set_bits + 1) / (sizes[:, None] + 2)
    odds = bits @ np.log(share).T + (1 - bits.astype(int)) @ np.log(1 - share).T + np.log(sizes)
    clear = np.sort(odds, axis=1)[:, -1] - np.sort(odds, axis=1)[:, -2] > 0.05  # weights are rounded
    np.testing.assert_array_equal(found[clear], odds.argmax(axis=1)[clear])
    assert (found == truth).mean() > (labels == truth).mean() + 0.05
    assert confidence.min() >= 0.5
    assert confidence.max() <= 1


def test_confidence_is_softened_towards_the_labels() -> None:
    codes, _, labels = mixed_codes(64)
    set_bits, sizes = count_set_bits(codes, labels, 3, 64), np.bincount(labels)
    found, confidence, _ = BitProfiles.of(set_bits, sizes, codes, labels).assign(codes)
    share = (set_bits + 1) / (sizes[:, None] + 2)
    bits = unpack_bits(codes, 64)
    hard = softmax(bits @ np.log(share).T + (1 - bits.astype(int)) @ np.log(1 - share).T + np.log(sizes), axis=1)
    # A fifth of the labels are drawn at random, so that the mixture's own probabilities are far too sure of them.
    agreement = (found == labels).mean()
    assert abs(confidence.mean() - agreement) < 0.5 * abs(hard.max(axis=1).mean() - agreement)


@pytest.mark.parametrize("n_clusters", [2, 3])
@pytest.mark.parametrize("n_bits", [16, 64, 130])
def test_learned_profiles_are_those_of_a_logistic_regression(n_bits: int, n_clusters: int) -> None:
    codes, truth, _ = mixed_codes(n_bits)
    labels = np.minimum(truth, n_clusters - 1).astype(np.int32)
    found, confidence, _ = BitProfiles.learned(codes[:3000], labels[:3000], n_bits).assign(codes, n_threads=2)
    signs = 2.0 * unpack_bits(codes, n_bits) - 1.0
    # Of two clusters scikit-learn has one weight, here there are two of half the size, whose squares add up to half.
    inverse_penalty = (2.0 if n_clusters == 2 else 1.0) / 30.0
    model = LogisticRegression(C=inverse_penalty, tol=1e-8, max_iter=1000).fit(signs[:3000], labels[:3000])
    share = np.sort(model.predict_proba(signs), axis=1)
    expected = share[:, -1] / (share[:, -1] + share[:, -2])
    assert (found == model.predict(signs)).mean() > 0.995
    assert np.abs(confidence - expected).mean() < 0.01
    assert (found == labels).mean() > 0.9


def test_learning_knows_that_bits_depend_on_each_other() -> None:
    # Two clusters differ in bit 0 alone; sixty bits say by and large the same as each other, and little of the cluster.
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 2, 4000).astype(np.int32)
    common = rng.random(4000) < 0.4 + 0.2 * labels
    bits = np.where(rng.random((4000, 61)) < 0.05, ~common[:, None], common[:, None])
    bits[:, 0] = (rng.random(4000) < 0.1) != labels
    codes = pack_bits(bits.astype(np.float32) - 0.5)
    counted = BitProfiles.of(count_set_bits(codes, labels, 2, 61), np.bincount(labels), codes, labels).assign(codes)[0]
    learned = BitProfiles.learned(codes, labels, 61).assign(codes)[0]
    assert (learned == labels).mean() > 0.88 > (counted == labels).mean() + 0.1
