"""`hashstream markers` beside scanpy's t-test: agreement on real data, seconds and memory on simulated atlases.

``python -m benchmarks.markers [--cells 4062980] [--shared-cells 100000] [--json PATH]``.

What is measured
----------------
agreement
    On the real labelled data, by their types: the largest difference of a score, relative to the largest
    score, and the share of scanpy's 100 best genes of each type that are among ours.
shared
    On an atlas of ``--shared-cells`` cells of the Fetal-Atlas's shape, by its types: fresh processes, from the start to
    the table. scanpy reads the store, normalises, takes logarithms and tests (``rank_genes_groups``, t-test).
whole
    `hashstream markers` alone on ``--cells`` cells, and a bare read of the store.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from benchmarks._commands import Measured, hashstream, measure
from benchmarks._measure import write_json
from benchmarks._quality_page import machine
from benchmarks._quality_scores import DATA_VARIABLE, DEFAULT_DATA, SETS, TRUTH
from benchmarks._simulated import cache_folder, simulated
from benchmarks.encode import READ

TOP = 100

SCANPY = """
import json, sys
import anndata, scanpy as sc
from hashstream.runtime.provenance import peak_rss_bytes
store, key, top, target = sys.argv[1:]
adata = anndata.read_zarr(store) if store.endswith(".zarr") else anndata.read_h5ad(store)
adata.X = adata.X.astype("float32")
adata = adata[adata.obs[key].notna().to_numpy()].copy()
adata.obs[key] = adata.obs[key].astype(str).astype("category")
sc.pp.normalize_total(adata, target_sum=1e4)
sc.pp.log1p(adata)
sc.tl.rank_genes_groups(adata, key, method="t-test", n_genes=int(top) or None)
sc.get.rank_genes_groups_df(adata, None).to_csv(target, index=False)
print(json.dumps({"max_rss": peak_rss_bytes()}))
"""


def by_scanpy(store: Path, target: Path, *, top: int) -> Measured:
    found = measure([sys.executable, "-W", "ignore", "-c", SCANPY, str(store), TRUTH, str(top), str(target)])
    if found.ended != "done":
        raise RuntimeError(f"scanpy on {store}: {found.ended}: {found.error}")
    return found


def encoded(store: Path) -> Path:
    """A run of a store, made if it is not there yet."""
    run = cache_folder() / f"markers-{store.stem}.run"
    if not run.exists():
        hashstream("encode", store, "-o", run, "--min-overlap", 0)
    return run


def agreement(store: Path, folder: Path) -> dict[str, float]:
    """Both tables of one data set, all genes."""
    ours, theirs = folder / "ours.parquet", folder / "theirs.csv"
    hashstream("markers", encoded(store), "-o", ours, "--by", TRUTH, "--top", 0, "--min-cells", 2, "--force")
    by_scanpy(store, theirs, top=0)
    a = pd.read_parquet(ours).astype({"group": str, "gene": str})
    b = pd.read_csv(theirs, dtype={"group": str, "names": str})
    both = a.merge(b, left_on=["group", "gene"], right_on=["group", "names"], validate="one_to_one")
    best = both[both["rank"] < TOP].groupby("group")["names"].apply(set)
    wanted = b.groupby("group").head(TOP).groupby("group")["names"].apply(set)
    found = [len(best[group] & wanted[group]) / len(wanted[group]) for group in wanted.index]
    scores = both[["score", "scores"]].to_numpy()
    return {
        "groups": len(wanted),
        "genes": both["gene"].nunique(),
        "score_difference": float(np.abs(np.diff(scores, axis=1)).max() / np.abs(scores).max()),
        "shared_top": float(np.mean(found)),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cells", type=int, default=4_062_980)
    parser.add_argument("--shared-cells", type=int, default=100_000)
    parser.add_argument("--json", type=Path, help="write everything here")
    options = parser.parse_args()
    summary: dict[str, Any] = {"machine": machine()}
    with tempfile.TemporaryDirectory(prefix="hashstream-bench-") as temporary:
        folder = Path(temporary)
        data = Path(os.environ.get(DATA_VARIABLE, DEFAULT_DATA))
        for name, file in SETS.items():
            if (data / file).is_file():
                summary[f"agreement_{name}"] = agreement(data / file, folder)
        shared, target = simulated(options.shared_cells), folder / "markers.parquet"
        command = ("markers", encoded(shared), "-o", target, "--by", TRUTH, "--top", TOP, "--force")
        ours, theirs = hashstream(*command), by_scanpy(shared, folder / "theirs.csv", top=TOP)
        summary["shared"] = {
            "cells": options.shared_cells, "hashstream_s": ours.wall_s, "hashstream_mib": ours.peak_rss_mib,
            "scanpy_s": theirs.wall_s, "scanpy_mib": theirs.peak_rss_mib,
            "faster": theirs.wall_s / ours.wall_s, "smaller": theirs.peak_rss_mib / ours.peak_rss_mib,
        }  # fmt: skip
        whole = simulated(options.cells)
        run = encoded(whole)
        found = hashstream("markers", run, "-o", target, "--by", TRUTH, "--top", TOP, "--force")
        read = measure([sys.executable, "-c", READ, str(whole)])
        summary["whole"] = {
            "cells": options.cells, "hashstream_s": found.wall_s, "hashstream_mib": found.peak_rss_mib,
            "read_s": read.output["time_elapsed"],
        }  # fmt: skip
    for key, value in summary.items():
        print(f"{key:20} {value}", flush=True)
    if options.json is not None:
        write_json(options.json, [], summary)


if __name__ == "__main__":
    main()
