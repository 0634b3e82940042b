"""Stage `demo`: the whole job on packaged real data."""

from __future__ import annotations

import tempfile
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np

from hashstream.atlas import open_store, plan_ranges, stream_chunks
from hashstream.atlas.open import Atlas
from hashstream.atlas.write import AtlasWriter
from hashstream.datasets import pbmc3k
from hashstream.runtime.events import ProgressListener, Silent
from hashstream.runtime.files import check_folder_target, remove
from hashstream.runtime.run import Run
from hashstream.stages.annotate import annotate
from hashstream.stages.cluster import cluster
from hashstream.stages.encode import encode
from hashstream.stages.evaluate import evaluate
from hashstream.stages.ingest import simulate
from hashstream.stages.markers import markers
from hashstream.stages.report import report
from hashstream.stages.truth import run_column

TRUTH = "cell_type"
#: Files that a demo makes first or, once it is done, has.
_SIGNS = ("run/run.json", "reference.zarr", "reference.zarr.partial", "atlas.zarr", "atlas.zarr.partial")
SIMULATION: dict[str, Any] = {"n_genes": 63_561, "n_types": 54, "n_batches": 8, "nnz_per_cell": 600}


def demo(
    folder: str | Path | None = None,
    *,
    cells: int | None = None,
    seed: int = 0,
    force: bool = False,
    progress: ProgressListener | None = None,
) -> dict[str, Any]:
    """Encode, cluster, annotate and evaluate PBMC 3k, or a simulated atlas, and find the genes of the clusters.

    Clusters are found without labels, once with the true number of types and once with ``auto``. For annotation of
    PBMC 3k, one stratified half of the cells is the labelled reference and the other half the query; of a simulated
    atlas, the reference is another draw of cells of the same types, a fifth as large.

    Parameters
    ----------
    folder
        Where to keep the runs; None: a temporary folder.
    cells
        Simulate an atlas of so many cells (63,561 genes, 54 types, 8 batches) instead.

    Returns
    -------
    dict
        ``rows``: stage, measure and value of each line of the table; ``top_genes``: of each cluster, those that it has
        most of beside the others; ``report``: a page about the run with the clusters, None if it is not kept.
    """
    progress = progress or Silent()
    if folder is None:
        place: Any = tempfile.TemporaryDirectory(prefix="hashstream-demo-")
    else:
        folder = Path(folder)
        folder = check_folder_target(folder, "demo", _SIGNS, force=force)
        remove(folder)
        folder.mkdir()
        place = nullcontext(str(folder))
    with place as name:
        result = _run(Path(name), cells, seed, progress)
    return result | ({} if folder is not None else {"report": None})


def _run(folder: Path, cells: int | None, seed: int, progress: ProgressListener) -> dict[str, Any]:
    rows: list[dict[str, Any]] = []

    def add(stage: str, measure: str, value: float) -> None:
        rows.append({"stage": stage, "measure": measure, "value": float(value)})

    if cells is None:
        atlas, (reference, query) = pbmc3k(), _halves(folder, seed)
    else:
        atlas, reference = folder / "atlas.zarr", folder / "reference.zarr"
        for draw, (path, n_cells) in enumerate(((atlas, cells), (reference, max(cells // 5, 1000)))):
            simulate(path, n_cells=n_cells, **SIMULATION, seed=seed, draw=draw, progress=progress)
        query = atlas
    run = _encoded(atlas, folder / "run", None, seed, progress)
    add("encode", "cells", run.n_cells)
    add("encode", "buckets", run.n_buckets)
    add("encode", "seconds", sum(run.meta["seconds"].values()))
    add("encode", "peak MiB", run.meta["peak_rss_bytes"] / 2**20)
    true_k = len(run_column(run, TRUTH)[1])
    for method, n_clusters, title in (
        ("kmeans", true_k, "cluster kmeans, true K"),
        ("auto", true_k, "cluster ward (default), true K"),
        ("auto", None, "cluster leiden (default), K auto"),
    ):
        record = cluster(run.path, method=method, n_clusters=n_clusters, seed=seed)
        scores = evaluate(Run.open(run.path), TRUTH)["cluster"]
        add(title, "seconds", record["seconds"])
        add(title, "ARI", scores["ari"])
        add(title, "NMI", scores["nmi"])
    found = markers(run.path, target=folder / "markers.csv", progress=progress)
    add("markers", "seconds", found["seconds"])
    page = report(run.path, target=folder / "report.html", markers=folder / "markers.csv", truth=TRUTH, seed=seed)
    add("report", "seconds", page["seconds"])
    reference_run = _encoded(reference, folder / "run-reference", None, seed, progress)
    query_run = _encoded(query, folder / "run-query", reference_run.path / "hasher", seed, progress)
    record = annotate(query_run.path, reference=reference_run.path, labels=TRUTH, unknown_threshold=0.0)
    labels = evaluate(Run.open(query_run.path), TRUTH)["label"]
    add("annotate", "seconds", record["seconds"])
    add("annotate", "accuracy", labels["accuracy"])
    add("annotate", "macro-F1", labels["macro_f1"])
    return {"rows": rows, "top_genes": found["top_genes"], "report": page["path"]}


def _encoded(atlas: Path, target: Path, hasher: Path | None, seed: int, progress: ProgressListener) -> Run:
    run = encode(atlas, target, hasher=hasher, seed=seed, progress=progress)
    assert run is not None
    return run


def _halves(folder: Path, seed: int) -> tuple[Path, Path]:
    """Two stores with one stratified half of the cells each."""
    store = open_store(pbmc3k())
    chunk = next(c for _, c in stream_chunks(Atlas((store,)), plan_ranges(Atlas((store,)), chunk_rows=store.n_cells)))
    types = store.obs_column(TRUTH)
    rng = np.random.default_rng(seed)
    first = np.zeros(store.n_cells, dtype=bool)
    for name in types.cat.categories:
        rows = rng.permutation(np.flatnonzero(types == name))
        first[rows[: len(rows) // 2]] = True
    paths = []
    for title, kept in (("reference", first), ("query", ~first)):
        path = folder / f"{title}.zarr"
        with AtlasWriter(path, n_genes=store.n_genes, data_dtype=chunk.data.dtype) as writer:
            writer.append(chunk.take(np.flatnonzero(kept)))
            obs = types[kept].to_frame(TRUTH).set_index(np.asarray(store.obs_names()[kept], dtype=str))
            writer.finish(obs=obs, var=store.var, uns={})
        paths.append(path)
    return paths[0], paths[1]
