"""`hashstream trajectory` beside scanpy's diffusion pseudotime and PAGA.

``python -m benchmarks.trajectory [--cells 1000000] [--shared-cells 30000] [--atlas-cells 4062980] [--json PATH]``.

What is measured
----------------
paul15
    Myeloid progenitors of Paul et al. 2015. Spearman's correlation of pseudotime with the known order of stages, of
    cells in a lineage: erythroid cells from MEP on, monocytes and neutrophils from GMP on. scanpy needs one cell
    as the root: the mean, the worst and the best of all cells of the root group. How many of the six steps from MEP
    through the
    stages of erythroid cells are edges of the tree of groups.
shared
    A simulated differentiation (`benchmarks._branching`) of ``--shared-cells`` cells with known times: the same
    correlation along each way from the root to an end, their mean; how many of the four pairs of branches that follow
    each other are edges of the tree; seconds and memory, from the counts to pseudotime in fresh processes: encode and
    trajectory, and scanpy's recipe with 15 neighbours on 50 components. Both start from the first cell.
whole
    The same on ``--cells`` cells, most of which have the mean of the drawn cells nearest to their bucket.
atlas
    Seconds and memory on an encoded and clustered atlas of the Fetal-Atlas's shape.
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
from numpy.typing import NDArray
from scipy.stats import spearmanr

from benchmarks._branching import EDGES, PATHS, branching
from benchmarks._commands import Measured, hashstream, measure
from benchmarks._measure import write_json
from benchmarks._quality_page import machine
from benchmarks._quality_scores import DATA_VARIABLE, DEFAULT_DATA, SETS, TRUTH
from benchmarks._simulated import cache_folder, simulated
from hashstream.atlas import open_atlas

#: Root and stages of each lineage of Paul et al., by their time.
LINEAGES = {
    "erythroid": ("7MEP", {"7MEP": 0, "6Ery": 1, "5Ery": 2, "4Ery": 3, "3Ery": 4, "2Ery": 5, "1Ery": 6}),
    "monocyte": ("10GMP", {"9GMP": 0, "10GMP": 0, "15Mo": 1, "14Mo": 2}),
    "neutrophil": ("10GMP", {"9GMP": 0, "10GMP": 0, "17Neu": 1, "16Neu": 1}),
}
STEPS = (("7MEP", "6Ery"), ("6Ery", "5Ery"), ("5Ery", "4Ery"), ("4Ery", "3Ery"), ("3Ery", "2Ery"), ("2Ery", "1Ery"))

#: Pseudotimes from each of some cells, (n_roots, n_cells) float32, and the edges of PAGA's tree.
SCANPY = """
import json, sys
import anndata, numpy as np, scanpy as sc
from benchmarks._peers import COMPONENTS, NEIGHBOURS, scanpy_neighbours
from hashstream.runtime.provenance import peak_rss_bytes
store, key, roots, target = sys.argv[1:]
adata = anndata.read_zarr(store) if store.endswith(".zarr") else anndata.read_h5ad(store)
adata.X = adata.X.astype("float32")
adata.obs[key] = adata.obs[key].astype(str).astype("category")
sc.pp.normalize_total(adata, target_sum=1e4)
sc.pp.log1p(adata)
sc.pp.highly_variable_genes(adata, n_top_genes=2000)
adata = adata[:, adata.var["highly_variable"]].copy()
sc.pp.scale(adata, max_value=10)
sc.pp.pca(adata, n_comps=COMPONENTS)
large = adata.n_obs >= 4096
sc.pp.neighbors(adata, n_neighbors=NEIGHBOURS, transformer=scanpy_neighbours() if large else None)
sc.tl.diffmap(adata)
found = []
for root in json.loads(roots):
    adata.uns["iroot"] = root
    sc.tl.dpt(adata)
    found.append(adata.obs["dpt_pseudotime"].to_numpy().astype(np.float32))
