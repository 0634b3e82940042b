"""Stage `annotate`: label the cells of a run from a labelled reference run."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hashstream.annotate import Vote, vote_labels
from hashstream.annotate.hierarchy import hierarchical_labels, parents_from_counts, read_hierarchy
from hashstream.errors import InputError, SettingsError
from hashstream.runtime.arrow import category_array
from hashstream.runtime.provenance import available_threads
from hashstream.runtime.run import Run
from hashstream.runtime.schema import LABEL_LEVEL
from hashstream.stages.annotate_cells import CELL_COLUMNS, labels_by_code
from hashstream.stages.labels import Labelled, Novelty, write_labels
from hashstream.stages.truth import bucket_counts, run_labels

BUCKET_COLUMNS = ("label_confidence", "label_distance", "label_best")
ASSIGNMENTS = ("auto", "bucket", "cell")
#: Cells a bucket above which their own codes say more.
COARSE = 16


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
) -> dict[str, Any]:
    """Label a run by a labelled reference run, and write ``label`` and its confidence for every cell.

    The nearest reference buckets vote for a bucket's label; in a large atlas each cell then gets the label that its own
    whole code fits best.

    Parameters
    ----------
    reference
        Run of a labelled atlas, encoded with the same Hasher.
    labels
        Column of the reference's obs; cells without a label, or of the label 'unknown', do not vote.
    n_neighbours, unknown_threshold
        See `hashstream.annotate.vote_labels`.
    reference_atlas
        Where the reference's atlas is now, if not where it was encoded.
    hierarchy, parents_key
        File of a label hierarchy (see `hashstream.annotate.hierarchy.read_hierarchy`), or the column of the
        reference's obs with the parent of each cell's label. Where no label has the votes that it needs, the nearest
        ancestor gets the bucket that has them together with its other children. ``label_level`` says how far up it is.
    assign
        ``bucket``: cells have their bucket's label. ``cell``: from there each goes by its own code
        (`hashstream.stages.annotate_cells`); `unknown_threshold` is then a probability, and there are no hierarchies.
        ``auto``: by cell where the run has more than 16 cells a bucket and no hierarchy is given.
    novel_rate
        Cells that look like no type of the reference are 'unknown', too (`hashstream.annotate.novelty`): those that do
        so as little as this share of the reference's own cells, batches aside. 0, or an `unknown_threshold` of 0: none.

    Raises
    ------
    InputError
        If the hashers differ, the reference has no labels, or the hierarchy has none of them.
    SettingsError
        If both kinds of hierarchy are given, or one with ``cell``; or a rate that is no share.
    """
    if assign not in ASSIGNMENTS:
        raise SettingsError(f"--assign is {assign!r}; expected one of {', '.join(ASSIGNMENTS)}.")
    if not 0 <= novel_rate < 1:
        raise SettingsError(f"novel_rate is {novel_rate}; expected a share from 0, below 1.")
    if hierarchy is not None and parents_key is not None:
        raise SettingsError("a label hierarchy is given twice, by --hierarchy and by --parents; leave one out.")
    run = run if isinstance(run, Run) else Run.open(run)
    reference = reference if isinstance(reference, Run) else Run.open(reference)
    begin = time.perf_counter()
    ours, theirs = (run.comparable_fingerprint, reference.meta["hasher"]["fingerprint"])
    if ours != theirs:
        raise InputError(
            f"{run.path} and {reference.path} were encoded with different hashers ({ours[:12]} and {theirs[:12]}), so "
            f"their codes cannot be compared. Encode the query with `--hasher {reference.path}/hasher`."
        )
    with_parents = hierarchy is not None or parents_key is not None
    if assign == "cell" and with_parents:
        raise SettingsError("--assign cell knows no hierarchies; leave out --hierarchy and --parents, or --assign.")
    codes, names = run_labels(reference, labels, atlas=reference_atlas)
    counts = bucket_counts(reference, codes, len(names))
    parents: dict[str, str] | None = None
    if hierarchy is not None:
        parents = read_hierarchy(hierarchy)
    elif parents_key is not None:
        above, above_names = run_labels(reference, parents_key, atlas=reference_atlas)
        parents = parents_from_counts(_pairs(codes, above, len(names), len(above_names)), names, above_names)
    vote = vote_labels(
        run.tokens(halves=False),
        reference.tokens(halves=False),
        counts,
        n_neighbours=n_neighbours,
        unknown_threshold=unknown_threshold,
        keep_shares=parents is not None,
        n_threads=available_threads(),
    )
    novelty = None
    if unknown_threshold > 0 and novel_rate > 0:
        novelty = Novelty.between(reference, codes, len(names), run, novel_rate=novel_rate)
    by_cell = assign == "cell" or (assign == "auto" and run.n_cells > COARSE * run.n_buckets and not with_parents)
    by_cell &= bool((vote.labels >= 0).any())
    record = {
        "reference": str(reference.path),
        "labels": labels,
        "n_labels": len(names),
        "unlabelled_reference_cells": int(np.count_nonzero(codes < 0)),
        "n_neighbours": n_neighbours,
        "unknown_threshold": unknown_threshold,
        "novel_rate": novel_rate,
        "hierarchy": parents_key if hierarchy is None else str(hierarchy),
        "assigned_by": "cell" if by_cell else "bucket",
    }
    columns: tuple[str, ...]
    if by_cell:
        columns = CELL_COLUMNS
        own_names, label = labels_by_code(run, vote.labels, names, unknown_threshold=unknown_threshold)
    else:
        columns = BUCKET_COLUMNS if parents is None else (*BUCKET_COLUMNS, LABEL_LEVEL.name)
        own_names, label = _labels_by_vote(vote, names, parents, unknown_threshold)
    return write_labels(run, own_names, label, columns, novelty, record=record, begin=begin)


def _labels_by_vote(
    vote: Vote, names: list[str], parents: dict[str, str] | None, unknown_threshold: float
) -> tuple[list[str], Callable[[NDArray[np.uint64], NDArray[np.int32]], Labelled]]:
    """What gives cells the label of their bucket, or of an ancestor that has the votes, for `write_labels`."""
    all_names, found, confidence, levels = names, vote.labels, vote.confidence, None
    if parents is not None and vote.shares is not None:
        raised = hierarchical_labels(vote.shares, names, parents, threshold=unknown_threshold)
        all_names, found, confidence, levels = [*raised.names], raised.labels, raised.confidence, raised.levels
    index = np.where(found < 0, len(all_names), found)
    confidence, distance = confidence.astype(np.float32), vote.distance.astype(np.float32)

    def label(codes: NDArray[np.uint64], buckets: NDArray[np.int32]) -> Labelled:
        del codes
        columns = {
            "label_confidence": confidence[buckets],
            "label_distance": distance[buckets],
            "label_best": category_array(names, vote.best[buckets]),
        }
        if levels is not None:
            columns[LABEL_LEVEL.name] = levels[buckets]
        return Labelled(index[buckets], columns)

    return all_names, label


def _pairs(codes: NDArray[np.int32], above: NDArray[np.int32], n_names: int, n_above: int) -> NDArray[np.int64]:
    """Cells of each label and parent; those without either are left out."""
    both = (codes >= 0) & (above >= 0)
    flat = codes[both].astype(np.int64) * n_above + above[both]
    return np.bincount(flat, minlength=n_names * n_above).reshape(n_names, n_above)
