"""Simulated atlases for benchmarks, made once and used again."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

CACHE_VARIABLE = "HASHSTREAM_BENCH_DIR"
SHAPE = {"genes": 63_561, "types": 54, "batches": 8, "nnz-per-cell": 600}


def cache_folder() -> Path:
    """Where benchmark data is kept: $HASHSTREAM_BENCH_DIR, or .bench in the working folder."""
    folder = Path(os.environ.get(CACHE_VARIABLE, ".bench"))
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def simulated(cells: int, *, seed: int = 0) -> Path:
    """An atlas of `cells` cells of the Fetal-Atlas's shape; simulated if it is not there yet."""
    path = cache_folder() / f"simulated-{cells}-{seed}.zarr"
    if not path.exists():
        command = [sys.executable, "-m", "hashstream.cli", "--quiet", "--seed", str(seed), "simulate", str(path)]
        command += ["--cells", str(cells), *(part for k, v in SHAPE.items() for part in (f"--{k}", str(v)))]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    return path
