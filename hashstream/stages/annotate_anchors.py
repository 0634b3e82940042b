"""Stage `annotate --hasher`: label the cells of a run by the anchors of the Hasher that encoded it."""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from hashstream.annotate import UNKNOWN
from hashstream.annotate.anchors import AMBIGUOUS, EMPTY, REJECTIONS, Anchors, Scores
from hashstream.annotate.hierarchy import HierarchicalLabels, hierarchical_labels, parents_above, read_hierarchy
from hashstream.errors import InputError
from hashstream.runtime.arrow import category_array, number_array
from hashstream.runtime.provenance import available_threads, peak_rss_bytes
from hashstream.runtime.run import Run
from hashstream.runtime.schema import LABEL_LEVEL, LABELS

COLUMNS = (
    "label",
    "label_confidence",
    "label_distance",
    "label_margin",
    "label_novelty",
    "label_rejection",
    "label_best",
    "label_second",
    "label_second_probability",
    "label_third",
    "label_third_probability",
)


def annotate_by_anchors(
    run: Run | str | Path,
    *,
    hasher: str | Path,
    unknown_threshold: float | None = None,
    hierarchy: str | Path | None = None,
) -> dict[str, Any]:
    """Label every cell from its own code alone, and write the columns of `COLUMNS`.

    Parameters
    ----------
    hasher
        Folder that `fit --method anchors` made, and with which the run was encoded.
    unknown_threshold
        Probability below which a cell is 'unknown'; None: the thresholds learned for each type, and novel cells too.
        Cells without counts always are. 0 labels every cell.
    hierarchy
        File of a label hierarchy; see `hashstream.annotate.hierarchy.read_hierarchy`. An ambiguous cell gets the
        nearest ancestor that is sure enough: as sure as the most demanding of its types must be. ``label_level`` says
        how far up it is.

    Raises
    ------
    InputError
        If the run was encoded with another Hasher, or the folder is damaged or holds no anchors; or if the hierarchy
        has none of the types.
    """
    source = run if isinstance(run, Run) else Run.open(run)
    begin = time.perf_counter()
    anchors = Anchors.load(hasher)
    ours = source.comparable_fingerprint
    if ours != anchors.hasher_fingerprint:
        raise InputError(
            f"{source.path} was encoded with another hasher ({ours[:12]}) than that of {hasher} "
            f"({anchors.hasher_fingerprint[:12]}), so its anchors say nothing about these codes. Encode the query with "
            f"`--hasher {hasher}`."
        )
    ancestors = None if hierarchy is None else _Ancestors(anchors, read_hierarchy(hierarchy), unknown_threshold)
    names = [*(anchors.names if ancestors is None else ancestors.names), UNKNOWN]
    ranked = [*anchors.names, ""]
    columns = [*COLUMNS] if ancestors is None else [*COLUMNS, LABEL_LEVEL.name]
    cells = np.zeros(len(names), dtype=np.int64)
    rejected = np.zeros(len(REJECTIONS), dtype=np.int64)

    def look_up(rows: slice, buckets: NDArray[np.int32]) -> dict[str, pa.Array]:
        codes = source.codes(rows.start, rows.stop)
        scores = anchors.score(codes, unknown_threshold=unknown_threshold, n_threads=available_threads())
        if unknown_threshold != 0:
            scores.rejection[source.without_counts(codes)] = EMPTY
        labels = np.where(scores.rejection > 0, len(names) - 1, scores.labels)
        confidence = scores.probabilities[:, 0]
        extra = {}
        if ancestors is not None:
            levels = np.where(scores.rejection > 0, -1, 0).astype(np.int32)
            ancestors.raise_labels(codes, scores, labels, confidence, levels)
            extra = {LABEL_LEVEL.name: number_array(levels)}
        cells[:] += np.bincount(labels, minlength=len(names))
        rejected[:] += np.bincount(scores.rejection, minlength=len(REJECTIONS))
        second, third = (np.where(scores.top[:, i] < 0, anchors.n_classes, scores.top[:, i]) for i in (1, 2))
        return {
            "label": category_array(names, labels),
            "label_confidence": number_array(confidence),
            "label_distance": number_array(scores.distance.astype(np.float32)),
            "label_margin": number_array(scores.margin),
            "label_novelty": number_array(scores.novelty),
            "label_rejection": category_array(list(REJECTIONS), scores.rejection),
            "label_best": category_array(ranked, scores.labels),
            "label_second": category_array(ranked, second),
            "label_second_probability": number_array(scores.probabilities[:, 1]),
            "label_third": category_array(ranked, third),
            "label_third_probability": number_array(scores.probabilities[:, 2]),
            **extra,
        }

    record: dict[str, Any] = {
        "hasher": str(hasher),
        "n_labels": anchors.n_classes,
        "minimum_distance": anchors.minimum_distance,
        "left_out": dict(anchors.left_out),
        "unknown_threshold": unknown_threshold,
        "hierarchy": None if hierarchy is None else str(hierarchy),
        **({} if ancestors is None else {"parents": parents_above(anchors.names, ancestors.parents)}),
    }

    def completed() -> dict[str, Any]:
        return {
            **record,
            "cells": {name: int(n) for name, n in zip(names, cells, strict=True) if n},
            "rejected": {name: int(n) for name, n in zip(REJECTIONS, rejected, strict=True) if name},
            "seconds": round(time.perf_counter() - begin, 3),
            "peak_rss_bytes": peak_rss_bytes(),
        }

    stale = [column.name for column in LABELS if column.name not in columns]
    done = source.set_cell_columns(columns, look_up, stage="annotate", record=completed, without=stale)
    return done.stage_record("annotate")


class _Ancestors:
    """Finds the ancestor of ambiguous cells.

    Attributes
    ----------
    names : tuple of str
        The types, then their ancestors.
    parents : mapping of str to str
    """

    def __init__(self, anchors: Anchors, parents: Mapping[str, str], unknown_threshold: float | None) -> None:
        self._anchors, self.parents = anchors, parents
        own = anchors.ambiguous_below if unknown_threshold is None else np.full(anchors.n_classes, unknown_threshold)
        needed = {name: min(float(value), 1.0) for name, value in zip(anchors.names, own, strict=True)}
        of_types = dict(needed)
        for name in anchors.names:
            above, value = parents.get(name), of_types[name]
            while above is not None:
                needed[above] = max(needed.get(above, 0.0), value)
                above = parents.get(above)
        self._thresholds = needed
        self.names = self._labels(np.zeros((0, anchors.n_classes))).names

    def _labels(self, probabilities: NDArray[np.floating]) -> HierarchicalLabels:
        return hierarchical_labels(probabilities, self._anchors.names, self.parents, thresholds=self._thresholds)

    def raise_labels(
        self,
        codes: NDArray[np.uint64],
        scores: Scores,
        labels: NDArray[np.integer],
        confidence: NDArray[np.float32],
        levels: NDArray[np.int32],
    ) -> None:
        """Give ambiguous cells the label, probability and level of their ancestor, in place; they are then accepted."""
        unsure = np.flatnonzero(scores.rejection == AMBIGUOUS)
        found = self._labels(self._anchors.class_probabilities(codes[unsure]))
        raised = found.labels >= 0
        rows = unsure[raised]
        labels[rows], levels[rows] = found.labels[raised], found.levels[raised]
        confidence[rows] = found.confidence[raised].astype(np.float32)
        scores.rejection[rows] = 0
