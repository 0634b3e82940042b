"""Ingest of sources larger than the memory allowed: a CSC and a dense h5ad, each in a process of its own.

``python -m benchmarks.ingest [--gigabytes 4] [--json PATH] [--folder DIR]``. The sources are made as streams in a
temporary folder (which needs about five times their size, and is removed), uncompressed, as AnnData writes them: CSC
with float32 values and int32 rows, dense float32 in one piece. Each is ingested with a memory limit of 1 GiB; the
atlas's shape and number of values, and all values of some hundred rows kept aside when the source was made, must agree.
The largest resident memory is the kernel's count for the process (VmHWM), interpreter and libraries included.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pandas as pd
import zarr

from benchmarks._measure import Record, write_json
from hashstream.atlas.ingest import ingest

MAX_MEMORY_BYTES = 2**30
CSC_GENES, CSC_DENSITY = 30_000, 0.033
DENSE_GENES, DENSE_DENSITY = 20_000, 0.06
BUFFER_VALUES = 4_000_000
SAMPLED_ROWS = 200

Triplets = dict[str, Any]


def _tables(file: h5py.File, n_cells: int, n_genes: int) -> None:
    import anndata

    for name, n, letter in (("obs", n_cells, "c"), ("var", n_genes, "g")):
        anndata.io.write_elem(file, name, pd.DataFrame(index=[f"{letter}{i}" for i in range(n)]))
    file.attrs.update({"encoding-type": "anndata", "encoding-version": "0.1.0"})


def _sample(n_cells: int) -> Any:
    """The rows that are compared: the first, the last, and some between."""
    return np.unique(np.linspace(0, n_cells - 1, SAMPLED_ROWS).astype(np.int64))


def make_csc(path: Path, n_bytes: int, rng: np.random.Generator) -> Triplets:
    """A CSC h5ad of about `n_bytes`, gene by gene; gives what the sampled rows hold."""
    n_cells = int(n_bytes / 8 / (CSC_GENES * CSC_DENSITY))
    popularity = rng.permutation((np.arange(CSC_GENES) + 200.0) ** -0.7)
    share = np.minimum(0.8, popularity / popularity.mean() * CSC_DENSITY)
    rows = _sample(n_cells)
    place = np.full(n_cells, -1, np.int64)
    place[rows] = np.arange(len(rows))
    kept: dict[str, list[Any]] = {"row": [], "gene": [], "value": []}
    pointers = np.zeros(CSC_GENES + 1, np.int64)
    with h5py.File(path, "w") as file:
        _tables(file, n_cells, CSC_GENES)
        group = file.create_group("X")
        group.attrs.update(
            {"encoding-type": "csc_matrix", "encoding-version": "0.1.0", "shape": np.array([n_cells, CSC_GENES])}
        )
        chunk = (1_000_000,)
        data = group.create_dataset("data", (0,), np.float32, maxshape=(None,), chunks=chunk)
        indices = group.create_dataset("indices", (0,), np.int32, maxshape=(None,), chunks=chunk)
        held: list[tuple[Any, Any]] = []
        n_held = 0
        for gene in range(CSC_GENES):
            # Sorted places with steps of at least one: a thinned run of rows without a draw for each row.
            steps = rng.geometric(share[gene], int(1.1 * share[gene] * n_cells) + 100)
            cells = np.cumsum(steps) - 1
            cells = cells[: np.searchsorted(cells, n_cells)].astype(np.int32)
            values = rng.geometric(0.5, len(cells)).astype(np.float32)
            at = place[cells]
            kept["row"].append(at[at >= 0])
            kept["gene"].append(np.full((at >= 0).sum(), gene))
            kept["value"].append(values[at >= 0])
            pointers[gene + 1] = pointers[gene] + len(cells)
            held.append((cells, values))
            n_held += len(cells)
            if n_held > BUFFER_VALUES or gene == CSC_GENES - 1:
                first = pointers[gene + 1] - n_held
                for array, column in ((indices, 0), (data, 1)):
                    array.resize((pointers[gene + 1],))
                    array[first:] = np.concatenate([block[column] for block in held])
                held, n_held = [], 0
        group["indptr"] = pointers
    triplets = {name: np.concatenate(parts) for name, parts in kept.items()}
    return {**triplets, "rows": rows, "shape": (n_cells, CSC_GENES), "nnz": int(pointers[-1])}


def make_dense(path: Path, n_bytes: int, rng: np.random.Generator) -> Triplets:
    """A dense h5ad of about `n_bytes`, some rows at a time; gives what the sampled rows hold."""
    n_cells = int(n_bytes / 4 / DENSE_GENES)
    sampled = _sample(n_cells)
    kept: dict[str, list[Any]] = {"row": [], "gene": [], "value": []}
    nnz = 0
    with h5py.File(path, "w") as file:
        _tables(file, n_cells, DENSE_GENES)
        x = file.create_dataset("X", (n_cells, DENSE_GENES), np.float32)
        x.attrs.update({"encoding-type": "array", "encoding-version": "0.2.0"})
        step = max(1, BUFFER_VALUES // DENSE_GENES)
        for first in range(0, n_cells, step):
            n = min(step, n_cells - first)
            block = np.zeros((n, DENSE_GENES), np.float32)
            flat = np.unique(rng.integers(0, block.size, int(DENSE_DENSITY * block.size)))
            block.ravel()[flat] = rng.geometric(0.5, len(flat))
            nnz += len(flat)
            x[first : first + n] = block
            for i in np.flatnonzero((sampled >= first) & (sampled < first + n)):
                row = block[sampled[i] - first]
                genes = np.flatnonzero(row)
                kept["row"].append(np.full(len(genes), i))
                kept["gene"].append(genes)
                kept["value"].append(row[genes])
    triplets = {name: np.concatenate(parts) for name, parts in kept.items()}
    return {**triplets, "rows": sampled, "shape": (n_cells, DENSE_GENES), "nnz": nnz}


def check(atlas: Path, wanted: Triplets) -> None:
    """Raise AssertionError unless the atlas has the shape, the number of values and the sampled rows of the source."""
    x = zarr.open_group(atlas, mode="r")["X"]
    assert tuple(x.attrs["shape"]) == wanted["shape"]
    assert x["data"].shape == (wanted["nnz"],)
    order = np.lexsort((wanted["gene"], wanted["row"]))
    bounds = np.searchsorted(wanted["row"][order], np.arange(len(wanted["rows"]) + 1))
    for i, row in enumerate(wanted["rows"].tolist()):
        a, b = x["indptr"][row : row + 2]
        here = order[bounds[i] : bounds[i + 1]]
        np.testing.assert_array_equal(x["indices"][a:b], wanted["gene"][here])
        np.testing.assert_array_equal(x["data"][a:b], wanted["value"][here])


def peak_bytes() -> int:
    """Largest resident memory of this process so far; unlike ru_maxrss it does not begin with the parent's."""
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
    return int(line.split()[1]) * 1024


