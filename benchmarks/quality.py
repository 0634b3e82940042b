"""How good clusters of tokens are on real labelled cells, beside clusters of the cells themselves.

``python -m benchmarks.quality [--data DIR] [--seeds 5] [--sets kang,pbmc3k] [--json PATH] [--markdown PATH]``.

Tokens: the stages `encode`, `cluster` and `evaluate`, with their defaults, as a user would call them. Cells: k-means
and Leiden, on the embedding that the run's own hasher gives each cell ("same"), and on the principal components of a
plain scanpy recipe ("scanpy"). A seed drives the hasher's rotations and every clustering. No setting is tuned here, and
labels only score, apart from the true number of types where a method is said to know it.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import tempfile
import time
import warnings
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from threadpoolctl import threadpool_limits

from benchmarks._measure import Record
from benchmarks._quality_page import describe_bar, write_markdown
from benchmarks._quality_scores import (
    CHUNK_ROWS,
    DATA_VARIABLE,
    DEFAULT_DATA,
    HALVINGS,
    N_DIMS,
    PREFIX_BITS,
    PREFIX_METHODS,
    RANKINGS,
    RESOLUTIONS,
    SETS,
    TOKEN_METHODS,
    TRUTH,
    Entry,
    summarise,
)
from hashstream import kernels
from hashstream.atlas import open_atlas, plan_ranges, stream_chunks
from hashstream.hashing import PcaItqSettings
from hashstream.metrics import clustering_metrics, purity
from hashstream.runtime.provenance import peak_rss_bytes
from hashstream.runtime.run import Run
from hashstream.stages.cluster import cluster
from hashstream.stages.encode import encode
from hashstream.stages.evaluate import evaluate
from hashstream.stages.truth import bucket_counts, run_column


def contingency(found: NDArray[np.integer], truth: NDArray[np.integer]) -> NDArray[np.int64]:
    """Cells of each (found, true) pair; cells whose truth is -1 are left out."""
    known = truth >= 0
    found = np.unique(found, return_inverse=True)[1][known]
    table = np.zeros((int(found.max()) + 1, int(truth.max()) + 1), dtype=np.int64)
    np.add.at(table, (found, truth[known]), 1)
    return table


class Recorder:
    """Collects what was timed and scored.

    Attributes
    ----------
    entries : list of dict
        Task, dataset, replicate, times and peak memory, and the metrics of the task, flat.
    """

    def __init__(self) -> None:
        self.entries: list[Entry] = []

    def time(self, run: Callable[[], Any]) -> tuple[Any, float, float]:
        """What `run` gives, and its seconds of processor and clock."""
        cpu, elapsed = time.process_time(), time.perf_counter()
        result = run()
        return result, time.process_time() - cpu, time.perf_counter() - elapsed

    def add(self, task: str, dataset: str, seed: int, times: tuple[float, float], **metrics: Any) -> None:
        record = Record(task, dataset, seed, round(times[0], 4), round(times[1], 4), peak_rss_bytes())
        self.entries.append({**asdict(record), **metrics})


# ------------------------------------------------------------------------------------------------------------- tokens


def measure_tokens(path: Path, dataset: str, seed: int, recorder: Recorder) -> dict[str, Any]:
    """Encode and cluster one set with one seed.

    Returns
    -------
    dict
        ``embedding`` (n_cells, 50) float32, ``truth`` (n_cells,) int32 and ``n_types``, for the clusterings of cells.
    """
    with tempfile.TemporaryDirectory() as folder:
        _, *times = recorder.time(lambda: encode(path, Path(folder) / "run", seed=seed))
        run = Run.open(Path(folder) / "run")
        truth, names = run_column(run, TRUTH)
        recorder.add("tokens/encode", dataset, seed, (times[0], times[1]), n_cells=run.n_cells, n_types=len(names))
        counts = bucket_counts(run, truth, len(names))
        tokens = run.tokens()

        def score(task: str, **options: Any) -> None:
            found, *times = recorder.time(lambda: cluster(run, seed=seed, **options))
            _, parent = tokens.shorten(found["bucket_bits"])
            coarse = np.zeros((found["n_buckets"], len(names)), dtype=np.int64)
            np.add.at(coarse, parent, counts)
            metrics = evaluate(Run.open(run.path), TRUTH)["cluster"]
            recorder.add(
                task, dataset, seed, (times[0], times[1]),
                n_tokens=found["n_buckets"], bucket_bits=found["bucket_bits"], bucket_purity=purity(coarse), **metrics,
            )  # fmt: skip

        for name, (method, known) in TOKEN_METHODS.items():
            score(f"tokens/{name}", method=method, n_clusters=len(names) if known else None)
        for bits in PREFIX_BITS:
            for method in PREFIX_METHODS:
                score(f"prefix{bits}/{method}", method=method, n_clusters=len(names), bucket_bits=bits)
        known = {"embedding": cell_embedding(run, path), "truth": truth, "n_types": len(names)}
        for by in RANKINGS:
            encode(path, Path(folder) / "ranked", fit_settings=PcaItqSettings(genes_by=by), seed=seed, force=True)
            ranked = Run.open(Path(folder) / "ranked")
            _, *times = recorder.time(lambda run=ranked: cluster(run, n_clusters=len(names), seed=seed))
            metrics = evaluate(Run.open(ranked.path), TRUTH)["cluster"]
            recorder.add(f"genes/{by}", dataset, seed, (times[0], times[1]), **metrics)
        return known


def cell_embedding(run: Run, path: Path) -> NDArray[np.float32]:
    """The embedding that the run's hasher gives each cell: (n_cells, 50) float32."""
    atlas = open_atlas(path)
    bound = [run.hasher().bind(store.var, where=str(store.path)) for store in atlas.stores]
    parts = []
    for rows, chunk in stream_chunks(atlas, plan_ranges(atlas, chunk_rows=CHUNK_ROWS)):
        one = bound[rows.store]
        encoded = kernels.encode_rows(chunk.indptr, chunk.indices, chunk.data, one.match.gene_map, one.weights)
        parts.append(encoded.embedding[:, :N_DIMS])
    return np.concatenate(parts)


