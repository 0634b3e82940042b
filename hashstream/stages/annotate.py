"""Stage `annotate`: label the cells of a run from a labelled reference run."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hashstream.annotate import UNKNOWN, vote_labels
from hashstream.annotate.hierarchy import hierarchical_labels, parents_from_counts, read_hierarchy
from hashstream.errors import InputError, SettingsError
from hashstream.runtime.arrow import category_array, number_array
from hashstream.runtime.provenance import available_threads, peak_rss_bytes
from hashstream.runtime.run import Run
from hashstream.runtime.schema import LABEL_LEVEL, LABELS
from hashstream.stages.annotate_cells import annotate_cells
from hashstream.stages.truth import bucket_counts, run_column

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
) -> dict[str, Any]:
    """Label a run by a labelled reference run, and write ``label`` and its confidence for every cell.

    The nearest reference buckets vote for a bucket's label; in a large atlas each cell then gets the label that its own
    whole code fits best.

    Parameters
    ----------
    reference
        Run of a labelled atlas, encoded with the same Hasher.
    labels
        Column of the reference's obs; cells without a label do not vote.
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

    Raises
    ------
    InputError
        If the hashers differ, the reference has no labels, or the hierarchy has none of them.
    SettingsError
        If both kinds of hierarchy are given, or one with ``cell``.
    """
    if assign not in ASSIGNMENTS:
        raise SettingsError(f"--assign is {assign!r}; expected one of {', '.join(ASSIGNMENTS)}.")
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
    codes, names = run_column(reference, labels, atlas=reference_atlas)
    counts = bucket_counts(reference, codes, len(names))
    parents: dict[str, str] | None = None
    if hierarchy is not None:
        parents = read_hierarchy(hierarchy)
    elif parents_key is not None:
        above, above_names = run_column(reference, parents_key, atlas=reference_atlas)
        parents = parents_from_counts(_pairs(codes, above, len(names), len(above_names)), names, above_names)
    tokens = run.tokens(halves=False)
    vote = vote_labels(
        tokens,
        reference.tokens(halves=False),
        counts,
        n_neighbours=n_neighbours,
        unknown_threshold=unknown_threshold,
        keep_shares=parents is not None,
        n_threads=available_threads(),
    )
    record = {
        "reference": str(reference.path),
        "labels": labels,
        "n_labels": len(names),
        "n_neighbours": n_neighbours,
        "unknown_threshold": unknown_threshold,
        "hierarchy": parents_key if hierarchy is None else str(hierarchy),
    }
    coarse = run.n_cells > COARSE * run.n_buckets and not with_parents
    if (assign == "cell" or (assign == "auto" and coarse)) and (vote.labels >= 0).any():
        return annotate_cells(run, vote.labels, names, unknown_threshold=unknown_threshold, record=record, begin=begin)
    all_names, found, confidence, levels = [*names], vote.labels, vote.confidence, None
    if parents is not None and vote.shares is not None:
        raised = hierarchical_labels(vote.shares, names, parents, threshold=unknown_threshold)
        all_names, found, confidence, levels = [*raised.names], raised.labels, raised.confidence, raised.levels
    index = np.where(found < 0, len(all_names), found)
    all_names.append(UNKNOWN)
    cells = np.bincount(index, weights=tokens.counts, minlength=len(all_names)).astype(np.int64)
    record |= {
        "assigned_by": "bucket",
        "cells": {name: int(n) for name, n in zip(all_names, cells, strict=True) if n},
        "seconds": round(time.perf_counter() - begin, 3),
        "peak_rss_bytes": peak_rss_bytes(),
    }
    columns = {
        "label": category_array(all_names, index),
        "label_confidence": number_array(confidence.astype(np.float32)),
        "label_distance": number_array(vote.distance.astype(np.float32)),
    }
    if levels is not None:
        columns[LABEL_LEVEL.name] = number_array(levels)
    stale = [column.name for column in LABELS if column.name not in columns]
    run.set_bucket_columns(columns, stage="annotate", record=record, without=stale)
    return record


def _pairs(codes: NDArray[np.int32], above: NDArray[np.int32], n_names: int, n_above: int) -> NDArray[np.int64]:
    """Cells of each label and parent; those without either are left out."""
    both = (codes >= 0) & (above >= 0)
    flat = codes[both].astype(np.int64) * n_above + above[both]
    return np.bincount(flat, minlength=n_names * n_above).reshape(n_names, n_above)
