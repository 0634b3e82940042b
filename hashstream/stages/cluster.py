"""Stage `cluster`: group the bucket tokens of a run; cells inherit their bucket's cluster, or start from it."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from hashstream.buckets import Tokens
from hashstream.cluster import UNSURE, UNSURE_PROBABILITY, TokenClusters, TransformerSettings, cluster_tokens
from hashstream.cluster.partition import CELLS_PER_BUCKET, MOST_POINTS
from hashstream.errors import SettingsError
from hashstream.runtime.arrow import category_array, number_array
from hashstream.runtime.events import ProgressListener, Silent
from hashstream.runtime.provenance import available_threads, peak_rss_bytes
from hashstream.runtime.run import Run
from hashstream.runtime.schema import EMPTY_CLUSTER
from hashstream.stages.cluster_cells import CellClusters
from hashstream.stages.empty_cells import ColumnsOf, clusters_but_empty, counted_tokens, empty_cells
from hashstream.stages.pairs import PairCounter, Pairs

ASSIGNMENTS = ("auto", "bucket", "cell")
#: Pairs of clusters in the record, of those between which most cells are torn.
MIXED_LISTED = 10
_COLUMNS = ["cluster", "cluster_confidence"]


def parse_n_clusters(text: str | int) -> int | None:
    """A number of clusters, or None for ``auto``.

    Raises
    ------
    SettingsError
        If it is neither.
    """
    if str(text) == "auto":
        return None
    try:
        number = int(text)
    except ValueError as error:
        raise SettingsError(f"--n-clusters is {text!r}; expected a number or 'auto'.") from error
    if number < 1:
        raise SettingsError(f"--n-clusters is {number}; expected at least 1.")
    return number


def cluster(
    run: Run | str | Path,
    *,
    n_clusters: int | str | None = None,
    method: str = "auto",
    resolution: float | None = None,
    bucket_bits: int | None = None,
    assign: str = "auto",
    batch_key: str | None = None,
    transformer: TransformerSettings | None = None,
    atlas: Sequence[str | Path] | None = None,
    max_memory: str | int | None = None,
    seed: int = 0,
    progress: ProgressListener | None = None,
) -> dict[str, Any]:
    """Cluster a run and write the columns ``cluster`` and ``cluster_confidence`` of its cells.

    Parameters
    ----------
    n_clusters
        None or ``auto``: chosen from the tokens, without labels.
    method
        See `hashstream.cluster.cluster_tokens`. ``auto``: ``leiden`` where the number of clusters is not given, unless
        batches are integrated, and wherever a resolution is given; ``ward`` otherwise.
    resolution, bucket_bits, transformer, seed
        See `hashstream.cluster.cluster_tokens`.
    assign
        ``bucket``: cells have their bucket's cluster. ``cell``: each goes to the cluster that its whole code fits best
        (`hashstream.cluster.cells`). ``auto``: by cell where the atlas has more cells than buckets of three could be
        clustered (49,152), unless a Transformer has moved the buckets, the prefix is given, or batches are integrated.
        Such an atlas's clusters by cell are those of its landmarks (`hashstream.cluster.landmarks`), not of its coarse
        buckets, and so are Leiden's in any atlas.
    batch_key
        Column of obs with the batch of each cell: tokens are split by batch (`hashstream.stages.batches`, one more
        pass over the atlas the first time) and integrated before they are clustered.
    atlas
        Where the atlas is now, if not where it was encoded; for `batch_key`.
    max_memory
        Peak resident size that the pass over the atlas for `batch_key` keeps to; 1 GiB by default.

    Returns
    -------
    dict
        Method, number of clusters, their sizes, warnings, the time it took, and ``mixed``: the share of cells that are
        torn between two clusters (`hashstream.cluster.confidence`), and between which most are.

    Raises
    ------
    InputError, SettingsError, TrainingError
    """
    n_clusters = parse_n_clusters("auto" if n_clusters is None else n_clusters)
    if assign not in ASSIGNMENTS:
        raise SettingsError(f"--assign is {assign!r}; expected one of {', '.join(ASSIGNMENTS)}.")
    if assign == "cell" and batch_key is not None:
        raise SettingsError(
            "--assign cell and --batch-key exclude each other: the codes of cells differ by batch, which integrated "
            "buckets do not."
        )
    if resolution is not None and not 0 < resolution < math.inf:
        raise SettingsError(f"resolution is {resolution}; expected a positive number.")
    run, progress = run if isinstance(run, Run) else Run.open(run), progress or Silent()
    begin = time.perf_counter()
    coarse = run.n_cells > MOST_POINTS * CELLS_PER_BUCKET and bucket_bits is None and batch_key is None
    by_cell = assign == "cell" or (assign == "auto" and coarse and method != "transformer")
    if method == "auto":
        unknown = n_clusters is None and batch_key is None
        method = "leiden" if unknown or resolution is not None else "ward"
    if transformer is not None and method != "transformer":
        raise SettingsError(f"settings of the transformer are given, but the method is {method}; leave one out.")
    of_landmarks = coarse if method != "leiden" else bucket_bits is None
    if by_cell and of_landmarks and method != "transformer":
        return _cluster_landmarks(
            run, method, progress, resolution=resolution, n_clusters=n_clusters, seed=seed, begin=begin
        )
    names: list[str] | None = None
    if batch_key is None:
        tokens = run.tokens(halves=method == "transformer")
    else:
        from hashstream.stages.batches import batch_tokens, token_of_cell  # with all that reads an atlas

        tokens, batch_of_cell, names = batch_tokens(
            run, batch_key, atlas=atlas, max_memory=max_memory, progress=progress
        )
    all_tokens, row_of = tokens, None
    if batch_key is not None:
        token_rows = token_of_cell(run, tokens, batch_of_cell)

        def row_of(cells: slice, buckets: NDArray[np.int32]) -> NDArray[np.int32]:
            return token_rows(cells)

    tokens, kept = counted_tokens(run, all_tokens, row_of)
    found = _with_progress(
        tokens,
        progress,
        method=method,
        n_clusters=n_clusters,
        resolution=resolution,
        bucket_bits=bucket_bits,
        transformer=transformer,
        seed=seed,
        n_threads=available_threads(),
        batch_names=names,
    )
    for warning in found.warnings:
        progress.note(f"warning: {warning}")
    sizes = np.bincount(found.labels, weights=tokens.counts, minlength=found.n_clusters).astype(np.int64)
    # Clusters are numbered from the largest to the smallest, as users of scanpy expect.
    rank = np.empty(found.n_clusters, dtype=np.int32)
    rank[np.argsort(-sizes, kind="stable")] = np.arange(found.n_clusters, dtype=np.int32)
    labels = rank[found.labels]
    cells: CellClusters | None = None
    if found.n_clusters > 1 and by_cell:
        cells = CellClusters.of_buckets(run, _spread(labels, kept, all_tokens.n_tokens), n_threads=available_threads())
        sizes = cells.sizes
    if cells is None:
        torn = found.confidence < UNSURE
        counter = PairCounter(found.n_clusters)
        counter.add(labels[torn], rank[found.other[torn]], tokens.counts[torn])
        mixed = _mixed(UNSURE, counter.pairs(), int(sizes.sum()))
    else:
        mixed = _mixed(UNSURE_PROBABILITY, cells.unsure, int(sizes.sum()))
    record = {
        "method": method,
        "n_clusters": len(sizes),
        "assigned_by": "bucket" if cells is None else "cell",
        "cells_moved": 0 if cells is None else cells.moved,
        "chosen_by": found.chosen_by,
        "n_buckets": found.n_points,
        "bucket_bits": found.bucket_bits,
        "batch_key": batch_key,
        "sizes": sorted(sizes.tolist(), reverse=True),
        "mixed": mixed,
        "warnings": list(found.warnings),
        "seed": seed,
        "seconds": round(time.perf_counter() - begin, 3),
        "peak_rss_bytes": peak_rss_bytes(),
    }
    if cells is not None:
        return _written(run, cells.columns, record, progress)
    values = {
        "cluster": category_array(
            [str(i) for i in range(found.n_clusters)], _spread(labels, kept, all_tokens.n_tokens)
        ),
        "cluster_confidence": number_array(_spread(found.confidence, kept, all_tokens.n_tokens)),
    }
    if row_of is None and not run.has_empty_cells:
        return run.set_bucket_columns(values, stage="cluster", record=record).stage_record("cluster")

    def look_up(cells: slice, buckets: NDArray[np.int32]) -> dict[str, pa.Array]:
        rows = number_array(buckets if row_of is None else row_of(cells, buckets))
        return {name: column.take(rows) for name, column in values.items()}

    return _written(run, look_up, record, progress)


def _spread(values: NDArray[Any], kept: NDArray[np.int64], n: int) -> NDArray[Any]:
    """Values of the tokens that were clustered, for all: 0 for those of cells without counts alone."""
    spread = np.zeros(n, values.dtype)
    spread[kept] = values
    return spread


def _written(run: Run, columns_of: ColumnsOf, record: dict[str, Any], progress: ProgressListener) -> dict[str, Any]:
    """Write the columns of cells; gives the record."""
    if run.has_empty_cells:
        n_empty = int(np.count_nonzero(empty_cells(run)))
        progress.note(f"{n_empty:,} cells have no counts: they are in no cluster, and called {EMPTY_CLUSTER!r}")
        record = {**record, "cells_without_counts": n_empty}
    columns = clusters_but_empty(run, columns_of)
    return run.set_cell_columns(_COLUMNS, columns, stage="cluster", record=record).stage_record("cluster")


def _cluster_landmarks(
    run: Run,
    method: str,
    progress: ProgressListener,
    *,
    resolution: float | None,
    n_clusters: int | None,
    seed: int,
    begin: float,
) -> dict[str, Any]:
    """`cluster` by clusters of landmarks."""
    cells, chosen_by, n_landmarks = CellClusters.of_landmarks(
        run,
        method=method,
        resolution=resolution,
        n_clusters=n_clusters,
        seed=seed,
        n_threads=available_threads(),
    )
    n_empty = int(np.count_nonzero(empty_cells(run))) if run.has_empty_cells else 0
    sizes = [run.n_cells - n_empty] if cells is None else cells.sizes.tolist()
    record = {
        "method": method,
        "n_clusters": len(sizes),
        "assigned_by": "cell",
        "cells_moved": None,
        "chosen_by": chosen_by,
        "n_landmarks": n_landmarks,
        "bucket_bits": run.n_bits,
        "batch_key": None,
        "sizes": sizes,
        "mixed": _mixed(UNSURE_PROBABILITY, PairCounter(1).pairs() if cells is None else cells.unsure, sum(sizes) or 1),
        "warnings": [],
        "seed": seed,
        "seconds": round(time.perf_counter() - begin, 3),
        "peak_rss_bytes": peak_rss_bytes(),
    }

    def one_cluster(rows: slice, buckets: NDArray[np.int32]) -> dict[str, pa.Array]:
        labels = np.zeros(len(buckets), np.int32)
        return {
            "cluster": category_array(["0"], labels),
            "cluster_confidence": number_array(np.ones(len(buckets), np.float32)),
        }

    return _written(run, one_cluster if cells is None else cells.columns, record, progress)


def _with_progress(tokens: Tokens, progress: ProgressListener, **options: Any) -> TokenClusters:
    """`cluster_tokens`, the steps of a Transformer shown as they are done."""
    shown = 0

    def show(done: int, total: int) -> None:
        nonlocal shown
        if shown == 0:
            progress.start("learn tokens", total, "steps")
        progress.advance(done - shown)
        shown = done

    try:
        return cluster_tokens(tokens, progress=show, **options)
    finally:
        if shown:
            progress.finish()


def _mixed(below: float, torn: Pairs, n_cells: int) -> dict[str, Any]:
    """The share of cells that are torn between two clusters, and the pairs between which most are.

    Parameters
    ----------
    torn : Pairs
        Cells of each cluster torn between it and another.
    """
    either = PairCounter(int(torn.first.max(initial=0)) + int(torn.second.max(initial=0)) + 1)
    either.add(np.minimum(torn.first, torn.second), np.maximum(torn.first, torn.second), torn.counts)
    low, high, counts = either.pairs()
    most = np.argsort(-counts, kind="stable")[:MIXED_LISTED]
    return {
        "confidence_below": below,
        "share_of_cells": round(float(torn.counts.sum() / n_cells), 4),
        "between": [{"clusters": [str(low[i]), str(high[i])], "cells": int(counts[i])} for i in most],
    }