# -------------------------------------------------------------------------------------------------------------- cells


def scanpy_components(path: Path) -> NDArray[np.float32]:
    """Principal components of the plain scanpy recipe: (n_cells, 50) float32."""
    import anndata
    import scanpy as sc

    adata = anndata.read_h5ad(path)
    adata.X = adata.X.astype(np.float32)
    sc.pp.normalize_total(adata, target_sum=1e4)
    sc.pp.log1p(adata)
    sc.pp.highly_variable_genes(adata, n_top_genes=2000, flavor="seurat")
    adata = adata[:, adata.var["highly_variable"]].copy()
    sc.pp.scale(adata, max_value=10)
    sc.pp.pca(adata, n_comps=N_DIMS)
    return np.asarray(adata.obsm["X_pca"], dtype=np.float32)


def cell_graph(points: NDArray[np.float32]) -> Any:
    """scanpy's neighbour graph of cells (15 exact neighbours), an `igraph.Graph`."""
    import anndata
    import igraph
    import scanpy as sc
    from scipy import sparse

    adata = anndata.AnnData(obs={"cell": np.arange(len(points)).astype(str)}, obsm={"X_pca": points})
    # Exact neighbours: scanpy 1.11 cannot read the approximate ones of pynndescent 0.7, its default for more cells.
    sc.pp.neighbors(adata, n_neighbors=15, use_rep="X_pca", transformer="sklearn", random_state=0)
    edges = sparse.triu(adata.obsp["connectivities"], k=1).tocoo()
    graph = igraph.Graph(n=len(points), edges=np.stack([edges.row, edges.col], axis=1))
    graph.es["weight"] = edges.data.astype(float).tolist()
    return graph


def cell_leiden(graph: Any, resolution: float, seed: int) -> NDArray[np.int64]:
    """Leiden by modularity, two iterations, as scanpy calls igraph."""
    import igraph

    igraph.set_random_number_generator(random.Random(seed))
    try:
        found = graph.community_leiden("modularity", weights="weight", resolution=resolution, n_iterations=2)
    finally:
        igraph.set_random_number_generator(random)
    return np.asarray(found.membership)


def leiden_tuned(graph: Any, n_clusters: int, seed: int) -> NDArray[np.int64]:
    """Leiden at the resolution, of those that bisection tries, whose number of clusters is nearest to `n_clusters`."""
    low, high = np.log(RESOLUTIONS)
    best, miss = np.zeros(0, dtype=np.int64), np.inf
    for _ in range(HALVINGS):
        middle = (low + high) / 2
        labels = cell_leiden(graph, float(np.exp(middle)), seed)
        number = int(labels.max()) + 1
        if abs(number - n_clusters) < miss:
            best, miss = labels, abs(number - n_clusters)
        if miss == 0:
            break
        low, high = (middle, high) if number < n_clusters else (low, middle)
    return best


