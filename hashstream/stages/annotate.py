"""Stage `annotate`: label the cells of a run from a labelled reference run."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from hashstream.annotate import UNKNOWN, vote_labels
from hashstream.errors import InputError
from hashstream.runtime.provenance import peak_rss_bytes
from hashstream.runtime.run import Run, categories
from hashstream.runtime.schema import LABELS
from hashstream.stages.truth import bucket_counts, run_column


def annotate(
    run: Run | str | Path,
    *,
    reference: Run | str | Path,
    labels: str,
    n_neighbours: int = 15,
    unknown_threshold: float = 0.5,
    reference_atlas: Sequence[str | Path] | None = None,
) -> dict[str, Any]:
    """Label a run by the nearest reference buckets, and write ``label`` and its confidence for every cell.

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

    Raises
    ------
    InputError
        If the hashers differ, or the reference has no labels.
    """
    run = run if isinstance(run, Run) else Run.open(run)
    reference = reference if isinstance(reference, Run) else Run.open(reference)
    begin = time.perf_counter()
    ours, theirs = (r.meta["hasher"]["fingerprint"] for r in (run, reference))
    if ours != theirs:
        raise InputError(
            f"{run.path} and {reference.path} were encoded with different hashers ({ours[:12]} and {theirs[:12]}), so "
            f"their codes cannot be compared. Encode the query with `--hasher {reference.path}/hasher`."
        )
    codes, names = run_column(reference, labels, atlas=reference_atlas)
    counts = bucket_counts(reference, codes, len(names))
    vote = vote_labels(
        run.tokens(),
        reference.tokens(),
        counts,
        n_neighbours=n_neighbours,
        unknown_threshold=unknown_threshold,
    )
    all_names = [*names, UNKNOWN]
    index = np.where(vote.labels < 0, len(names), vote.labels)
    cells = np.bincount(index, weights=run.tokens().counts, minlength=len(all_names)).astype(np.int64)
    record = {
        "reference": str(reference.path),
        "labels": labels,
        "n_labels": len(names),
        "n_neighbours": n_neighbours,
        "unknown_threshold": unknown_threshold,
        "cells": {name: int(n) for name, n in zip(all_names, cells, strict=True) if n},
        "seconds": round(time.perf_counter() - begin, 3),
        "peak_rss_bytes": peak_rss_bytes(),
    }
    columns = {
        "label": categories(all_names, index),
        "label_confidence": pa.array(vote.confidence.astype(np.float32)),
        "label_distance": pa.array(vote.distance.astype(np.float32)),
    }
    run.set_bucket_columns(columns, stage="annotate", record=record, without=[c.name for c in LABELS])
    return record
