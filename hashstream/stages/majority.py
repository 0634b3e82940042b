"""Stage `annotate --majority`: one more label for every cell, that of most cells in its cluster."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from hashstream.annotate import UNKNOWN
from hashstream.annotate.consensus import consensus_labels
from hashstream.runtime.arrow import category_array, numbers_of
from hashstream.runtime.files import new_file
from hashstream.runtime.parquet import PARQUET_OPTIONS
from hashstream.runtime.run import Run
from hashstream.runtime.run_stages import MAJORITY_FREQUENCIES
from hashstream.runtime.schema import LABEL_MAJORITY


def majority_labels(run: Run, *, min_share: float = 0.0) -> dict[str, Any]:
    """Give each cell the label of most cells in its cluster, as the column ``label_majority``.

    The cells of each cluster and label are kept in the run as ``label-frequencies.parquet``: columns cluster, label,
    cells (int64) and share (float64, of the cluster's cells).

    Parameters
    ----------
    run
        With clusters and labels.
    min_share
        Least share of a cluster's cells that must have the label, or its cells become 'unknown'.

    Returns
    -------
    dict
        ``clusters``, ``min_share``, ``changed`` (cells whose label and majority differ) and ``cells`` of each label.

    Raises
    ------
    InputError
        If the run has no clusters or no labels.
    SettingsError
        If `min_share` is not from 0 to 1.
    """
    run.require("cluster", "label")
    found = _frequencies(run)
    clusters = sorted(found["cluster"].unique())
    labels = [name for name in sorted(found["label"].unique()) if name != UNKNOWN]
    vote = consensus_labels(
        pd.Index(clusters).get_indexer(found["cluster"]),
        pd.Index(labels).get_indexer(found["label"]),  # -1 for 'unknown'
        found["cells"].to_numpy(),
        n_clusters=len(clusters),
        n_labels=len(labels),
        min_share=min_share,
    )
    names = [*labels, UNKNOWN]
    winner = np.where(vote.labels < 0, len(labels), vote.labels).astype(np.int32)
    of_cluster = dict(zip(clusters, winner.tolist(), strict=True))
    majority = np.bincount(winner, weights=vote.counts.sum(axis=1), minlength=len(names)).astype(np.int64)
    record = {
        "clusters": len(clusters),
        "min_share": min_share,
        "changed": int(vote.counts.sum() - vote.counts[np.arange(len(clusters)), winner].sum()),
        "cells": {name: int(n) for name, n in zip(names, majority, strict=True) if n},
    }
    blocks = run.iter_cells(["cluster"])

    def look_up(rows: slice, buckets: NDArray[np.int32]) -> dict[str, pa.Array]:
        del rows, buckets  # both passes give the same blocks
        own = next(blocks).column(0)
        number = np.array([of_cluster.get(name, len(labels)) for name in own.dictionary.to_pylist()], dtype=np.int32)
        return {LABEL_MAJORITY.name: category_array(names, number[numbers_of(own.indices)])}

    with _frequencies_file(run, found):
        run.set_cell_columns(
            [LABEL_MAJORITY.name], look_up, stage="majority", record=record, made_of=["cluster", "label"]
        )
    return record


def _frequencies(run: Run) -> pd.DataFrame:
    """Cells of each cluster and label that occur together, sorted: columns cluster, label and cells."""
    keys = ["cluster", "label"]
    parts = []
    for batch in run.iter_cells(keys):
        table = pa.table([column.cast(pa.string()) for column in batch.columns], names=keys)
        parts.append(table.group_by(keys).aggregate([([], "count_all")]).to_pandas())
    found = pd.concat(parts).groupby(keys, as_index=False)["count_all"].sum()
    return found.rename(columns={"count_all": "cells"})


@contextmanager
def _frequencies_file(run: Run, found: pd.DataFrame) -> Iterator[None]:
    """The table of frequencies, which is put in its place once the column stands."""
    share = found["cells"] / found.groupby("cluster")["cells"].transform("sum")
    with new_file(run.path / MAJORITY_FREQUENCIES) as aside:
        pq.write_table(pa.Table.from_pandas(found.assign(share=share), preserve_index=False), aside, **PARQUET_OPTIONS)
        yield
