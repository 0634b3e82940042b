"""The picture of the README: ``python -m benchmarks.plot_encode`` draws ``docs/encode.png``.

From ``benchmarks/results/encode-*.json``, which `benchmarks.encode` writes.
"""

from __future__ import annotations

import json
from pathlib import Path

RESULTS = Path(__file__).parent / "results"
TARGET = Path(__file__).resolve().parents[1] / "docs" / "encode.png"


def points() -> list[tuple[int, float, float]]:
    """Cells, seconds of encode and of bare read, and peak MiB, for each result there is."""
    found = []
    for path in sorted(RESULTS.glob("encode-*.json")):
        summary = json.loads(path.read_text())["summary"]
        found.append((summary["cells"], summary["encode_seconds"], summary["read_seconds"], summary["peak_rss_mib"]))
    return sorted(found)


def main() -> None:
    import matplotlib as mpl

    mpl.use("Agg")
    import matplotlib.pyplot as plt

    cells, encode, read, peak = zip(*points(), strict=True)
    figure, (left, right) = plt.subplots(1, 2, figsize=(9, 3.2), layout="constrained")
    left.loglog(cells, encode, "o-", color="#1f5fa8", label="encode")
    left.loglog(cells, read, "s--", color="#8a8a8a", label="bare read of the same chunks")
    left.set(xlabel="cells x 63,561 genes", ylabel="seconds, 2 cores")
    left.legend(frameon=False)
    right.semilogx(cells, peak, "o-", color="#b3541e")
    right.axhline(1024, color="#8a8a8a", linestyle="--")
    right.annotate("--max-memory 1GiB", (cells[0], 1024), xytext=(0, -12), textcoords="offset points", color="#555555")
    right.set(xlabel="cells x 63,561 genes", ylabel="peak resident MiB", ylim=(0, 1150))
    for axes in (left, right):
        axes.spines[["top", "right"]].set_visible(False)
        axes.set_xticks(cells, [f"{n:,}" for n in cells])
        axes.minorticks_off()
    left.set_yticks([1, 2, 5, 10], ["1", "2", "5", "10"])
    figure.savefig(TARGET, dpi=150)


if __name__ == "__main__":
    main()
