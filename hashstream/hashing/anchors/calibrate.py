"""What validation cells teach: the temperature of the probabilities and each type's thresholds."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hashstream.annotate.anchors import OTHERS, Anchors, typical_fit_to_others
from hashstream.calibration import temperature
from hashstream.hashing.anchors.left_out import NoveltyWeights
from hashstream.hashing.anchors.settings import AnchorSettings
from hashstream.metrics import f1_of_classes, label_metrics

#: A type's own quantile counts as much as that of all types when it has so many correctly labelled validation cells.
_PRIOR_CELLS = 20.0
_BINS = 15
_LOG_RANGE = (-4.0, 4.0)


def calibrated(
    anchors: Anchors,
    codes: NDArray[np.uint64],
    classes: NDArray[np.int64],
    novelty: NoveltyWeights,
    settings: AnchorSettings,
) -> Anchors:
    """Anchors with temperature and thresholds learned on cells that training did not see.

    The temperature is that of the least log-loss (`hashstream.calibration`).
    A threshold is the quantile of a type's correctly labelled cells at which so many of them are rejected as the
    settings allow, drawn towards the quantile of all types where it has few.

    Parameters
    ----------
    codes : (n, n_words) uint64
        Codes of the validation cells.
    classes : (n,) int64
    novelty
        What leaving out types has taught about novelty.
    """
    odds = anchors.log_odds(codes).astype(np.float64)
    anchors = replace(anchors, scale=anchors.scale * temperature(odds, classes, log_range=_LOG_RANGE))
    anchors = replace(anchors, novelty_weights=novelty.table(anchors.features(codes)))
    scores = anchors.score(codes, unknown_threshold=0.0)
    first = scores.probabilities[:, 0].astype(np.float64)
    correct = scores.labels == classes
    n_classes = anchors.n_classes
    ambiguous = _quantiles(first, scores.labels, correct, n_classes, settings.ambiguous_rate)
    novel = -_quantiles(-scores.novelty.astype(np.float64), scores.labels, correct, n_classes, settings.novel_rate)
    anchors = replace(anchors, ambiguous_below=ambiguous, novel_above=novel)
    return replace(anchors, calibration=_summary(anchors, codes, classes))


def carried_over(anchors: Anchors, like: Anchors, temperature: float) -> Anchors:
    """Anchors that were learned again, with the temperature, the weights and the thresholds of those learned before.

    Other novelty bits were drawn, by which a type lies a little nearer to the others or farther away; its threshold of
    novelty moves by so much.
    """
    nearer = typical_fit_to_others(anchors.profile) - typical_fit_to_others(like.profile)
    return replace(
        anchors,
        scale=anchors.scale / temperature,
        novelty_weights=like.novelty_weights,
        ambiguous_below=like.ambiguous_below,
        novel_above=like.novel_above - like.novelty_weights[1 + OTHERS] * nearer,
        calibration=like.calibration,
    )


def expected_calibration_error(confidence: NDArray[np.floating], correct: NDArray[np.bool_]) -> float:
    """Mean distance between confidence and accuracy over 15 equal bins of the confidence, weighted by their cells."""
    bins = np.clip(np.ceil(np.asarray(confidence, np.float64) * _BINS).astype(np.int64) - 1, 0, _BINS - 1)
    sure = np.bincount(bins, weights=confidence, minlength=_BINS)
    right = np.bincount(bins, weights=correct, minlength=_BINS)
    return float(np.abs(sure - right).sum() / max(len(bins), 1))


def _quantiles(
    values: NDArray[np.float64], labels: NDArray[np.int32], correct: NDArray[np.bool_], n_classes: int, rate: float
) -> NDArray[np.float64]:
    """Value below which a share `rate` of each type's correctly labelled cells lies."""
    if not correct.any():
        return np.full(n_classes, values.min() if len(values) else 0.0)
    # The lower of two neighbours, so that no more than the rate is rejected where values are tied.
    pooled = float(np.quantile(values[correct], rate, method="lower"))
    out = np.full(n_classes, pooled)
    for c in range(n_classes):
        own = values[correct & (labels == c)]
        if len(own):
            weight = len(own) / (len(own) + _PRIOR_CELLS)
            out[c] = weight * float(np.quantile(own, rate, method="lower")) + (1 - weight) * pooled
    return out


def _summary(anchors: Anchors, codes: NDArray[np.uint64], classes: NDArray[np.int64]) -> dict[str, Any]:
    scores = anchors.score(codes)
    n_classes, names = anchors.n_classes, list(anchors.names)
    table = np.bincount(scores.labels * n_classes + classes, minlength=n_classes**2).reshape(n_classes, n_classes)
    metrics = label_metrics(table, names, names, unknown="")
    correct = scores.labels == classes
    accepted = scores.rejection == 0
    return {
        "of": "the validation cells that temperature, novelty weights and thresholds were learned from",
        "validation_cells": len(classes),
        "accuracy": round(metrics["accuracy"], 6),
        "macro_f1": round(metrics["macro_f1"], 6),
        "expected_calibration_error": round(expected_calibration_error(scores.probabilities[:, 0], correct), 6),
        "rejected_ambiguous": round(float((scores.rejection == 1).mean()), 6),
        "rejected_novel": round(float((scores.rejection == 2).mean()), 6),
        "accuracy_of_accepted": round(float(correct[accepted].mean()), 6) if accepted.any() else None,
        "f1": {name: round(float(f), 6) for name, f in zip(names, f1_of_classes(table), strict=True)},
    }