np.save(target, found)
sc.tl.paga(adata, groups=key)
tree, names = adata.uns["paga"]["connectivities_tree"].tocoo(), list(adata.obs[key].cat.categories)
edges = [[names[a], names[b]] for a, b in zip(tree.row, tree.col)]
print(json.dumps({"edges": edges, "max_rss": peak_rss_bytes()}))
"""


def by_scanpy(store: Path, key: str, roots: NDArray[np.int64], target: Path) -> tuple[Measured, NDArray[np.float32]]:
    """What scanpy took, and pseudotimes from each root: (n_roots, n_cells)."""
    command = [sys.executable, "-W", "ignore", "-c", SCANPY, str(store), key, str(roots.tolist()), str(target)]
    found = measure(command)
    if found.ended != "done":
        raise RuntimeError(f"scanpy on {store}: {found.ended}: {found.error}")
    return found, np.load(target)


def pseudotimes(run: Path) -> NDArray[np.float32]:
    return pd.read_parquet(run / "cells.parquet", columns=["pseudotime"])["pseudotime"].to_numpy()


def share_of(steps: tuple[tuple[str, str], ...], edges: list[Any]) -> float:
    """The share of some pairs that are among edges of either direction."""
    known = {frozenset(edge) for edge in edges}
    return float(np.mean([frozenset(step) in known for step in steps]))


def paul15(file: Path, folder: Path) -> dict[str, Any]:
    """Both tools on the myeloid progenitors."""
    types = open_atlas([file]).obs_column(TRUTH).astype(str).to_numpy()
    run = folder / "paul.run"
    hashstream("encode", file, "-o", run)
    out: dict[str, Any] = {}
    for lineage, (root, stages) in LINEAGES.items():
        cells = np.isin(types, list(stages))
        order = [stages[name] for name in types[cells]]
        found = hashstream("trajectory", run, "--root", root, "--by", TRUTH)
        edges = [(edge["from"], edge["to"]) for edge in found.output["tree"]]
        theirs, values = by_scanpy(file, TRUTH, np.flatnonzero(types == root), folder / "theirs.npy")
        scores = [spearmanr(one[cells], order).statistic for one in values]
        out[lineage] = {
            "hashstream": float(spearmanr(pseudotimes(run)[cells], order).statistic),
            "scanpy_mean": float(np.mean(scores)),
            "scanpy_worst": float(min(scores)), "scanpy_best": float(max(scores)),
        }  # fmt: skip
        if lineage == "erythroid":
            out["steps_in_tree"] = share_of(STEPS, edges)
            out["steps_in_tree_scanpy"] = share_of(STEPS, theirs.output["edges"])
    return out


def along_paths(times: NDArray[np.floating], truth: NDArray[np.float64], branch: NDArray[np.object_]) -> float:
    """Mean over the ways from the root to an end of Spearman's correlation with the true time; 0 for NaN."""
    scores = []
    for path in PATHS:
        cells = np.isin(branch, path)
        scores.append(spearmanr(np.nan_to_num(times[cells], nan=-1.0), truth[cells]).statistic)
    return float(np.mean(scores))


def simulation(cells: int, folder: Path, *, scanpy: bool) -> dict[str, Any]:
    """Encode and trajectory on a simulated differentiation, and scanpy where it is asked for."""
    store, run = branching(cells), folder / "branching.run"
    atlas = open_atlas([store])
    branch, truth = atlas.obs_column("branch").astype(str).to_numpy(), atlas.obs_column("time").to_numpy()
    encode = hashstream("encode", store, "-o", run, "--force")
    found = hashstream("trajectory", run, "--root", "stem", "--by", "branch")
    root = int(np.argmin(truth))
    from_cell = hashstream("trajectory", run, "--root-cell", root, "--by", "branch")
    out = {
        "cells": cells, "encode_s": encode.wall_s, "trajectory_s": found.wall_s,
        "encode_mib": encode.peak_rss_mib, "trajectory_mib": found.peak_rss_mib,
        "along_paths": along_paths(pseudotimes(run), truth, branch),
        "steps_in_tree": share_of(EDGES, [(edge["from"], edge["to"]) for edge in from_cell.output["tree"]]),
        "unreached": from_cell.output["cells_unreached"],
    }  # fmt: skip
    if scanpy:
        theirs, values = by_scanpy(store, "branch", np.array([root]), folder / "theirs.npy")
        ours = encode.wall_s + found.wall_s
        out |= {
            "scanpy_s": theirs.wall_s, "scanpy_mib": theirs.peak_rss_mib, "faster": theirs.wall_s / ours,
            "smaller": theirs.peak_rss_mib / max(encode.peak_rss_mib, found.peak_rss_mib),
            "scanpy_along_paths": along_paths(values[0], truth, branch),
            "scanpy_steps_in_tree": share_of(EDGES, theirs.output["edges"]),
        }  # fmt: skip
    return out


def whole_atlas(cells: int) -> dict[str, Any]:
    """Seconds and memory on an atlas of the Fetal-Atlas's shape."""
    run = cache_folder() / f"trajectory-{cells}.run"
    if not run.exists():
        hashstream("encode", simulated(cells), "-o", run)
    clusters = hashstream("cluster", run)
    found = hashstream("trajectory", run, "--root", "0")
    return {
        "cells": cells, "clusters": clusters.output["n_clusters"], "trajectory_s": found.wall_s,
        "trajectory_mib": found.peak_rss_mib, "unreached": found.output["cells_unreached"],
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cells", type=int, default=1_000_000)
    parser.add_argument("--shared-cells", type=int, default=30_000)
    parser.add_argument("--atlas-cells", type=int, default=4_062_980, help="0: leave the last part out")
    parser.add_argument("--json", type=Path, help="write everything here")
    options = parser.parse_args()
    summary: dict[str, Any] = {"machine": machine()}
    with tempfile.TemporaryDirectory(prefix="hashstream-bench-") as temporary:
        folder = Path(temporary)
        file = Path(os.environ.get(DATA_VARIABLE, DEFAULT_DATA)) / SETS["paul15"]
        if file.is_file():
            summary["paul15"] = paul15(file, folder)
        summary["shared"] = simulation(options.shared_cells, folder, scanpy=True)
        summary["whole"] = simulation(options.cells, folder, scanpy=False)
    if options.atlas_cells:
        summary["atlas"] = whole_atlas(options.atlas_cells)
    for key, value in summary.items():
        print(f"{key:10} {value}", flush=True)
    if options.json is not None:
        write_json(options.json, [], summary)


if __name__ == "__main__":
    main()
