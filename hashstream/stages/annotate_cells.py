"""Labels of single cells by their whole codes: the last step of `annotate --reference` for a large atlas.

Buckets of many cells mix types, so that a vote labels their majority at best, and rare types hardly ever. As in
`cluster`, the labels that buckets got say how often cells of each label set each bit of their codes in *this* atlas,
and each cell then gets the label that its own code fits best (`hashstream.cluster.cells`). Bits are not counted in the
reference: where its batches differ from the query's, that mislabels cells by the dozen.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from hashstream.runtime.arrow import category_array
from hashstream.runtime.provenance import available_threads
from hashstream.runtime.run import Run
from hashstream.stages.cluster_cells import profiles_of_buckets
from hashstream.stages.labels import Labelled

CELL_COLUMNS = (
    "label_confidence",
    "label_margin",
    "label_best",
    "label_second",
    "label_second_probability",
)


def labels_by_code(
    run: Run, labels: NDArray[np.int32], names: list[str], *, unknown_threshold: float
) -> tuple[list[str], Callable[[NDArray[np.uint64], NDArray[np.int32]], Labelled]]:
    """What labels cells by their own codes, for `write_labels` with `CELL_COLUMNS`; from one pass over all codes.

    Parameters
    ----------
    labels : (n_buckets,) int32
        Label of each bucket by votes, a place in `names`; -1 for none, but not for all. Buckets without one say nothing
        about bits; their cells get the labels that they fit.
    unknown_threshold
        Probability below which a cell has no label.

    Returns
    -------
    names : list of str
        The labels that buckets have.
    label : callable
    """
    used, compact = np.unique(labels[labels >= 0], return_inverse=True)
    own = np.full(len(labels), -1, dtype=np.int32)
    own[labels >= 0] = compact
    profiles = profiles_of_buckets(run, own, len(used))
    own_names = [names[i] for i in used]
    ranked = [*own_names, ""]

    def label(codes: NDArray[np.uint64], buckets: NDArray[np.int32]) -> Labelled:
        del buckets
        found = profiles.scores(codes, n_threads=available_threads())
        best, second = found.top[:, 0], np.where(found.top[:, 1] < 0, len(used), found.top[:, 1])
        first, next_best = np.ascontiguousarray(found.probabilities[:, :2].T)
        columns = {
            "label_confidence": first,
            "label_margin": first - next_best,
            "label_best": category_array(ranked, best),
            "label_second": category_array(ranked, second),
            "label_second_probability": next_best,
        }
        return Labelled(np.where(first < unknown_threshold, len(used), best), columns)

    return own_names, label
