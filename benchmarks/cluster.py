"""Clusters and codes on real labelled cells: every method of `hashstream cluster` beside clusters of the cells.

``python -m benchmarks.cluster [--seeds 5] [--ablation-seeds 2] [--sets kang,worm] [--json PATH] [--markdown PATH]``.

Three parts, each with its time and peak memory: clusters with the number of types known and unknown; clusters with
batches integrated, on the sets that have batches across which types repeat; and the codes of the learned hash function
beside those of `pca-itq`, with and without each part of its loss. Labels only score, apart from the number of types.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
import time
import warnings
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from threadpoolctl import threadpool_limits

from benchmarks._cluster_page import summarise, write_markdown
from benchmarks._codes import mean_average_precision, purity_at_equal_buckets, purity_curve
from benchmarks._quality_scores import DATA_VARIABLE, DEFAULT_DATA, SETS, TRUTH
from benchmarks.quality import Recorder, cell_graph, contingency, leiden_tuned, scanpy_components
from hashstream.buckets import Tokens
from hashstream.cluster import TransformerSettings, scaled_points
from hashstream.cluster.neighbours import token_neighbours
from hashstream.cluster.partition import clustering_prefix
from hashstream.cluster.ward import ward_clusters
from hashstream.hashing import PcaItqSettings
from hashstream.hashing.neural import NeuralSettings
from hashstream.kernels import ward_linkage
from hashstream.metrics import clustering_metrics
from hashstream.runtime.run import Run
from hashstream.stages.cluster import cluster
from hashstream.stages.encode import encode
from hashstream.stages.evaluate import evaluate
from hashstream.stages.fit import fit
from hashstream.stages.truth import run_column

BATCH = "batch"
#: Sets with batches that share their types.
BATCH_SETS = ("kang", "pancreas")
TOKEN_METHODS = ("ward", "kmeans", "leiden", "transformer")
SMOOTHED_OVER = 10
BITS = (16, 32)
#: The Transformer with and without its parts.
TRANSFORMERS = {
    "transformer, one layer": {"n_layers": 1},
    "transformer, one neighbour": {"n_neighbours": 1},
    "transformer, no consistency": {"consistency_weight": 0.0},
    "transformer, no KL": {"kl_steps": 0},
    "transformer, nothing learned": {"correction": 0.0},
}
#: The learned hash function without its parts.
NEURAL_WITHOUT = {
    "contrast": {"contrast_weight": 0.0},
    "bucket contrast": {"bucket_weight": 0.0},
    "entropy": {"entropy_weight": 0.0},
    "ZINB": {"zinb_weight": 0.0},
    "thinning": {"thinning": (1.0, 1.0)},
}


def smoothed_ward(tokens: Tokens, n_clusters: int) -> NDArray[np.int32]:
    """The baseline of the Transformer: Ward refined by k-means on tokens averaged over their ten nearest.

    Weights are Gaussian in the distance, times the square root of the count.
    """
    coarse, parent = tokens.shorten(clustering_prefix(tokens, at_least=n_clusters))
    points = scaled_points(coarse)
    near = token_neighbours(points, SMOOTHED_OVER)
    root = np.sqrt(coarse.counts)
    weights = near.weights * root[near.indices]
    total = points * root[:, None] + (weights[:, :, None] * points[near.indices]).sum(axis=1)
    smooth = (total / (root + weights.sum(axis=1))[:, None]).astype(np.float32)
    linkage = ward_linkage(smooth, coarse.counts.astype(np.float64))
    return ward_clusters(smooth, coarse.counts, linkage, n_clusters)[parent]


def of_cells(run: Run, labels: NDArray[np.integer]) -> NDArray[np.integer]:
    """Labels of a run's buckets brought to its cells."""
    return np.concatenate([labels[buckets] for buckets in run.cell_buckets()])


