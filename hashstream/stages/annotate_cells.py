"""Labels of single cells by their whole codes: the last step of `annotate --reference` for a large atlas.

Buckets of many cells mix types, so that a label for each is right for most of its cells at best, and rare types hardly
ever get one. As in `cluster`, it is learned how the bits of codes tell the labels in *this* atlas, and each cell gets
the label that its own code fits best (`hashstream.cluster.cells`): from landmarks, whose own embedding the discriminant
labels, or from the labels that buckets got by votes. Bits are not counted in the reference: where its batches differ
from the query's, that mislabels cells by the dozen.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from hashstream.annotate.discriminant import TypeDiscriminant
from hashstream.cluster.cells import BitProfiles
from hashstream.runtime.arrow import category_array
from hashstream.runtime.provenance import available_threads
from hashstream.runtime.run import Run
from hashstream.stages.cluster_cells import codes_of_rows, profiles_of_buckets
from hashstream.stages.labels import LabelCells, Labelled
from hashstream.stages.truth import bucket_counts

CELL_COLUMNS = (
    "label_confidence",
    "label_margin",
    "label_best",
    "label_second",
    "label_second_probability",
)
#: Of a type with fewer labelled landmarks, buckets tell the mean.
_FEW_LANDMARKS = 30


def reference_discriminant(reference: Run, labels: NDArray[np.int32], n_labels: int) -> TypeDiscriminant:
    """The discriminant of the types of a reference, from its landmarks.

    In a large reference some types have few of these. Buckets of which they are half or more speak for them too, or all
    buckets that have any of their cells, where there is none.

    Parameters
    ----------
    labels : (reference.n_cells,) int32
        Each of 0 to `n_labels` - 1 at least once; -1 for none.
    """
    rows, embedding = reference.landmarks()
    labelled = labels[rows] >= 0
    points, own = embedding[labelled], labels[rows[labelled]]
    sizes = np.bincount(labels[labels >= 0], minlength=n_labels)
    few = np.flatnonzero(np.bincount(own, minlength=n_labels) < np.minimum(sizes, _FEW_LANDMARKS))
    more = None
    if len(few):
        counts = bucket_counts(reference, labels, n_labels)
        share = counts[:, few] / np.maximum(counts.sum(axis=1), 1)[:, None]
        most = share >= 0.5
        cells = np.zeros(counts.shape)
        cells[:, few] = np.where(most | ~most.any(axis=0), counts[:, few], 0)
        used = cells.any(axis=1)
        more = reference.tokens(halves=False).means[used], cells[used]
    return TypeDiscriminant.of(points, own, sizes, more=more)


def labels_by_landmarks(
    run: Run, discriminant: TypeDiscriminant, names: list[str], *, unknown_threshold: float
) -> tuple[list[str], LabelCells]:
    """What labels cells by their own codes, for `write_labels` with `CELL_COLUMNS`; from a look at the codes.

    Parameters
    ----------
    unknown_threshold
        Probability below which a cell has no label.

    Returns
    -------
    names : list of str
        The labels that landmarks have.
    label : callable
    """
    rows, embedding = run.landmarks()
    used, own = np.unique(discriminant.log_odds(embedding).argmax(axis=1), return_inverse=True)
    if len(used) == 1:
        return [names[used[0]]], _one_label(names[used[0]])
    profiles = BitProfiles.learned(codes_of_rows(run, rows), own.astype(np.int32), run.n_bits)
    own_names = [names[i] for i in used]
    return own_names, _by_profiles(profiles, own_names, unknown_threshold)


def labels_by_votes(
    run: Run, labels: NDArray[np.int32], names: list[str], *, unknown_threshold: float
) -> tuple[list[str], LabelCells]:
    """As `labels_by_landmarks`, from the labels of buckets.

    Parameters
    ----------
    labels : (n_buckets,) int32
        Label of each bucket by votes, a place in `names`; -1 for none, but not for all. Buckets without one say nothing
        about bits; their cells get the labels that they fit.
    """
    used, compact = np.unique(labels[labels >= 0], return_inverse=True)
    own = np.full(len(labels), -1, dtype=np.int32)
    own[labels >= 0] = compact
    own_names = [names[i] for i in used]
    return own_names, _by_profiles(profiles_of_buckets(run, own, len(used)), own_names, unknown_threshold)


def _by_profiles(profiles: BitProfiles, names: list[str], unknown_threshold: float) -> LabelCells:
    ranked = [*names, ""]

    def label(codes: NDArray[np.uint64], buckets: NDArray[np.int32]) -> Labelled:
        del buckets
        found = profiles.scores(codes, n_threads=available_threads())
        best, second = found.top[:, 0], np.where(found.top[:, 1] < 0, len(names), found.top[:, 1])
        first, next_best = np.ascontiguousarray(found.probabilities[:, :2].T)
        columns = {
            "label_confidence": first,
            "label_margin": first - next_best,
            "label_best": category_array(ranked, best),
            "label_second": category_array(ranked, second),
            "label_second_probability": next_best,
        }
        return Labelled(np.where(first < unknown_threshold, len(names), best), columns)

    return label


def _one_label(name: str) -> LabelCells:
    """Every cell has the only label that any landmark has."""

    def label(codes: NDArray[np.uint64], buckets: NDArray[np.int32]) -> Labelled:
        del codes
        none = np.zeros(len(buckets), np.float32)
        columns = {
            "label_confidence": none + 1,
            "label_margin": none + 1,
            "label_best": category_array([name], np.zeros(len(buckets), np.int32)),
            "label_second": category_array([""], np.zeros(len(buckets), np.int32)),
            "label_second_probability": none,
        }
        return Labelled(np.zeros(len(buckets), np.int64), columns)

    return label