def _child(source: Path, target: Path) -> None:
    cpu, elapsed = time.process_time(), time.perf_counter()
    report = ingest(source, target, max_memory_bytes=MAX_MEMORY_BYTES)
    elapsed, cpu = time.perf_counter() - elapsed, time.process_time() - cpu
    print(json.dumps({"time_cpu": cpu, "time_elapsed": elapsed, "max_rss": peak_bytes(), "nnz": report["nnz"]}))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--gigabytes", type=float, default=4.0, help="size of each source")
    parser.add_argument("--json", type=Path, help="write the records here")
    parser.add_argument("--folder", type=Path, help="where the temporary folder is made")
    parser.add_argument("--only", choices=["csc", "dense"])
    parser.add_argument("--child", type=Path, nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child is not None:
        _child(*options.child)
        return
    records: list[Record] = []
    summary: dict[str, Any] = {"max_memory_bytes": MAX_MEMORY_BYTES}
    for name, make in (("csc", make_csc), ("dense", make_dense)):
        if options.only not in (None, name):
            continue
        with tempfile.TemporaryDirectory(dir=options.folder) as folder:
            source, target = Path(folder) / f"{name}.h5ad", Path(folder) / "atlas.zarr"
            wanted = make(source, int(options.gigabytes * 1e9), np.random.default_rng(0))
            command = [sys.executable, "-m", "benchmarks.ingest", "--child", str(source), str(target)]
            done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
            found = json.loads(done.stdout)
            nnz = found.pop("nnz")
            check(target, wanted)
            dataset = (
                f"{name} h5ad, {source.stat().st_size / 1e9:.2f} GB, {wanted['shape'][0]:,} x {wanted['shape'][1]:,}"
            )
            records.append(Record("ingest", dataset, 0, **found))
            summary[f"{name}_source_bytes"] = source.stat().st_size
            summary[f"{name}_nnz"] = nnz
            summary[f"{name}_million_nnz_per_s"] = nnz / found["time_elapsed"] / 1e6
            summary[f"{name}_million_nnz_per_cpu_s"] = nnz / found["time_cpu"] / 1e6
            summary[f"{name}_within_limit"] = found["max_rss"] <= MAX_MEMORY_BYTES
            print(
                f"{dataset}: {found['time_elapsed']:.1f} s ({found['time_cpu']:.1f} CPU-s), peak "
                f"{found['max_rss'] / 2**20:.0f} MiB of {MAX_MEMORY_BYTES / 2**20:.0f}, {nnz:,} non-zeros, "
                f"{nnz / found['time_elapsed'] / 1e6:.1f} million/s"
            )
    if options.json is not None:
        write_json(options.json, records, summary)


if __name__ == "__main__":
    main()
