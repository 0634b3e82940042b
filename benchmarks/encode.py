"""Encode against bare reading, on a simulated atlas: ``python -m benchmarks.encode --cells N [--json PATH]``.

Each measurement is a fresh process, and reading and encoding take turns. *read* opens the store and reads the chunks
that are encoded, as HashStream reads them, and does nothing with them. *zarr* reads the same arrays through the zarr
library and its fastest codec pipeline (zarrs, which uses all cores), 32 MiB at a time; of other stores than zarr there
is none. *encode* is what ``hashstream encode --hasher`` does from opening to the finished run. Fitting the hasher,
start-up of Python and compilation of kernels are reported apart.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks._measure import Record, median_elapsed, write_json
from benchmarks._simulated import simulated

READ = """
import json, sys, time
from hashstream.runtime.memory import return_freed_memory
return_freed_memory()
from hashstream.atlas import open_atlas, plan_ranges, stream_chunks
from hashstream.runtime.provenance import peak_rss_bytes
wall, cpu = time.perf_counter(), time.process_time()
atlas = open_atlas(sys.argv[1])
atlas.fingerprint()
values = 0
for _, chunk in stream_chunks(atlas, plan_ranges(atlas)):
    values += chunk.nnz
print(json.dumps({"time_elapsed": time.perf_counter() - wall, "time_cpu": time.process_time() - cpu,
                  "max_rss": peak_rss_bytes(), "values": values}))
"""

#: Both arrays of the matrix, 32 MiB of them at a time.
READ_ZARR = """
import json, sys, time
wall, cpu = time.perf_counter(), time.process_time()
import zarr
from hashstream.runtime.pipeline import use_fastest_pipeline
from hashstream.runtime.provenance import peak_rss_bytes
use_fastest_pipeline()
matrix = zarr.open_group(sys.argv[1], mode="r")["X"]
matrix["indptr"][:]
arrays = matrix["indices"], matrix["data"]
n, chunk = arrays[0].shape[0], arrays[0].chunks[0]
step = max(1, (32 << 20) // sum(array.dtype.itemsize for array in arrays) // chunk) * chunk
for start in range(0, n, step):
    for array in arrays:
        array[start : start + step]
print(json.dumps({"time_elapsed": time.perf_counter() - wall, "time_cpu": time.process_time() - cpu,
                  "max_rss": peak_rss_bytes(), "values": n}))
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cells", type=int, default=500_000)
    parser.add_argument("--atlas", type=Path, help="An AnnData store to use instead of a simulated one.")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--replicates", type=int, default=3)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    atlas = arguments.atlas or simulated(arguments.cells)
    records, summary = measure(atlas, threads=arguments.threads, replicates=arguments.replicates)
    for key, value in summary.items():
        print(f"{key:<28}{value:>14,.3f}" if isinstance(value, float) else f"{key:<28}{value!s:>14}")
    if arguments.json:
        arguments.json.parent.mkdir(parents=True, exist_ok=True)
        write_json(arguments.json, records, summary)


def measure(atlas: Path, *, threads: int, replicates: int) -> tuple[list[Record], dict[str, Any]]:
    records: list[Record] = []
    name = atlas.name
    readers = {"read": READ, "zarr": READ_ZARR} if name.endswith(".zarr") else {"read": READ}
    with tempfile.TemporaryDirectory(prefix="hashstream-bench-") as folder:
        hasher, run = Path(folder) / "hasher", Path(folder) / "run"

        def hashstream(task: str, replicate: int, *more: str, **environment: str) -> dict[str, Any]:
            """One encode in a fresh process; the record holds its stages, without the start of Python."""
            command = [
                sys.executable,
                "-m",
                "hashstream.cli",
                "--quiet",
                "encode",
                str(atlas),
                "-o",
                str(run),
                "--force",
            ]
            command += ["--threads", str(threads), *more]
            begin = time.perf_counter()
            subprocess.run(command, check=True, stdout=subprocess.DEVNULL, env={**os.environ, **environment})
            process = time.perf_counter() - begin
            meta = json.loads((run / "run.json").read_text())
            seconds = sum(v for k, v in meta["seconds"].items() if task == "fit+encode" or k != "fit")
            records.append(Record(task, name, replicate, meta["cpu_seconds"], seconds, meta["peak_rss_bytes"]))
            return {**meta, "process_seconds": process}

        # With an empty cache of compiled kernels, and then with a full one.
        cold = hashstream("fit+encode (kernels not compiled)", 0, NUMBA_CACHE_DIR=str(Path(folder) / "numba"))
        whole = hashstream("fit+encode", 0)
        (run / "hasher").rename(hasher)
        for replicate in range(replicates):
            for task, program in readers.items():
                out = subprocess.run(
                    [sys.executable, "-c", program, str(atlas)], check=True, capture_output=True, text=True
                )
                read = json.loads(out.stdout)
                records.append(Record(task, name, replicate, read["time_cpu"], read["time_elapsed"], read["max_rss"]))
            meta = hashstream("encode", replicate, "--hasher", str(hasher))
    seconds = {task: median_elapsed(records, task) for task in (*readers, "encode")}
    read_s, encode_s = seconds["read"], seconds["encode"]
    through_zarr = (
        {"zarr_seconds": seconds["zarr"], "encode_over_zarr": encode_s / seconds["zarr"]} if "zarr" in seconds else {}
    )
    return records, {
        "atlas": name,
        "cells": meta["n_cells"],
        "stored_values": read["values"],
        "threads": threads,
        "read_seconds": read_s,
        "encode_seconds": encode_s,
        "encode_over_read": encode_s / read_s,
        **through_zarr,
        "cells_per_second": meta["n_cells"] / encode_s,
        "values_per_second": read["values"] / encode_s,
        "peak_rss_mib": max(r.max_rss for r in records if r.task == "encode") / 2**20,
        "projected_peak_mib": meta["projected_peak_bytes"] / 2**20,
        "fit_seconds": whole["seconds"]["fit"],
        "fit_and_encode_peak_rss_mib": whole["peak_rss_bytes"] / 2**20,
        "process_seconds": whole["process_seconds"],
        "compilation_seconds": cold["process_seconds"] - whole["process_seconds"],
    }


if __name__ == "__main__":
    main()
