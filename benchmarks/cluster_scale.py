"""Clusters at a million cells: time, memory and agreement, each command a fresh process.

``python -m benchmarks.cluster_scale [--cells 1000000] [--ratio-cells 500000,2000000] [--harmony] [--json PATH]``.

An atlas of 54 types and 8 batches is simulated with types that a plain recipe can tell apart: checked on 50,000 of
its cells (scanpy's recipe, 50 components, k-means). ``--harmony`` also times Harmony and k-means on all cells beside
``cluster --batch-key``; it takes minutes and gigabytes.
"""

from __future__ import annotations

import argparse
import json
import time
import warnings
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks._commands import hashstream
from benchmarks._quality_page import machine
from benchmarks._simulated import cache_folder
from benchmarks.quality import cell_embedding, contingency
from hashstream.atlas import open_atlas, plan_ranges, stream_chunks
from hashstream.atlas.simulate import simulate
from hashstream.metrics import clustering_metrics
from hashstream.runtime.run import Run

GENES, TYPES, BATCHES, NNZ, EFFECT = 20_000, 54, 8, 600, 8.0
SUBSAMPLE = 50_000
TRUTH, BATCH = "cell_type", "batch"


def atlas_of(cells: int) -> Path:
    """The simulated atlas; made if it is not there yet."""
    path = cache_folder() / f"clear-{cells}.zarr"
    if not path.exists():
        simulate(
            path,
            n_cells=cells,
            n_genes=GENES,
            n_types=TYPES,
            n_batches=BATCHES,
            nnz_per_cell=NNZ,
            effect=EFFECT,
            seed=0,
        )
    return path


def call(*words: object) -> dict[str, Any]:
    """A command of hashstream in a fresh process: what it prints, its seconds from start to end, and its peak MiB."""
    found = hashstream(*words)
    return {**found.output, "wall_seconds": round(found.wall_s, 2), "peak_rss_mib": round(found.peak_rss_mib)}


def clusters(run: Path, method: str, *options: object) -> dict[str, Any]:
    found = call("cluster", run, "--n-clusters", TYPES, "--method", method, *options)
    scores = call("evaluate", run, "--truth", TRUTH)["cluster"]
    return {
        "wall_seconds": found["wall_seconds"], "seconds": found["seconds"],
        "n_tokens": found.get("n_buckets", found.get("n_landmarks")),
        "peak_rss_mib": found["peak_rss_mib"], "ari": scores["ari"], "nmi": scores["nmi"],
    }  # fmt: skip


def subsample_kmeans(path: Path) -> float:
    """ARI of k-means on 50 components of 50,000 cells, in blocks drawn over the whole atlas."""
    import anndata
    import scanpy as sc
    from scipy import sparse
    from sklearn.cluster import KMeans

    atlas = open_atlas(path)
    truth = np.unique(atlas.obs_column(TRUTH).astype(str), return_inverse=True)[1]
    ranges = list(plan_ranges(atlas, chunk_rows=1_000))
    rng = np.random.default_rng(0)
    chosen = sorted(rng.permutation(len(ranges))[: -(-SUBSAMPLE // 1_000)])
    parts, rows = [], []
    for _, chunk in stream_chunks(atlas, [ranges[i] for i in chosen]):
        csr = (chunk.data.astype(np.float32), chunk.indices.copy(), chunk.indptr.copy())
        parts.append(sparse.csr_matrix(csr, shape=(chunk.n_rows, GENES)))
        rows.append(np.arange(chunk.start, chunk.stop))
    adata = anndata.AnnData(sparse.vstack(parts, format="csr"))
    sc.pp.normalize_total(adata, target_sum=1e4)
    sc.pp.log1p(adata)
    sc.pp.highly_variable_genes(adata, n_top_genes=2000, flavor="seurat")
    adata = adata[:, adata.var["highly_variable"]].copy()
    sc.pp.scale(adata, max_value=10)
    sc.pp.pca(adata, n_comps=50)
    labels = KMeans(TYPES, n_init=10, random_state=0).fit(adata.obsm["X_pca"]).labels_
    return clustering_metrics(contingency(labels, truth[np.concatenate(rows)]))["ari"]


def harmony_on_cells(run: Path, path: Path) -> dict[str, Any]:
    """Seconds of Harmony and k-means (ten starts) on the embedding of all cells; making that is not counted."""
    import harmonypy
    from sklearn.cluster import KMeans

    points = cell_embedding(Run.open(run), path).astype(np.float64)
    obs = open_atlas(path).obs_column(BATCH).to_frame(BATCH)
    begin = time.perf_counter()
    found = np.asarray(harmonypy.run_harmony(points, obs, BATCH, random_state=0, verbose=False).Z_corr)
    found = found if len(found) == len(points) else found.T
    labels = KMeans(TYPES, n_init=10, random_state=0).fit(found).labels_
    seconds = round(time.perf_counter() - begin, 1)
    truth = np.unique(open_atlas(path).obs_column(TRUTH).astype(str), return_inverse=True)[1]
    return {"seconds": seconds, "ari": clustering_metrics(contingency(labels, truth))["ari"]}


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cells", type=int, default=1_000_000)
    parser.add_argument("--ratio-cells", default="500000,2000000", help="two sizes whose seconds are compared")
    parser.add_argument("--harmony", action="store_true", help="time integration beside Harmony on all cells")
    parser.add_argument("--json", type=Path, help="write the results here")
    options = parser.parse_args(arguments)
    warnings.filterwarnings("ignore", category=FutureWarning)
    result: dict[str, Any] = {"machine": machine(), "cells": options.cells, "types": TYPES, "batches": BATCHES}

    def encoded(cells: int) -> Path:
        run = cache_folder() / f"clear-{cells}.run"
        call("encode", atlas_of(cells), "-o", run, "--force")
        return run

    run = encoded(options.cells)
    for method in ("ward", "transformer"):
        result[method] = clusters(run, method)
        print(method, result[method], flush=True)
    result["subsample_kmeans_ari"] = subsample_kmeans(atlas_of(options.cells))
    print("k-means of a subsample", result["subsample_kmeans_ari"], flush=True)
    if options.harmony:
        result["batch_key"] = clusters(run, "ward", "--batch-key", BATCH)
        result["harmony_on_cells"] = harmony_on_cells(run, atlas_of(options.cells))
        result["integration_ratio"] = round(result["batch_key"]["seconds"] / result["harmony_on_cells"]["seconds"], 4)
        print(result["batch_key"], result["harmony_on_cells"], flush=True)
    sizes = [int(n) for n in options.ratio_cells.split(",") if n]
    if sizes:
        result["by_cells"] = {n: clusters(encoded(n), "transformer") for n in sizes}
        seconds = [result["by_cells"][n]["seconds"] for n in sizes]
        result["seconds_ratio"] = round(seconds[-1] / seconds[0], 3)
        print(result["by_cells"], flush=True)
    print(json.dumps(result, indent=1))
    if options.json is not None:
        options.json.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
