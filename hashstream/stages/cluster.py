"""Stage `cluster`: group the bucket tokens of a run; every cell inherits its bucket's cluster."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import numpy as np

from hashstream.cluster import cluster_tokens
from hashstream.errors import SettingsError
from hashstream.runtime.provenance import available_threads, peak_rss_bytes
from hashstream.runtime.run import Run, categories


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
    n_clusters: int | None = None,
    method: str = "ward",
    resolution: float | None = None,
    bucket_bits: int | None = None,
    seed: int = 0,
) -> dict[str, Any]:
    """Cluster a run and write the column ``cluster`` of its cells.

    Parameters
    ----------
    n_clusters
        None: chosen from the tokens, without labels.
    method, resolution, bucket_bits, seed
        See `hashstream.cluster.cluster_tokens`.

    Returns
    -------
    dict
        Method, number of clusters, their sizes, and the time it took.

    Raises
    ------
    InputError, SettingsError
    """
    run = run if isinstance(run, Run) else Run.open(run)
    begin = time.perf_counter()
    tokens = run.tokens()
    found = cluster_tokens(
        tokens,
        method=method,
        n_clusters=n_clusters,
        resolution=resolution,
        bucket_bits=bucket_bits,
        seed=seed,
        n_threads=available_threads(),
    )
    sizes = np.bincount(found.labels, weights=tokens.counts, minlength=found.n_clusters).astype(np.int64)
    # Clusters are numbered from the largest to the smallest, as users of scanpy expect.
    rank = np.empty(found.n_clusters, dtype=np.int32)
    rank[np.argsort(-sizes, kind="stable")] = np.arange(found.n_clusters, dtype=np.int32)
    names = [str(i) for i in range(found.n_clusters)]
    record = {
        "method": method,
        "n_clusters": found.n_clusters,
        "chosen_by": found.chosen_by,
        "n_buckets": found.n_points,
        "bucket_bits": found.bucket_bits,
        "sizes": sorted(sizes.tolist(), reverse=True),
        "seed": seed,
        "seconds": round(time.perf_counter() - begin, 3),
        "peak_rss_bytes": peak_rss_bytes(),
    }
    run.set_cell_columns({"cluster": categories(names, rank[found.labels])}, stage="cluster", record=record)
    return record
