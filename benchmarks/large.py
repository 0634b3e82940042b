"""More than 2^31 stored values: ``python -m benchmarks.large [--values 2200000000] [--json PATH] [--keep]``.

A simulated store is tiled: its chunks are appended to a new store again and again until that holds the values asked
for (about 2 bytes each on disk; removed afterwards). Both stores are encoded with one hasher, each in a fresh process.
Every tile must have the small store's codes, and every bucket that many times its cells and its sums.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq

from benchmarks._measure import Record, write_json
from benchmarks._simulated import simulated
from hashstream.atlas import open_atlas, plan_ranges, stream_chunks
from hashstream.atlas.chunk import CsrChunk
from hashstream.atlas.write import AtlasWriter
from hashstream.runtime.files import remove
from hashstream.runtime.provenance import peak_rss_bytes
from hashstream.runtime.run import BUCKETS, Run

VALUES = 2_200_000_000
CELLS = 500_000


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--values", type=int, default=VALUES, help="Stored values that the large store has at least.")
    parser.add_argument("--cells", type=int, default=CELLS, help="Cells of the simulated store that is tiled.")
    parser.add_argument("--atlas", type=Path, help="A store to tile instead of a simulated one.")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--keep", action="store_true", help="Leave the large store beside the small one.")
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    small = arguments.atlas or simulated(arguments.cells)
    large = small.with_name(f"{small.stem}-tiled.zarr")
    try:
        records, summary = measure(small, large, values=arguments.values, threads=arguments.threads)
    finally:
        if not arguments.keep:
            remove(large)
    for key, value in summary.items():
        print(f"{key:<28}{value:>16,.3f}" if isinstance(value, float) else f"{key:<28}{value!s:>16}")
    if arguments.json:
        arguments.json.parent.mkdir(parents=True, exist_ok=True)
        write_json(arguments.json, records, summary)
    if not all(value for value in summary.values() if isinstance(value, bool)):
        sys.exit("The large store's run is not the small one's, tiled.")


def measure(small: Path, large: Path, *, values: int, threads: int) -> tuple[list[Record], dict[str, Any]]:
    """Tile, encode both, compare."""
    tiles, made = tile(small, large, values)
    records = [made]
    stored = {path: int(open_atlas(path).stores[0].matrix.nnz or 0) for path in (small, large)}
    with tempfile.TemporaryDirectory(prefix="hashstream-bench-") as folder:
        hasher = Path(folder) / "hasher"
        _hashstream("fit", small, "-o", hasher)
        runs = {}
        for path in (small, large):
            run = Path(folder) / path.stem
            _hashstream("encode", path, "-o", run, "--hasher", hasher, "--threads", threads)
            runs[path] = Run.open(run)
            meta = runs[path].meta
            records.append(
                Record(
                    "encode", path.name, 0, meta["cpu_seconds"], sum(meta["seconds"].values()), meta["peak_rss_bytes"]
                )
            )
        same_codes, same_buckets = compare(runs[small], runs[large], tiles)
    _, encode_small, encode_large = records
    return records, {
        "tiles": tiles,
        "threads": threads,
        "cells_small": runs[small].n_cells,
        "cells_large": runs[large].n_cells,
        "values_small": stored[small],
        "values_large": stored[large],
        "more_than_2_to_31": stored[large] > 2**31 and stored[large] == tiles * stored[small],
        "codes_of_every_tile_equal": same_codes,
        "buckets_are_multiples": same_buckets,
        "buckets": runs[large].n_buckets,
        "tile_seconds": made.time_elapsed,
        "encode_small_seconds": encode_small.time_elapsed,
        "encode_large_seconds": encode_large.time_elapsed,
        "million_values_per_s_small": stored[small] / encode_small.time_elapsed / 1e6,
        "million_values_per_s_large": stored[large] / encode_large.time_elapsed / 1e6,
        "peak_rss_small_mib": encode_small.max_rss / 2**20,
        "peak_rss_large_mib": encode_large.max_rss / 2**20,
    }


def tile(small: Path, large: Path, values: int) -> tuple[int, Record]:
    """Write the rows of `small` to `large` as often as it takes; gives the number of tiles."""
    wall, cpu = time.perf_counter(), time.process_time()
    atlas = open_atlas(small)
    store = atlas.stores[0]
    if store.matrix.nnz is None:
        raise SystemExit(f"{small}: a dense matrix; expected a sparse one, as `hashstream simulate` makes it.")
    tiles = -(-values // store.matrix.nnz)
    with AtlasWriter(large, n_genes=store.n_genes, data_dtype=store.matrix.dtype, overwrite=True) as writer:
        for n in range(tiles):
            for _, chunk in stream_chunks(atlas, plan_ranges(atlas)):
                start = n * atlas.n_cells + chunk.start
                writer.append(CsrChunk(start, chunk.indptr, chunk.indices, chunk.data, chunk.n_genes))
        numbers = np.arange(tiles * atlas.n_cells, dtype=np.int32) // atlas.n_cells
        writer.finish(obs={"tile": numbers}, var=store.var)
    seconds, cpu = time.perf_counter() - wall, time.process_time() - cpu
    return tiles, Record("tile", large.name, 0, cpu, seconds, peak_rss_bytes())


def compare(small: Run, large: Run, tiles: int) -> tuple[bool, bool]:
    """Whether every tile's codes are the small run's, and every bucket its multiple in cells and in sums."""
    wanted, n = small.codes(), small.n_cells
    same_codes = large.n_cells == tiles * n and all(
        np.array_equal(large.codes(t * n, (t + 1) * n), wanted) for t in range(tiles)
    )
    a, b = (pq.read_table(run.path / BUCKETS).combine_chunks() for run in (small, large))
    same_buckets = large.bucket_bits == small.bucket_bits and a["code"].equals(b["code"])
    for column in ("count", "embedding_sum"):
        numbers, multiples = (np.array(table[column].to_pylist()) for table in (a, b))
        same_buckets = same_buckets and np.array_equal(tiles * numbers, multiples)
    return same_codes, same_buckets


def _hashstream(*args: object) -> None:
    command = [sys.executable, "-m", "hashstream.cli", "--quiet", *map(str, args)]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)


if __name__ == "__main__":
    main()
