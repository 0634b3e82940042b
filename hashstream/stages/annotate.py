"""Stage `annotate`: label the cells of a run from a labelled reference run."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hashstream.annotate.hierarchy import hierarchical_labels, parents_above, parents_from_counts, read_hierarchy
from hashstream.errors import SettingsError
from hashstream.runtime.arrow import category_array
from hashstream.runtime.comparable import check_same_hasher
from hashstream.runtime.run import Run
from hashstream.runtime.schema import LABEL_LEVEL
from hashstream.stages.annotate_cells import CELL_COLUMNS, METHODS, LabelShares, labels_by_landmarks, reference_shares
from hashstream.stages.empty_cells import without_labels
from hashstream.stages.labels import LabelCells, Labelled, Novelty, write_labels
from hashstream.stages.truth import run_labels

ASSIGNMENTS = ("auto", "bucket", "cell")
#: Cells a bucket above which their own codes say more.
COARSE = 2
_BLOCK_BUCKETS = 4096


def annotate(
    run: Run | str | Path,
    *,
    reference: Run | str | Path,
    labels: str,
    n_neighbours: int = 15,
    unknown_threshold: float = 0.5,
    reference_atlas: Sequence[str | Path] | None = None,
    hierarchy: str | Path | None = None,
    parents_key: str | None = None,
    assign: str = "auto",
    novel_rate: float = 0.02,
    method: str = "both",
) -> dict[str, Any]:
    """Label a run by a labelled reference run, and write ``label`` and its confidence for every cell.

    A linear discriminant of the reference's types and votes of the nearest reference buckets label the buckets. Where
    buckets hold several cells, each cell gets the label that its own whole code fits best.

    Parameters
    ----------
    reference
        Run of a labelled atlas, encoded with the same Hasher.
    labels
        Column of the reference's obs; cells without a label, or of the label 'unknown', do not vote.
    n_neighbours
        See `hashstream.annotate.vote_labels`.
    unknown_threshold
        Cells whose label has less than this probability, or share of the votes, are 'unknown', and so are cells without
        counts; 0 labels every cell.
    reference_atlas
        Where the reference's atlas is now, if not where it was encoded.
    hierarchy, parents_key
        File of a label hierarchy (see `hashstream.annotate.hierarchy.read_hierarchy`), or the column of the
        reference's obs with the parent of each cell's label. Where no label is as likely as it must be, the nearest
        ancestor gets the bucket that is with its other children. ``label_level`` says how far up it is.
    assign
        ``bucket``: cells have their bucket's label. ``cell``: each goes by its own code
        (`hashstream.stages.annotate_cells`), and there are no hierarchies.
        ``auto``: by cell where the run has more than 2 cells a bucket and no hierarchy is given.
    novel_rate
        Cells that look like no type of the reference are 'unknown', too (`hashstream.annotate.novelty`): those that do
        so as little as this share of the reference's own cells, batches aside. 0, or an `unknown_threshold` of 0: none.
    method
        ``discriminant`` (`hashstream.annotate.discriminant`), ``vote`` (`hashstream.annotate.vote_labels`), or
        ``both``: the mean of the probability by the one and the share of the votes by the other.

    Raises
    ------
    InputError
        If the hashers differ, the reference has no labels, or the hierarchy has none of them.
    SettingsError
        If both kinds of hierarchy are given, or one with ``cell``; or a rate that is no share.
    """
    if assign not in ASSIGNMENTS:
        raise SettingsError(f"--assign is {assign!r}; expected one of {', '.join(ASSIGNMENTS)}.")
    if method not in METHODS:
        raise SettingsError(f"method is {method!r}; expected one of {', '.join(METHODS)}.")
    if n_neighbours < 1:
        raise SettingsError(f"n_neighbours is {n_neighbours}; expected at least 1.")
    if not 0 <= unknown_threshold <= 1:
        raise SettingsError(f"unknown_threshold is {unknown_threshold}; expected a share from 0 to 1.")
    if not 0 <= novel_rate < 1:
        raise SettingsError(f"novel_rate is {novel_rate}; expected a share from 0, below 1.")
    if hierarchy is not None and parents_key is not None:
        raise SettingsError("a label hierarchy is given twice, by --hierarchy and by --parents; leave one out.")
    run = run if isinstance(run, Run) else Run.open(run)
    reference = reference if isinstance(reference, Run) else Run.open(reference)
    begin = time.perf_counter()
    check_same_hasher(run, reference)
    with_parents = hierarchy is not None or parents_key is not None
    if assign == "cell" and with_parents:
        raise SettingsError("--assign cell knows no hierarchies; leave out --hierarchy and --parents, or --assign.")
    codes, names = without_labels(reference, *run_labels(reference, labels, atlas=reference_atlas))
    parents: dict[str, str] | None = None
    if hierarchy is not None:
        parents = read_hierarchy(hierarchy)
    elif parents_key is not None:
        above, above_names = run_labels(reference, parents_key, atlas=reference_atlas)
        parents = parents_from_counts(_pairs(codes, above, len(names), len(above_names)), names, above_names)
        if not parents:
            raise SettingsError(
                f"--parents {parents_key}: no label of obs[{labels!r}] has another value there; name a column of "
                "coarser types."
            )
    novelty = None
    if unknown_threshold > 0 and novel_rate > 0:
        novelty = Novelty.between(reference, codes, len(names), run, novel_rate=novel_rate)
    coarse = run.n_cells > COARSE * run.n_buckets and not with_parents
    by_cell = assign == "cell" or (assign == "auto" and coarse)
    record = {
        "reference": str(reference.path),
        "labels": labels,
        "n_labels": len(names),
        "unlabelled_reference_cells": int(np.count_nonzero(codes < 0)),
        "method": method,
        "n_neighbours": None if method == "discriminant" else n_neighbours,
        "unknown_threshold": unknown_threshold,
        "novel_rate": novel_rate,
        "hierarchy": parents_key if hierarchy is None else str(hierarchy),
    }
    shares_of = reference_shares(reference, codes, len(names), method=method, n_neighbours=n_neighbours)
    columns = [*CELL_COLUMNS]
    if by_cell:
        own_names, label = labels_by_landmarks(run, shares_of, names, unknown_threshold=unknown_threshold)
    else:
        found = shares_of(run.tokens(halves=False))
        own_names, label = _labels_by_bucket(found, names, parents, unknown_threshold)
        columns += [] if found.distance is None else ["label_distance"]
        columns += [] if parents is None else [LABEL_LEVEL.name]
    record["assigned_by"] = "cell" if by_cell else "bucket"
    if parents is not None:
        record["parents"] = parents_above(names, parents)
    reject = unknown_threshold > 0
    return write_labels(run, own_names, label, columns, novelty, reject=reject, record=record, begin=begin)


def _labels_by_bucket(
    found: LabelShares, names: list[str], parents: dict[str, str] | None, unknown_threshold: float
) -> tuple[list[str], LabelCells]:
    """What gives cells the label of their bucket, or of an ancestor that has its share, for `write_labels`."""
    shares, ranked = found.shares, [*names, ""]
    blocks = range(0, len(shares), _BLOCK_BUCKETS)
    top = np.concatenate([np.argsort(-shares[s : s + _BLOCK_BUCKETS], axis=1, kind="stable")[:, :2] for s in blocks])
    confidence = np.take_along_axis(shares, top, axis=1)
    if top.shape[1] == 1:  # one label
        top = np.column_stack([top, np.ones_like(top)])
        confidence = np.column_stack([confidence, np.zeros_like(confidence)])
    best = np.where(confidence[:, 0] < unknown_threshold, -1, top[:, 0]).astype(np.int32)
    own = _Raised.of(best, confidence[:, 0], names, shares, parents, unknown_threshold)
    margin = confidence[:, 0] - confidence[:, 1]

    def label(codes: NDArray[np.uint64], buckets: NDArray[np.int32]) -> Labelled:
        del codes
        columns = {
            "label_margin": margin[buckets],
            "label_best": category_array(ranked, top[buckets, 0]),
            "label_second": category_array(ranked, top[buckets, 1]),
            "label_second_probability": confidence[buckets, 1],
        }
        if found.distance is not None:
            columns["label_distance"] = found.distance[buckets]
        return own.labelled(buckets, columns)

    return own.names, label


@dataclass(frozen=True)
class _Raised:
    """Labels of buckets, some of them of ancestors.

    Attributes
    ----------
    names : list of str
    index : (n_buckets,) integer
        Place of each bucket's label among the names; their number for none.
    confidence : (n_buckets,) float32
    levels : (n_buckets,) int32 or None
    """

    names: list[str]
    index: NDArray[np.integer]
    confidence: NDArray[np.float32]
    levels: NDArray[np.int32] | None

    @classmethod
    def of(
        cls,
        labels: NDArray[np.int32],
        confidence: NDArray[np.floating],
        names: list[str],
        shares: NDArray[np.float32],
        parents: dict[str, str] | None,
        threshold: float,
    ) -> _Raised:
        levels = None
        if parents is not None:
            raised = hierarchical_labels(shares, names, parents, threshold=threshold)
            names, labels, confidence, levels = [*raised.names], raised.labels, raised.confidence, raised.levels
        return cls(names, np.where(labels < 0, len(names), labels), confidence.astype(np.float32), levels)

    def labelled(self, buckets: NDArray[np.int32], columns: dict[str, Any]) -> Labelled:
        columns["label_confidence"] = self.confidence[buckets]
        if self.levels is not None:
            columns[LABEL_LEVEL.name] = self.levels[buckets]
        return Labelled(self.index[buckets], columns)


def _pairs(codes: NDArray[np.int32], above: NDArray[np.int32], n_names: int, n_above: int) -> NDArray[np.int64]:
    """Cells of each label and parent; those without either are left out."""
    both = (codes >= 0) & (above >= 0)
    flat = codes[both].astype(np.int64) * n_above + above[both]
    return np.bincount(flat, minlength=n_names * n_above).reshape(n_names, n_above)
