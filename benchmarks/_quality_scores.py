"""Results of the quality benchmark: settings, means over seeds, and the bars."""

from __future__ import annotations

import statistics
from collections.abc import Iterable
from pathlib import Path
from typing import Any

DATA_VARIABLE = "HASHSTREAM_DATA"
DEFAULT_DATA = Path(__file__).resolve().parents[1].parent / "shared" / "data"
SETS = {
    "kang": "kang_pbmc_ifnb_14k_hvg1000.h5ad",
    "pbmc3k": "pbmc3k_raw_labelled.h5ad",
    "worm": "worm_neuron_4186.h5ad",
    "paul15": "paul2015_myeloid.h5ad",
    "pancreas": "pancreas_4studies.h5ad",
}
#: The sets over which the bars are averaged.
BAR_SETS = ("kang", "pbmc3k", "worm", "paul15")
TRUTH = "cell_type"
N_DIMS = 50
CHUNK_ROWS = 2_000
#: Clusterings of tokens: method, and whether it is told the number of types.
TOKEN_METHODS = {
    "ward": ("ward", True),
    "kmeans": ("kmeans", True),
    "leiden": ("leiden", True),
    "ward_auto": ("ward", False),
    "auto": ("auto", False),
}
DEFAULT_METHOD = "ward"
EMBEDDINGS = ("same", "scanpy")
PREFIX_BITS = (8, 10, 12, 14, 16, 20, 24)
PREFIX_METHODS = ("kmeans", "ward")
#: Ways to rank genes, of which the default takes one for each set.
RANKINGS = ("dispersion", "pearson")
#: Leiden's resolution is searched between these, in this many halvings of its logarithm.
RESOLUTIONS, HALVINGS = (0.02, 8.0), 8
#: Bars: how far the mean ARI of a token method must be from that of k-means on cells.
BARS = {"kmeans": -0.01, DEFAULT_METHOD: 0.03}

Entry = dict[str, Any]


def values(entries: Iterable[Entry], task: str, dataset: str, metric: str = "ari") -> list[float]:
    """A metric of a task on a set, one value a seed."""
    return [entry[metric] for entry in entries if entry["task"] == task and entry["dataset"] == dataset]


def table_of(entries: list[Entry], prefix: str, sets: list[str], metric: str = "ari") -> dict[str, dict[str, float]]:
    """Mean over seeds, by method and set, and ``mean4`` over the sets of the bars where all are there."""
    tasks = dict.fromkeys(entry["task"] for entry in entries if entry["task"].startswith(prefix) and metric in entry)
    out: dict[str, dict[str, float]] = {}
    for task in tasks:
        row = {name: statistics.fmean(values(entries, task, name, metric)) for name in sets}
        if set(BAR_SETS) <= set(sets):
            row["mean4"] = statistics.fmean(row[name] for name in BAR_SETS)
        out[task.removeprefix("tokens/").removeprefix("cells_")] = row
    return out


def judge(ari_tokens: dict[str, dict[str, float]], ari_cells: dict[str, dict[str, float]]) -> dict[str, Any]:
    """The bars: a token method passes if it reaches the stronger k-means on cells plus the bar's margin."""
    bars: dict[str, Any] = {}
    for method, margin in BARS.items():
        if "mean4" not in ari_tokens[method]:
            bars[method] = {"margin": margin, "passed": None, "reason": f"needs the sets {', '.join(BAR_SETS)}"}
            continue
        baselines = {name: ari_cells[f"{name}/kmeans"]["mean4"] for name in EMBEDDINGS}
        found = ari_tokens[method]["mean4"]
        against = {name: {"cells": value, "gain": found - value, "passed": found >= value + margin}
                   for name, value in baselines.items()}  # fmt: skip
        stronger = max(baselines, key=lambda name: baselines[name])
        bars[method] = {
            "margin": margin, "tokens": found, "stronger": stronger, "passed": against[stronger]["passed"],
            "against": against,
        }  # fmt: skip
    return bars


def summarise(entries: list[Entry], sets: list[str]) -> dict[str, Any]:
    ari_tokens, ari_cells = table_of(entries, "tokens/", sets), table_of(entries, "cells_", sets)
    return {"ari_tokens": ari_tokens, "ari_cells": ari_cells, "bars": judge(ari_tokens, ari_cells)}
