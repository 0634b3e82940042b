"""Metrics from contingency tables against scikit-learn on the labels themselves."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from sklearn import metrics as sk

from hashstream import metrics


def table(found: np.ndarray, true: np.ndarray) -> np.ndarray:
    out = np.zeros((int(found.max()) + 1, int(true.max()) + 1), dtype=np.int64)
    np.add.at(out, (found, true), 1)
    return out


labels = arrays(np.int64, 60, elements=st.integers(0, 6))


@given(labels, labels)
def test_partition_measures_equal_scikit_learn(found: np.ndarray, true: np.ndarray) -> None:
    counts = table(found, true)
    assert metrics.adjusted_rand_index(counts) == pytest.approx(sk.adjusted_rand_score(true, found), abs=1e-12)
    assert metrics.normalized_mutual_information(counts) == pytest.approx(
        sk.normalized_mutual_info_score(true, found), abs=1e-12
    )


def test_matching_finds_the_best_permutation() -> None:
    true = np.repeat([0, 1, 2], [5, 3, 2])
    scores = metrics.clustering_metrics(table(np.array([2, 2, 2, 2, 0, 0, 0, 0, 1, 1]), true))
    assert scores["acc"] == pytest.approx(0.9)
    assert scores["purity"] == pytest.approx(0.9)
    assert scores["macro_f1"] == pytest.approx((8 / 9 + 6 / 7 + 1) / 3)


def test_more_clusters_than_types_and_the_other_way() -> None:
    many = metrics.clustering_metrics(np.array([[5, 0], [0, 4], [3, 0]]))
    assert many["acc"] == pytest.approx(9 / 12)
    assert many["purity"] == 1.0
    few = metrics.clustering_metrics(np.array([[5, 4, 1]]))
    assert few["acc"] == pytest.approx(0.5)
    assert few["macro_f1"] == pytest.approx((10 / 15) / 3)


@given(labels, labels)
def test_label_measures_equal_scikit_learn(found: np.ndarray, true: np.ndarray) -> None:
    names = [str(i) for i in range(int(max(found.max(), true.max())) + 1)]
    counts = np.zeros((len(names), len(names)), dtype=np.int64)
    np.add.at(counts, (found, true), 1)
    scores = metrics.label_metrics(counts, names, names, unknown="unknown")
    present = np.unique(true)
    assert scores["accuracy"] == pytest.approx(sk.accuracy_score(true, found))
    f1 = sk.f1_score(true, found, labels=present, average=None, zero_division=0)
    assert scores["macro_f1"] == pytest.approx(f1.mean())
    assert scores["median_f1"] == pytest.approx(np.median(f1))
    weighted = sk.f1_score(true, found, labels=present, average="weighted", zero_division=0)
    assert scores["weighted_f1"] == pytest.approx(weighted)


def test_unknown_is_never_right() -> None:
    scores = metrics.label_metrics(np.array([[10, 0], [0, 5]]), ["B", "unknown"], ["B", "unknown"], unknown="unknown")
    assert scores["accuracy"] == scores["labelled"] == pytest.approx(10 / 15)


def test_unknown_counts_as_wrong_but_is_reported() -> None:
    scores = metrics.label_metrics(
        np.array([[4, 0], [0, 2], [1, 3]]), ["a", "b", "unknown"], ["a", "b"], unknown="unknown"
    )
    assert scores["accuracy"] == pytest.approx(0.6)
    assert scores["labelled"] == pytest.approx(0.6)
    assert scores["accuracy_of_labelled"] == 1.0