def measure_cells(
    points: NDArray[np.float32],
    graph: Any,
    known: dict[str, Any],
    *,
    name: str,
    dataset: str,
    seed: int,
    recorder: Recorder,
) -> None:
    """Cluster the cells themselves; `name` says in which embedding."""
    from sklearn.cluster import KMeans

    def kmeans(x: NDArray[np.float32]) -> NDArray[np.integer]:
        return KMeans(known["n_types"], n_init=10, random_state=seed).fit(x).labels_

    contestants: dict[str, Callable[[], NDArray[Any]]] = {
        "kmeans": lambda: kmeans(points),
        "leiden_1": lambda: cell_leiden(graph, 1.0, seed),
        "leiden_tuned": lambda: leiden_tuned(graph, known["n_types"], seed),
    }
    if name == "same":
        # How much of the default's gain the scaling of components alone brings, with no token in sight.
        contestants["kmeans_scaled"] = lambda: kmeans(points / np.sqrt(points.std(axis=0)))
    for contestant, run in contestants.items():
        labels, *times = recorder.time(run)
        metrics = clustering_metrics(contingency(labels, known["truth"]))
        recorder.add(f"cells_{name}/{contestant}", dataset, seed, (times[0], times[1]), **metrics)


def run_all(data: Path, sets: list[str], seeds: int) -> list[Entry]:
    """All records: tokens of every set first, so that their peak memory is not that of the baselines."""
    recorder = Recorder()
    known: dict[tuple[str, int], dict[str, Any]] = {}
    for dataset in sets:
        for seed in range(seeds):
            begin = time.perf_counter()
            known[dataset, seed] = measure_tokens(data / SETS[dataset], dataset, seed, recorder)
            print(f"tokens {dataset} seed {seed}: {time.perf_counter() - begin:.1f} s", flush=True)
    for dataset in sets:
        begin = time.perf_counter()
        points = {"same": known[dataset, 0]["embedding"], "scanpy": scanpy_components(data / SETS[dataset])}
        graphs = {name: cell_graph(x) for name, x in points.items()}
        for seed in range(seeds):
            # The seed of a fit changes the rotations, not the components: one graph serves all seeds.
            np.testing.assert_array_equal(known[dataset, seed]["embedding"], points["same"])
            for name, x in points.items():
                with threadpool_limits(1):
                    measure_cells(
                        x, graphs[name], known[dataset, seed], name=name, dataset=dataset, seed=seed, recorder=recorder
                    )
        print(f"cells  {dataset}: {time.perf_counter() - begin:.1f} s", flush=True)
    return recorder.entries


def print_summary(summary: dict[str, Any]) -> None:
    for title in ("ari_tokens", "ari_cells"):
        rows = summary[title]
        columns = list(next(iter(rows.values())))
        print(f"\n{title:24}" + "".join(f"{column:>10}" for column in columns))
        for name, row in rows.items():
            print(f"{name:24}" + "".join(f"{row[column]:10.3f}" for column in columns))
    print()
    for method, bar in summary["bars"].items():
        print(describe_bar(method, bar))


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path(os.environ.get(DATA_VARIABLE, DEFAULT_DATA)))
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--sets", default=",".join(SETS), help=f"any of {', '.join(SETS)}")
    parser.add_argument("--json", type=Path, help="write all records and the summary here")
    parser.add_argument("--markdown", type=Path, help="write the page of results here")
    options = parser.parse_args(arguments)
    sets = options.sets.split(",")
    if unknown := set(sets) - set(SETS):
        parser.error(f"no such sets: {', '.join(sorted(unknown))}; there are {', '.join(SETS)}")
    if options.seeds < 1:
        parser.error(f"--seeds is {options.seeds}; expected at least 1")
    if missing := [SETS[name] for name in sets if not (options.data / SETS[name]).is_file()]:
        parser.error(f"{options.data} has no {', '.join(missing)}; name their folder with --data or {DATA_VARIABLE}")
    # scanpy and its libraries announce deprecations of each other.
    warnings.filterwarnings("ignore", category=FutureWarning)
    warnings.filterwarnings("ignore", message="zero-centering a sparse array")
    entries = run_all(options.data, sets, options.seeds)
    summary = summarise(entries, sets)
    print_summary(summary)
    if options.json is not None:
        options.json.parent.mkdir(parents=True, exist_ok=True)
        options.json.write_text(json.dumps({"records": entries, "summary": summary}, indent=1) + "\n")
    if options.markdown is not None:
        write_markdown(options.markdown, entries, summary, sets, seeds=options.seeds)


if __name__ == "__main__":
    main()
