"""The last step of `annotate --reference` for a large atlas: cells are labelled one by one, by their whole codes.

Buckets of many cells mix types, so that a vote labels their majority at best, and rare types hardly ever. As in
`cluster`, the labels that buckets got say how often cells of each label set each bit of their codes in *this* atlas,
and each cell then gets the label that its own code fits best (`hashstream.cluster.cells`). Bits are not counted in the
reference: where its batches differ from the query's, that mislabels cells by the dozen.
"""

from __future__ import annotations

import time
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from hashstream.annotate import UNKNOWN
from hashstream.runtime.arrow import category_array, number_array
from hashstream.runtime.provenance import available_threads, peak_rss_bytes
from hashstream.runtime.run import Run
from hashstream.runtime.schema import LABELS
from hashstream.stages.cluster_cells import profiles_of_buckets

COLUMNS = (
    "label",
    "label_confidence",
    "label_margin",
    "label_best",
    "label_second",
    "label_second_probability",
)


def annotate_cells(
    run: Run,
    labels: NDArray[np.int32],
    names: list[str],
    *,
    unknown_threshold: float,
    record: dict[str, Any],
    begin: float,
) -> dict[str, Any]:
    """Label every cell of a run from its own code, and write the columns of `COLUMNS`.

    Parameters
    ----------
    labels : (n_buckets,) int32
        Label of each bucket by votes, a place in `names`; -1 for none, but not for all.
    unknown_threshold
        Probability below which a cell is 'unknown'.
    record, begin
        What is known of the stage already, and when it began.
    """
    used, compact = np.unique(labels[labels >= 0], return_inverse=True)
    own = np.full(len(labels), -1, dtype=np.int32)
    own[labels >= 0] = compact
    profiles = profiles_of_buckets(run, own, len(used))
    own_names = [names[i] for i in used]
    all_names, ranked = [*own_names, UNKNOWN], [*own_names, ""]
    cells = np.zeros(len(all_names), dtype=np.int64)

    def look_up(rows: slice, buckets: NDArray[np.int32]) -> dict[str, pa.Array]:
        found = profiles.scores(run.codes(rows.start, rows.stop), n_threads=available_threads())
        best, second = found.top[:, 0], np.where(found.top[:, 1] < 0, len(used), found.top[:, 1])
        first, next_best = found.probabilities[:, 0], found.probabilities[:, 1]
        index = np.where(first < unknown_threshold, len(used), best)
        cells[:] += np.bincount(index, minlength=len(all_names))
        return {
            "label": category_array(all_names, index),
            "label_confidence": number_array(first),
            "label_margin": number_array(first - next_best),
            "label_best": category_array(ranked, best),
            "label_second": category_array(ranked, second),
            "label_second_probability": number_array(next_best),
        }

    record = {**record, "assigned_by": "cell"}
    # What the pass counts is only known once it is over; the record is completed then.
    stale = [column.name for column in LABELS if column.name not in COLUMNS]
    done = run.set_cell_columns([*COLUMNS], look_up, stage="annotate", record=record, without=stale)
    record |= {
        "cells": {name: int(n) for name, n in zip(all_names, cells, strict=True) if n},
        "seconds": round(time.perf_counter() - begin, 3),
        "peak_rss_bytes": peak_rss_bytes(),
    }
    done.note_stage("annotate", record)
    return record