def measure_clusters(path: Path, folder: Path, dataset: str, seed: int, ablate: bool, recorder: Recorder) -> None:
    """Clusters of one set's tokens with one seed."""
    _, *times = recorder.time(lambda: encode(path, folder / "run", seed=seed))
    run = Run.open(folder / "run")
    truth, names = run_column(run, TRUTH)
    recorder.add("encode", dataset, seed, (times[0], times[1]), n_cells=run.n_cells, n_types=len(names))

    def score(task: str, **options: Any) -> None:
        found, *times = recorder.time(lambda: cluster(run, seed=seed, **options))
        metrics = evaluate(Run.open(run.path), TRUTH)["cluster"]
        recorder.add(task, dataset, seed, (times[0], times[1]), n_tokens=found["n_buckets"], **metrics)

    for method in TOKEN_METHODS:
        score(f"tokens {method}", method=method, n_clusters=len(names))
        score(f"tokens {method}, K unknown", method=method)
    labels, *times = recorder.time(lambda: smoothed_ward(run.tokens(), len(names)))
    table = contingency(of_cells(run, labels), truth)
    recorder.add("tokens smoothed ward", dataset, seed, (times[0], times[1]), **clustering_metrics(table))
    if ablate:
        for name, changes in TRANSFORMERS.items():
            settings = replace(TransformerSettings(), **changes)
            score(f"tokens {name}", method="transformer", n_clusters=len(names), transformer=settings)
    if dataset in BATCH_SETS:
        for method in TOKEN_METHODS:
            score(f"batches {method}", method=method, n_clusters=len(names), batch_key=BATCH)


def measure_cells(path: Path, dataset: str, seeds: int, recorder: Recorder) -> None:
    """The baselines: k-means and Leiden on principal components of the cells, and k-means after Harmony."""
    import anndata
    from sklearn.cluster import KMeans

    obs = anndata.read_h5ad(path, backed="r").obs
    truth = np.unique(obs[TRUTH].astype(str), return_inverse=True)[1]
    n_types = int(truth.max()) + 1
    points, *pca_times = recorder.time(lambda: scanpy_components(path))
    graph, *graph_times = recorder.time(lambda: cell_graph(points))
    graph_times = [a + b for a, b in zip(pca_times, graph_times, strict=True)]

    def kmeans(x: NDArray[np.float32], seed: int) -> NDArray[np.integer]:
        with threadpool_limits(1):
            return KMeans(n_types, n_init=10, random_state=seed).fit(x).labels_

    def harmony(seed: int) -> NDArray[np.integer]:
        import harmonypy

        found = harmonypy.run_harmony(points.astype(np.float64), obs, BATCH, random_state=seed, verbose=False)
        corrected = np.asarray(found.Z_corr)
        return kmeans((corrected if len(corrected) == len(points) else corrected.T).astype(np.float32), seed)

    contestants: dict[str, tuple[Callable[[int], NDArray[np.integer]], list[float]]] = {
        "cells k-means": (lambda seed: kmeans(points, seed), pca_times),
        "cells Leiden": (lambda seed: leiden_tuned(graph, n_types, seed), graph_times),
    }
    if dataset in BATCH_SETS:
        contestants["cells Harmony k-means"] = (harmony, pca_times)
    for seed in range(seeds):
        for name, (run, before) in contestants.items():
            labels, *times = recorder.time(partial(run, seed))
            metrics = clustering_metrics(contingency(labels, truth))
            recorder.add(name, dataset, seed, (times[0] + before[0], times[1] + before[1]), **metrics)


