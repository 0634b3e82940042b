"""One label a cluster, by the votes of its cells."""

from __future__ import annotations

import numpy as np
import pytest

from hashstream.annotate.consensus import consensus_labels
from hashstream.errors import SettingsError

CLUSTERS = np.array([0, 0, 0, 1, 1, 2, 4])
LABELS = np.array([0, 1, -1, 1, 0, -1, 1])
WEIGHTS = np.array([3, 5, 4, 2, 2, 9, 1])


def test_majority_by_cells() -> None:
    found = consensus_labels(CLUSTERS, LABELS, WEIGHTS, n_clusters=5, n_labels=2)
    assert found.counts.tolist() == [[3, 5, 4], [2, 2, 0], [0, 0, 9], [0, 0, 0], [0, 1, 0]]
    # A tie goes to the first label; clusters without labelled cells, or without cells, get none.
    assert found.labels.tolist() == [1, 0, -1, -1, 1]
    assert found.shares == pytest.approx([5 / 12, 0.5, 0.0, 0.0, 1.0])
    assert found.counts.sum() == WEIGHTS.sum()


def test_a_least_share_can_be_asked_for() -> None:
    found = consensus_labels(CLUSTERS, LABELS, WEIGHTS, n_clusters=5, n_labels=2, min_share=0.5)
    assert found.labels.tolist() == [-1, 0, -1, -1, 1]
    with pytest.raises(SettingsError, match=r"1\.5"):
        consensus_labels(CLUSTERS, LABELS, WEIGHTS, n_clusters=5, n_labels=2, min_share=1.5)


def test_no_labels_at_all_and_what_does_not_fit() -> None:
    nothing = consensus_labels(CLUSTERS, np.full(7, -1), WEIGHTS, n_clusters=5, n_labels=0)
    assert nothing.labels.tolist() == [-1] * 5
    with pytest.raises(ValueError, match="clusters go from 0 to 4, expected 0 to 3"):
        consensus_labels(CLUSTERS, LABELS, WEIGHTS, n_clusters=4, n_labels=2)
    with pytest.raises(ValueError, match="labels go from -1 to 1, expected -1 to 0"):
        consensus_labels(CLUSTERS, LABELS, WEIGHTS, n_clusters=5, n_labels=1)
    with pytest.raises(ValueError, match="weights"):
        consensus_labels(CLUSTERS, LABELS, WEIGHTS[1:], n_clusters=5, n_labels=2)
