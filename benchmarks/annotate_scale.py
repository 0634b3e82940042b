"""Annotation of a million cells: training on a streamed reference, labels from codes and from the matrix.

``python -m benchmarks.annotate_scale [--reference-cells 500000] [--cells 1000000] [--json PATH]``.

Both atlases are simulated from the same 54 types and 8 batches. Every command is a fresh process; its seconds are those
of the clock from start to end, start-up included.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from benchmarks._quality_page import machine
from benchmarks._simulated import cache_folder
from benchmarks.cluster_scale import BATCHES, TRUTH, TYPES, atlas_of, call

BARS = {"train_s": 600.0, "annotate_s": 5.0, "annotate_over_encode": 1.3, "peak_rss_mib": 1024}


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--reference-cells", type=int, default=500_000)
    parser.add_argument("--cells", type=int, default=1_000_000)
    parser.add_argument("--json", type=Path, help="write the results here")
    options = parser.parse_args(arguments)
    reference, query = atlas_of(options.reference_cells), atlas_of(options.cells)
    hasher, run = cache_folder() / "anchors.hasher", cache_folder() / "anchors.run"
    trained = call("fit", reference, "-o", hasher, "--method", "anchors", "--labels", TRUTH, "--force")
    print("trained", trained, flush=True)
    encoded = call("encode", query, "-o", run, "--hasher", hasher, "--force")
    print("encoded", encoded, flush=True)
    labelled = call("annotate", run, "--hasher", hasher)
    print("labelled", labelled, flush=True)
    scores = call("evaluate", run, "--truth", TRUTH)["label"]
    peaks = {
        name: found["peak_rss_mib"] for name, found in (("train", trained), ("encode", encoded), ("annotate", labelled))
    }
    result: dict[str, Any] = {
        "machine": machine(), "reference_cells": options.reference_cells, "cells": options.cells,
        "types": TYPES, "batches": BATCHES,
        "train_s": trained["wall_seconds"], "encode_s": encoded["wall_seconds"],
        "annotate_s": labelled["wall_seconds"],
        "annotate_over_encode": round(1 + labelled["wall_seconds"] / encoded["wall_seconds"], 3),
        "peak_rss_mib": peaks,
        "accuracy": scores["accuracy"], "macro_f1": scores["macro_f1"],
    }  # fmt: skip
    result["passed"] = {
        name: (max(result[name].values()) if isinstance(result[name], dict) else result[name]) <= bar
        for name, bar in BARS.items()
    }
    print(json.dumps(result, indent=1))
    if options.json is not None:
        options.json.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