def measure_codes(path: Path, folder: Path, dataset: str, seed: int, ablate: bool, recorder: Recorder) -> None:
    """The codes of each hash function."""
    kinds: dict[str, Any] = {"pca-itq": PcaItqSettings(), "neural": NeuralSettings()}
    if ablate:
        for part, changes in NEURAL_WITHOUT.items():
            kinds[f"neural without {part}"] = replace(NeuralSettings(), **changes)
    curves, entries = [], []
    for number, (name, settings) in enumerate(kinds.items()):
        hasher, *times = recorder.time(partial(fit, path, folder / f"hasher{number}", seed=seed, settings=settings))
        run = encode(path, folder / f"codes{number}", hasher=hasher)
        assert run is not None
        codes, (truth, _) = run.codes(), run_column(run, TRUTH)
        scores = {f"map{bits}": mean_average_precision(codes, truth, n_bits=bits) for bits in BITS}
        curves.append(purity_curve(codes, truth))
        if name == "neural":
            for method in ("ward", "transformer"):
                _, *taken = recorder.time(
                    partial(cluster, run, method=method, n_clusters=int(truth.max()) + 1, seed=seed)
                )
                metrics = evaluate(Run.open(run.path), TRUTH)["cluster"]
                recorder.add(f"neural tokens {method}", dataset, seed, (taken[0], taken[1]), **metrics)
        entries.append((name, times, scores))
    for (name, times, scores), purity in zip(entries, purity_at_equal_buckets(curves), strict=True):
        recorder.add(f"codes {name}", dataset, seed, (times[0], times[1]), purity_at_equal_buckets=purity, **scores)


def run_all(data: Path, sets: list[str], seeds: int, ablation_seeds: int, parts: list[str]) -> list[dict[str, Any]]:
    recorder = Recorder()
    for dataset in sets:
        path = data / SETS[dataset]
        begin = time.perf_counter()
        for seed in range(seeds):
            with tempfile.TemporaryDirectory() as folder:
                if "clusters" in parts:
                    measure_clusters(path, Path(folder), dataset, seed, seed < ablation_seeds, recorder)
                if "codes" in parts:
                    measure_codes(path, Path(folder), dataset, seed, seed < ablation_seeds, recorder)
        print(f"{dataset}: tokens {time.perf_counter() - begin:.0f} s", flush=True)
    for dataset in sets if "clusters" in parts else []:
        begin = time.perf_counter()
        measure_cells(data / SETS[dataset], dataset, seeds, recorder)
        print(f"{dataset}: cells {time.perf_counter() - begin:.0f} s", flush=True)
    return recorder.entries


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path(os.environ.get(DATA_VARIABLE, DEFAULT_DATA)))
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--ablation-seeds", type=int, default=2, help="seeds with each part left out in turn")
    parser.add_argument("--sets", default=",".join(SETS), help=f"any of {', '.join(SETS)}")
    parser.add_argument("--parts", default="clusters,codes", help="clusters, codes, or both; none merges only")
    parser.add_argument("--merge", type=Path, nargs="*", default=[], help="results of other parts, for one page")
    parser.add_argument("--json", type=Path, help="write all records and the summary here")
    parser.add_argument("--markdown", type=Path, help="write the page of results here")
    options = parser.parse_args(arguments)
    sets, parts = options.sets.split(","), [part for part in options.parts.split(",") if part]
    if unknown := (set(sets) - set(SETS)) | (set(parts) - {"clusters", "codes"}):
        parser.error(f"unknown: {', '.join(sorted(unknown))}")
    if missing := [SETS[name] for name in sets if not (options.data / SETS[name]).is_file()]:
        parser.error(f"{options.data} has no {', '.join(missing)}; name their folder with --data or {DATA_VARIABLE}")
    # scanpy and its libraries announce deprecations of each other.
    warnings.filterwarnings("ignore", category=FutureWarning)
    warnings.filterwarnings("ignore", message="zero-centering a sparse array")
    entries = run_all(options.data, sets, options.seeds, options.ablation_seeds, parts) if parts else []
    entries += [entry for path in options.merge for entry in json.loads(path.read_text())["records"]]
    summary = summarise(entries, sets)
    print(json.dumps(summary, indent=1))
    if options.json is not None:
        options.json.parent.mkdir(parents=True, exist_ok=True)
        options.json.write_text(json.dumps({"records": entries, "summary": summary}, indent=1) + "\n")
    if options.markdown is not None:
        write_markdown(options.markdown, entries, summary, sets)


if __name__ == "__main__":
    main()
