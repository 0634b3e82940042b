"""Agreement of a partition or of labels with the truth, from their contingency table.

All measures need only the counts of (found, true) pairs, so they cost the same for a thousand cells and for millions.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import linear_sum_assignment

Counts = NDArray[np.integer]


def adjusted_rand_index(table: Counts) -> float:
    """Adjusted Rand index (Hubert and Arabie 1985) of a (n_found, n_true) contingency table."""
    pairs = _pairs(table)
    rows, columns = _pairs(table.sum(axis=1)), _pairs(table.sum(axis=0))
    total = _pairs(table.sum())
    expected = rows * columns / total if total else 0.0
    largest = (rows + columns) / 2
    return 1.0 if largest == expected else float((pairs - expected) / (largest - expected))


def normalized_mutual_information(table: Counts) -> float:
    """Mutual information over the mean of the two entropies; 1.0 where both partitions have one part."""
    p = table.astype(np.float64) / table.sum()
    rows, columns = p.sum(axis=1), p.sum(axis=0)
    if (rows > 0).sum() == 1 and (columns > 0).sum() == 1:
        return 1.0
    outer = np.outer(rows, columns)
    seen = p > 0
    mutual = float((p[seen] * np.log(p[seen] / outer[seen])).sum())
    mean = (_entropy(rows) + _entropy(columns)) / 2
    return max(mutual, 0.0) / mean if mean else 0.0


def purity(table: Counts) -> float:
    """Share of cells that are of their part's most frequent type."""
    return float(table.max(axis=1).sum() / table.sum())


def clustering_metrics(table: Counts) -> dict[str, float]:
    """ARI, NMI, ACC and macro-F1 under the best one-to-one matching, and purity.

    Parameters
    ----------
    table : (n_clusters, n_types) integer
        Cells of each cluster and type.
    """
    matched = _match(table)
    return {
        "ari": adjusted_rand_index(table),
        "nmi": normalized_mutual_information(table),
        "acc": float(np.trace(matched) / table.sum()),
        "macro_f1": float(f1_of_classes(matched)[matched.sum(axis=0) > 0].mean()),
        "purity": purity(table),
        "n_clusters": int((table.sum(axis=1) > 0).sum()),
        "n_types": int((table.sum(axis=0) > 0).sum()),
    }


def label_metrics(table: Counts, found: Sequence[str], true: Sequence[str], *, unknown: str) -> dict[str, float]:
    """Accuracy and F1 of labels; a cell labelled `unknown` counts as wrong, and the share of the others is given.

    Parameters
    ----------
    table : (n_found, n_true) integer
        Cells by the label found (rows) and the true one (columns).
    """
    names = sorted(set(true) | (set(found) - {unknown}))
    position = {name: i for i, name in enumerate(names)}
    square = np.zeros((len(names) + 1, len(names) + 1), dtype=np.int64)
    rows = [len(names) if name == unknown else position[name] for name in found]
    np.add.at(square, np.ix_(rows, [position[name] for name in true]), table)
    support = square.sum(axis=0)
    f1 = f1_of_classes(square)
    kept = support > 0
    total = int(square.sum())
    known = int(square[: len(names)].sum())
    correct = int(np.trace(square[: len(names), : len(names)]))
    return {
        "accuracy": correct / total,
        "accuracy_of_labelled": correct / known if known else 0.0,
        "labelled": known / total,
        "macro_f1": float(f1[kept].mean()),
        "median_f1": float(np.median(f1[kept])),
        "weighted_f1": float((f1 * support)[kept].sum() / total),
    }


def _pairs(counts: Counts | np.integer) -> float:
    """Pairs within each part, over all parts."""
    n = np.asarray(counts, dtype=np.float64)
    return float((n * (n - 1) / 2).sum())


def _entropy(p: NDArray[np.float64]) -> float:
    p = p[p > 0]
    return float(-(p * np.log(p)).sum())


def _match(table: Counts) -> Counts:
    """The table made square, rows reordered so that the trace is as large as a one-to-one matching allows."""
    size = max(table.shape)
    square = np.zeros((size, size), dtype=np.int64)
    square[: table.shape[0], : table.shape[1]] = table
    rows, columns = linear_sum_assignment(square, maximize=True)
    out = np.empty_like(square)
    out[columns] = square[rows]
    return out


def f1_of_classes(square: Counts) -> NDArray[np.float64]:
    """F1 of each class of a square table, 0 where there is neither a true nor a found cell."""
    hits = np.diagonal(square).astype(np.float64)
    denominator = square.sum(axis=0) + square.sum(axis=1)
    return 2 * hits / np.maximum(denominator, 1)
