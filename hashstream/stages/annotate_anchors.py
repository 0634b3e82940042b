"""Stage `annotate --hasher`: label the cells of a run by the anchors of the Hasher that encoded it."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from hashstream.annotate import UNKNOWN
from hashstream.annotate.anchors import REJECTIONS, Anchors
from hashstream.errors import InputError
from hashstream.runtime.provenance import peak_rss_bytes
from hashstream.runtime.run import Run, categories

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
    run: Run | str | Path, *, hasher: str | Path, unknown_threshold: float | None = None
) -> dict[str, Any]:
    """Label every cell from its own code alone, and write the columns of `COLUMNS`.

    Parameters
    ----------
    hasher
        Folder that `fit --method anchors` made, and with which the run was encoded.
    unknown_threshold
        Probability below which a cell is 'unknown'; None: the thresholds learned for each type, and novel cells too.
        0 labels every cell.

    Raises
    ------
    InputError
        If the run was encoded with another Hasher, or the folder is damaged or holds no anchors.
    """
    source = run if isinstance(run, Run) else Run.open(run)
    begin = time.perf_counter()
    anchors = Anchors.load(hasher)
    ours = source.meta["hasher"]["fingerprint"]
    if ours != anchors.hasher_fingerprint:
        raise InputError(
            f"{source.path} was encoded with another hasher ({ours[:12]}) than that of {hasher} "
            f"({anchors.hasher_fingerprint[:12]}), so its anchors say nothing about these codes. Encode the query with "
            f"`--hasher {hasher}`."
        )
    names = [*anchors.names, UNKNOWN]
    ranked = [*anchors.names, ""]
    cells = np.zeros(len(names), dtype=np.int64)
    rejected = np.zeros(len(REJECTIONS), dtype=np.int64)

    def look_up(rows: slice, buckets: NDArray[np.int32]) -> dict[str, pa.Array]:
        scores = anchors.score(source.codes(rows.start, rows.stop), unknown_threshold=unknown_threshold)
        labels = np.where(scores.rejection > 0, anchors.n_classes, scores.labels)
        cells[:] += np.bincount(labels, minlength=len(names))
        rejected[:] += np.bincount(scores.rejection, minlength=len(REJECTIONS))
        second, third = (np.where(scores.top[:, i] < 0, anchors.n_classes, scores.top[:, i]) for i in (1, 2))
        return {
            "label": categories(names, labels),
            "label_confidence": pa.array(scores.probabilities[:, 0]),
            "label_distance": pa.array(scores.distance.astype(np.float32)),
            "label_margin": pa.array(scores.margin),
            "label_novelty": pa.array(scores.novelty),
            "label_rejection": categories(list(REJECTIONS), scores.rejection),
            "label_best": categories(ranked, scores.labels),
            "label_second": categories(ranked, second),
            "label_second_probability": pa.array(scores.probabilities[:, 1]),
            "label_third": categories(ranked, third),
            "label_third_probability": pa.array(scores.probabilities[:, 2]),
        }

    record: dict[str, Any] = {
        "hasher": str(hasher),
        "n_labels": anchors.n_classes,
        "minimum_distance": anchors.minimum_distance,
        "left_out": dict(anchors.left_out),
        "unknown_threshold": unknown_threshold,
    }
    # What the pass counts is only known once it is over; the record is completed then.
    done = source.set_cell_columns(list(COLUMNS), look_up, stage="annotate", record=record)
    record |= {
        "cells": {name: int(n) for name, n in zip(names, cells, strict=True) if n},
        "rejected": {name: int(n) for name, n in zip(REJECTIONS, rejected, strict=True) if name},
        "seconds": round(time.perf_counter() - begin, 3),
        "peak_rss_bytes": peak_rss_bytes(),
    }
    done.note_stage("annotate", record)
    return record
