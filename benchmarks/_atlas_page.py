"""The picture and the page of the atlas benchmark: `docs/atlas.png`, `docs/atlas.md`."""

from __future__ import annotations

import os
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from benchmarks._quality_page import bar_grid, grid
from hashstream.runtime.provenance import versions

JOB = ("fit and encode together", "cluster, Leiden")


def series(result: dict[str, Any]) -> dict[str, list[tuple[int, float, float]]]:
    """Cells, seconds and peak MiB of each method; HashStream's are those of what the peers do."""
    found: dict[str, list[tuple[int, float, float]]] = {"HashStream": []}
    for job in sorted(result["jobs"], key=lambda one: one["cells"]):
        stages = [job["stages"][name] for name in JOB]
        seconds = sum(stage["wall_s"] for stage in stages)
        found["HashStream"].append((job["cells"], seconds, max(stage["peak_rss_mib"] for stage in stages)))
    for row in result["peers"]:
        if row["ended"] == "done":
            found.setdefault(row["peer"], []).append((row["cells"], row["wall_s"], row["peak_rss_mib"]))
    return found


def draw(path: Path, result: dict[str, Any]) -> None:
    """Seconds and memory against cells, both axes logarithmic."""
    import matplotlib as mpl

    mpl.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(1, 2, figsize=(9, 3.4), layout="constrained")
    for name, points in series(result).items():
        cells, seconds, peaks = zip(*points, strict=True)
        style = {"color": "#1f5fa8", "linewidth": 2.2} if name == "HashStream" else {"linestyle": "--"}
        axes[0].loglog(cells, seconds, marker="o", label=name, **style)
        axes[1].loglog(cells, peaks, marker="o", label=name, **style)
    axes[0].set(xlabel="cells x 63,561 genes", ylabel="seconds, 2 cores")
    axes[1].set(xlabel="cells x 63,561 genes", ylabel="peak resident MiB")
    axes[0].legend(frameon=False, fontsize=8)
    for one in axes:
        one.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=150)


def write_markdown(path: Path, result: dict[str, Any]) -> None:
    """Writes the page of results."""
    found = versions()
    jobs = sorted(result["jobs"], key=lambda one: one["cells"])
    stages = grid(
        ["cells", "stage", "seconds", "processor seconds", "peak MiB", "read MiB", "written MiB"],
        [
            [
                f"{job['cells']:,}", name, f"{stage['wall_s']:.1f}", f"{stage['cpu_s']:.1f}",
                f"{stage['peak_rss_mib']:.0f}", f"{stage['read_mib']:,.0f}", f"{stage['written_mib']:,.0f}",
            ]
            for job in jobs
            for name, stage in job["stages"].items()
        ],
    )  # fmt: skip
    quality = grid(
        [
            "cells",
            "ARI of 54 clusters",
            "ARI of Leiden communities",
            "communities",
            "cells labelled",
            "right of these",
            "encode / read through zarr",
            "encode / read here",
        ],
        [
            [
                f"{job['cells']:,}",
                f"{job['cluster']['ari']:.3f}",
                f"{job['communities']['ari']:.3f}",
                f"{job['communities']['n_clusters']}",
                *(
                    "" if job["label"] is None else f"{job['label'][name]:.3f}"
                    for name in ("labelled", "accuracy_of_labelled")
                ),
                f"{job['encode_over_zarr']:.2f}",
                f"{job['encode_over_read']:.2f}",
            ]
            for job in jobs
        ],
    )
    others = grid(
        ["peer", "cells", "ended by", "seconds", "peak MiB", "ARI"],
        [
            [
                row["peer"], f"{row['cells']:,}", row["ended"], f"{row['wall_s']:.0f}", f"{row['peak_rss_mib']:,.0f}",
                f"{row['ari']:.3f}" if "ari" in row else "",
            ]
            for row in result["peers"]
        ],
    )  # fmt: skip
    against = grid(
        ["cells", "genes", "seed", "seconds", "peak MiB", "ARI", "communities"],
        [
            [
                f"{row['cells']:,}", f"{row['n_genes']:,}", str(row["seed"]), f"{row['wall_s']:.1f}",
                f"{row['peak_rss_mib']:.0f}", f"{row['ari']:.3f}", str(row["n_clusters"]),
            ]
            for row in result["compared"]
        ],
    )  # fmt: skip
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    lines = [
        "# The whole job at the Fetal-Atlas's shape",
        "",
        "This page is written by",
        "",
        "```",
        result["command"],
        "```",
        "",
        f"on {datetime.now(UTC):%Y-%m-%d}, {result['machine']}, {memory:.0f} GiB; Python {found['python']}, numpy "
        f"{found['numpy']}. Simulated: 63,561 genes, 54 types, 8 batches, about 600 genes seen a cell. Every stage is "
        "a fresh process, start-up included; reading and encoding take turns, and the fastest of each counts. Bare "
        "reading is that of the zarr library with the zarrs pipeline; HashStream's own reading stands beside it. The "
        "default clustering is told the number of types; Leiden communities are not, as scanpy's are not. Labels come "
        "from the run of a labelled atlas of 100,000 other cells. A peer normalises, selects genes, takes 50 "
        "components and clusters; it stops at its first atlas that takes longer or more memory than it may."
        f"{result['peers_note']}",
        "",
        "![Seconds and peak memory against the number of cells](atlas.png)",
        "",
        "## Bars",
        "",
        bar_grid(result["bars"]),
        "",
        "## HashStream",
        "",
        stages,
        "",
        quality,
        "",
        "## Peers",
        "",
        others if result["peers"] else "Not run here.",
        "",
        "## Beside scanpy",
        "",
        "On the largest atlas that scanpy manages in memory: `encode`, which fits a hasher first, and `cluster "
        "--method leiden`, by default and with more genes.",
        "",
        against if result["compared"] else "Not run here.",
        "",
    ]
    path.write_text("\n".join(lines))
