"""Stage `evaluate`: compare what a run found with the truth in obs. Nothing is written."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hashstream.annotate import UNKNOWN
from hashstream.errors import InputError
from hashstream.metrics import clustering_metrics, label_metrics, purity
from hashstream.runtime.run import Run
from hashstream.stages.truth import bucket_counts, run_column


def evaluate(run: Run, truth: str, *, atlas: Sequence[str | Path] | None = None) -> dict[str, Any]:
    """Metrics of the columns that the run has.

    Parameters
    ----------
    truth
        Column of obs with the true types; cells without a value are left out.
    atlas
        Where the atlas is now, if not where it was encoded.

    Returns
    -------
    dict
        ``buckets`` (number and purity), and ``cluster`` and ``label`` where the run has them.
    """
    codes, names = run_column(run, truth, atlas=atlas)
    counts = bucket_counts(run, codes, len(names))
    n_cells = int(counts.sum())
    if n_cells == 0:
        raise InputError(f"obs[{truth!r}] has no values for the cells of {run.path}.")
    result: dict[str, Any] = {
        "n_cells": n_cells,
        "truth": truth,
        "buckets": {"n_buckets": run.n_buckets, "bucket_bits": run.bucket_bits, "purity": purity(counts)},
    }
    present = run.cell_columns()
    if "cluster" in present:
        result["cluster"] = clustering_metrics(_by_value(run, "cluster", counts)[0])
    if "label" in present:
        table, found = _by_value(run, "label", counts)
        result["label"] = label_metrics(table, found, names, unknown=UNKNOWN)
    if len(result) == 3:
        result["hint"] = f"the run has neither clusters nor labels yet: hashstream cluster {run.path}"
    return result


def _by_value(run: Run, column: str, counts: NDArray[np.int64]) -> tuple[NDArray[np.int64], list[str]]:
    """Contingency of a column of cells.parquet with the truth; the column is constant within a bucket."""
    of_bucket = np.full(run.n_buckets, -1, dtype=np.int64)
    names: list[str] = []
    for batch in run.iter_cells(["bucket", column]):
        values = batch.column(1)
        names = values.dictionary.to_pylist()
        of_bucket[batch.column(0).to_numpy()] = values.indices.to_numpy()
    table = np.zeros((len(names), counts.shape[1]), dtype=np.int64)
    seen = of_bucket >= 0
    np.add.at(table, of_bucket[seen], counts[seen])
    return table, names
