"""Stage `evaluate`: compare what a run found with the truth in obs. Nothing is written."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hashstream.annotate import UNKNOWN
from hashstream.annotate.hierarchy import is_above
from hashstream.errors import InputError
from hashstream.metrics import clustering_metrics, label_metrics
from hashstream.runtime.arrow import numbers_of
from hashstream.runtime.run import Run
from hashstream.stages.pairs import Pairs
from hashstream.stages.truth import bucket_pairs, run_labels

#: Columns of labels, each of which is scored where the run has it.
_LABELS = ("label", "label_majority")


def evaluate(
    run: Run | str | Path, truth: str, *, atlas: str | Path | Sequence[str | Path] | None = None
) -> dict[str, Any]:
    """Metrics of the columns that a run has.

    Parameters
    ----------
    run
        A run, or its path.
    truth
        Column of obs with the true types; cells without a value, or with 'unknown', are left out.
    atlas
        Where the atlas is now, if not where it was encoded.

    Returns
    -------
    dict
        ``buckets`` (number and purity), and ``cluster``, ``label`` and ``label_majority`` where the run has them; see
        `hashstream.metrics`. Labels that are ancestors of types, by `annotate` with a hierarchy, count as unknown;
        ``parents`` says how many cells have one, and which share of these is of a type below it.

    Raises
    ------
    InputError
        If the run or the atlas cannot be read, or the column is not there or holds no values.
    """
    run = run if isinstance(run, Run) else Run.open(run)
    atlas = [atlas] if isinstance(atlas, str | Path) else atlas
    codes, names = run_labels(run, truth, atlas=atlas)
    pairs = bucket_pairs(run, codes, len(names))
    n_cells = int(pairs.counts.sum())
    if n_cells == 0:
        raise InputError(f"obs[{truth!r}] has no values for the cells of {run.path}.")
    result: dict[str, Any] = {
        "n_cells": n_cells,
        "truth": truth,
        "buckets": {"n_buckets": run.n_buckets, "bucket_bits": run.bucket_bits, "purity": _purity(pairs)},
    }
    present = run.cell_columns()
    if "cluster" in present:
        result["cluster"] = clustering_metrics(_by_value(run, "cluster", codes, len(names))[0])
    for column in _LABELS:
        if column in present:
            table, found = _by_value(run, column, codes, len(names))
            parents = run.meta["stages"].get("annotate", {}).get("parents", {})
            of_parents, table, found = _without_parents(table, found, names, parents)
            result[column] = {**label_metrics(table, found, names, unknown=UNKNOWN), **of_parents}
            if (labels := {*found} - {UNKNOWN}) and not labels & {*names}:
                result["hint"] = (
                    f"no {column} is a value of obs[{truth!r}]: {_some(sorted(labels))} here, {_some(names)} there; "
                    "rename one"
                )
    if not set(result) & {"cluster", *_LABELS}:
        result["hint"] = f"the run has neither clusters nor labels yet: hashstream cluster {run.path}"
    return result


def _purity(pairs: Pairs) -> float:
    """Share of cells that are of their bucket's most frequent type."""
    begins = np.flatnonzero(np.diff(pairs.first, prepend=-1))
    return float(np.maximum.reduceat(pairs.counts, begins).sum() / pairs.counts.sum())


def _without_parents(
    table: NDArray[np.int64], found: list[str], names: list[str], parents: Mapping[str, str]
) -> tuple[dict[str, Any], NDArray[np.int64], list[str]]:
    """Labels that are ancestors of types, as if they were unknown, and how many cells have one and are below it."""
    above = {*parents.values()} - {*names}
    rows = [i for i, name in enumerate(found) if name in above]
    if not rows:
        return {}, table, found
    right = sum(int(table[i, j]) for i in rows for j, name in enumerate(names) if is_above(found[i], name, parents))
    n_cells = int(table[rows].sum())
    said = {"parents": {"cells": n_cells, "right": round(right / n_cells, 6) if n_cells else None}}
    renamed = [UNKNOWN if i in rows else name for i, name in enumerate(found)]
    kept = [*dict.fromkeys(renamed)]
    merged = np.zeros((len(kept), table.shape[1]), dtype=np.int64)
    np.add.at(merged, [kept.index(name) for name in renamed], table)
    return said, merged, kept


def _some(names: Sequence[str]) -> str:
    return ", ".join(map(repr, names[:3])) or "none"


def _by_value(run: Run, column: str, truth: NDArray[np.int32], n_types: int) -> tuple[NDArray[np.int64], list[str]]:
    """Contingency of a column of cells.parquet with the truth; cells without truth are left out."""
    table, names = np.zeros((0, n_types), dtype=np.int64), list[str]()
    start = 0
    for batch in run.iter_cells([column]):
        values = batch.column(0)
        if not names:
            names = values.dictionary.to_pylist()
            table = np.zeros((len(names), n_types), dtype=np.int64)
        types = truth[start : start + len(values)]
        known = types >= 0
        flat = numbers_of(values.indices)[known].astype(np.int64) * n_types + types[known]
        table += np.bincount(flat, minlength=table.size).reshape(table.shape)
        start += len(values)
    return table, names
