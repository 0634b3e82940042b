"""Labels of cells by a labelled reference: of buckets, or of single cells by their whole codes.

Buckets of several cells mix types, so that a label for each is right for most of its cells at best, and rare types
hardly ever get one. As in `cluster`, it is learned how the bits of codes tell the labels in *this* atlas, from
landmarks, whose own embedding is labelled, and each cell gets the label that its own code fits best
(`hashstream.cluster.cells`). Bits are not counted in the reference: where its batches differ from the query's, that
mislabels cells by the dozen.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from hashstream.annotate import vote_labels
from hashstream.annotate.discriminant import TypeDiscriminant
from hashstream.buckets import Tokens
from hashstream.cluster.cells import BitProfiles
from hashstream.runtime.arrow import category_array
from hashstream.runtime.provenance import available_threads
from hashstream.runtime.run import Run
from hashstream.stages.empty_cells import counted_landmarks
from hashstream.stages.labels import LabelCells, Labelled
from hashstream.stages.truth import bucket_counts

CELL_COLUMNS = (
    "label_confidence",
    "label_margin",
    "label_best",
    "label_second",
    "label_second_probability",
)
METHODS = ("both", "discriminant", "vote")
#: Of a type with fewer labelled landmarks, buckets tell the mean.
_FEW_LANDMARKS = 30


class LabelShares(NamedTuple):
    """How much speaks for each label.

    Attributes
    ----------
    shares : (n, n_labels) float32
        Of each row 1 together.
    distance : (n,) float32 or None
        Hamming distance to the buckets that voted, where any did.
    """

    shares: NDArray[np.float32]
    distance: NDArray[np.float32] | None


@dataclass(frozen=True)
class LabelledBuckets:
    """The buckets of a reference, and the cells of each label in each, both looked up once, where they are wanted.

    Attributes
    ----------
    reference : Run
    labels : (reference.n_cells,) int32
        Each of 0 to `n_labels` - 1 at least once; -1 for none.
    n_labels : int
    """

    reference: Run
    labels: NDArray[np.int32]
    n_labels: int

    @cached_property
    def tokens(self) -> Tokens:
        return self.reference.tokens(halves=False)

    @cached_property
    def counts(self) -> NDArray[np.int64]:
        """(n_buckets, n_labels) int64."""
        return bucket_counts(self.reference, self.labels, self.n_labels)


def reference_discriminant(buckets: LabelledBuckets) -> TypeDiscriminant:
    """The discriminant of the types of a reference, from its landmarks.

    In a large reference some types have few of these. Buckets of which they are half or more speak for them too, or all
    buckets that have any of their cells, where there is none.
    """
    labels, n_labels = buckets.labels, buckets.n_labels
    rows, embedding = buckets.reference.landmarks()
    labelled = labels[rows] >= 0
    points, own = embedding[labelled], labels[rows[labelled]]
    sizes = np.bincount(labels[labels >= 0], minlength=n_labels)
    few = np.flatnonzero(np.bincount(own, minlength=n_labels) < np.minimum(sizes, _FEW_LANDMARKS))
    more = None
    if len(few):
        counts = buckets.counts
        share = counts[:, few] / np.maximum(counts.sum(axis=1), 1)[:, None]
        most = share >= 0.5
        cells = np.zeros(counts.shape)
        cells[:, few] = np.where(most | ~most.any(axis=0), counts[:, few], 0)
        used = cells.any(axis=1)
        more = buckets.tokens.means[used], cells[used]
    return TypeDiscriminant.of(points, own, sizes, more=more)


def reference_shares(
    reference: Run, labels: NDArray[np.int32], n_labels: int, *, method: str, n_neighbours: int
) -> Callable[[Tokens], LabelShares]:
    """What says how much speaks for each label of a reference, for tokens with the reference's Hasher.

    Parameters
    ----------
    labels : (reference.n_cells,) int32
        Each of 0 to `n_labels` - 1 at least once; -1 for none.
    method
        ``discriminant``: its probability. ``vote``: the share of the votes of the nearest buckets. ``both``: their
        mean.
    n_neighbours
        See `hashstream.annotate.vote_labels`.
    """
    buckets = LabelledBuckets(reference, labels, n_labels)
    discriminant = None if method == "vote" else reference_discriminant(buckets)
    if method == "discriminant":
        assert discriminant is not None
        return lambda tokens: LabelShares(discriminant.probabilities(tokens.means), None)
    counts, known = buckets.counts, buckets.tokens

    def shares_of(tokens: Tokens) -> LabelShares:
        vote = vote_labels(tokens, known, counts, n_neighbours=n_neighbours, n_threads=available_threads())
        shares = vote.shares
        if discriminant is not None:
            shares += discriminant.probabilities(tokens.means)
            shares /= 2
        return LabelShares(shares, vote.distance)

    return shares_of


def labels_by_landmarks(
    run: Run, shares_of: Callable[[Tokens], LabelShares], names: list[str], *, unknown_threshold: float
) -> tuple[list[str], LabelCells]:
    """What labels cells by their own codes, for `write_labels` with `CELL_COLUMNS`; from a look at the codes.

    Parameters
    ----------
    shares_of
        See `reference_shares`.
    unknown_threshold
        Probability below which a cell has no label.

    Returns
    -------
    names : list of str
        The labels that landmarks have.
    label : callable
    """
    rows, embedding = counted_landmarks(run)
    codes = run.codes_of(rows)
    landmarks = Tokens(codes, np.ones(len(rows), np.int64), embedding, run.n_bits)
    used, own = np.unique(shares_of(landmarks).shares.argmax(axis=1), return_inverse=True)
    if len(used) == 1:
        return [names[used[0]]], _one_label(names[used[0]])
    own_names = [names[i] for i in used]
    return own_names, _by_profiles(
        BitProfiles.learned(codes, own.astype(np.int32), run.n_bits), own_names, unknown_threshold
    )


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
