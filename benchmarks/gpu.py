"""The CUDA kernels on the GPU at hand: ``python -m benchmarks.gpu [--json PATH] [--quick]``, under nine minutes.

First every kernel is held to `kernels/reference.py` on fresh random inputs (the seed is printed), then timed with CUDA
events beside what the device can do: bytes a second of a copy that is measured here, and the arithmetic that its clock
allows. That takes nothing but numpy and cupy, and runs from a checkout. Where hashstream is installed with its
libraries, a simulated atlas is then streamed by ``encode`` on the CPU and on the GPU, with the same codes.

Without a GPU it says so and ends with exit code 2. The tests run the first part with small data on an emulated device.

What the numbers are
--------------------
seconds
    Median of the runs, from event to event: host code between launches counts.
bytes_per_s
    What a kernel must read and write at least, once each, by its time; `of_copy` is its share of the copy's.
of_arithmetic
    For Hamming distances: 32-bit population counts by the device's most (16 a clock and multiprocessor). For
    encode_rows: products and sums, rounded apart, by its most (128 a clock and multiprocessor).
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import _bare
from benchmarks._gpu_checks import check_kernels
from benchmarks._gpu_inputs import QUICK, Sizes
from benchmarks._gpu_times import Device, time_kernels

ROOT = Path(__file__).resolve().parents[1]
EXIT_WITHOUT_GPU = 2


def stream_atlas(sizes: Sizes, seed: int) -> dict[str, Any]:
    """`encode` of a simulated atlas on the CPU and on the GPU, and reading it alone."""
    from hashstream.atlas import CsrChunk, open_atlas, plan_ranges, stream_chunks
    from hashstream.atlas.simulate import simulate
    from hashstream.stages.encode import encode
    from hashstream.stages.encode_device import encode_on_device
    from hashstream.stages.encode_plan import EncodeSettings
    from hashstream.stages.fit import fit

    def copy(chunk: CsrChunk) -> CsrChunk:
        return CsrChunk(chunk.start, *(a.copy() for a in (chunk.indptr, chunk.indices, chunk.data)), chunk.n_genes)

    made: dict[str, Any] = {"cells": sizes.streamed_cells}
    with tempfile.TemporaryDirectory(prefix="hashstream-gpu-") as name:
        folder = Path(name)
        atlas = simulate(folder / "atlas.zarr", n_cells=sizes.streamed_cells, n_genes=20_000, n_types=30, seed=seed)
        hasher = fit(atlas, folder / "hasher", sample_cells=20_000, seed=seed)
        start = time.perf_counter()
        opened = open_atlas(atlas)
        made["values"] = sum(chunk.nnz for _, chunk in stream_chunks(opened, plan_ranges(opened)))
        made["read_s"] = time.perf_counter() - start
        # The device alone, with the chunks in memory: copies to it, kernels, copies back.
        chunks = [(rows, copy(chunk)) for rows, chunk in stream_chunks(opened, plan_ranges(opened))]
        bound = [hasher.bind(store.var, where=str(store.path)) for store in opened.stores]
        start = time.perf_counter()
        made["device_cells"] = sum(len(rows.flags) for _, rows in encode_on_device(chunks, bound, max_bytes=8 << 30))
        made["device_s"] = time.perf_counter() - start
        del chunks
        runs = {}
        for device in ("cpu", "cuda"):
            cpu = time.process_time()
            settings = EncodeSettings(device=device, max_memory="8GiB")
            run = encode(atlas, folder / device, hasher=folder / "hasher", settings=settings)
            assert run is not None
            made[device] = {"stream_s": run.meta["seconds"]["stream"], "cpu_s": time.process_time() - cpu}
            made[device]["cells_per_s"] = sizes.streamed_cells / made[device]["stream_s"]
            runs[device] = run.codes()
        flipped = np.bitwise_count(runs["cpu"] ^ runs["cuda"]).sum()
        made["flipped_bits"] = int(flipped)
        made["flipped_share"] = float(flipped / (64 * runs["cpu"].size))
    # 1 where the device's work hides behind reading, or reading behind it, altogether; 0 where one waits for the other.
    hidden = made["read_s"] + made["device_s"] - made["cuda"]["stream_s"]
    made["overlap"] = hidden / min(made["read_s"], made["device_s"])
    made["cuda_vs_read"] = made["cuda"]["stream_s"] / made["read_s"]
    made["cuda_vs_cpu"] = made["cpu"]["stream_s"] / made["cuda"]["stream_s"]
    return made


def measure(cupy: Any, sizes: Sizes, *, seed: int, stream: bool, seconds: float) -> dict[str, Any]:
    """Everything, as far as the time allows."""
    begin = time.perf_counter()
    device = Device(cupy)
    print(f"{device.name}, compute capability {device.capability}, {device.multiprocessors} multiprocessors")
    copies = device.measure_copies(sizes.copy_bytes, sizes.replicates)
    for name, rate in copies.items():
        print(f"copy {name:<12} {rate / 1e9:>10.1f} GB/s")
    checks = check_kernels(cupy, sizes, seed)
    for name, equal in checks.items():
        print(f"{name:<18} {'equals the reference' if equal else 'DIFFERS from the reference'}")
    records, left_out = [], False
    for record in time_kernels(device, sizes, copies["device"], seed):
        records.append(record)
        rate = next(f"{value:.3g} {key[:-6]}/s" for key, value in record.items() if key.endswith("_per_s"))
        share = f"{100 * record['of_arithmetic']:5.1f}% of arithmetic" if "of_arithmetic" in record else ""
        print(
            f"{record['task']}: {1e3 * record['seconds']:.3f} ms, {rate}, {record['bytes_per_s'] / 1e9:.1f} GB/s, "
            f"{100 * record['of_copy']:.1f}% of a copy {share}"
        )
        if time.perf_counter() - begin > seconds:
            left_out = True
            print("the time is up: further measurements are left out", file=sys.stderr)
            break
    streamed = None
    if stream and not left_out:
        streamed = stream_atlas(sizes, seed)
        print(json.dumps(streamed, indent=1))
    return {
        "device": device.name,
        "compute_capability": device.capability,
        "multiprocessors": device.multiprocessors,
        "clock_hz": device.clock_hz,
        "cupy": cupy.__version__,
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "seed": seed,
        "sizes": asdict(sizes),
        "copy_bytes_per_s": copies,
        "popcounts_per_s": device.popcounts_per_s,
        "floats_per_s": device.floats_per_s,
        "equal_to_reference": checks,
        "kernels": records,
        "left_out": left_out,
        "stream": streamed,
    }


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, default=ROOT / "benchmarks" / "results" / "gpu.json")
    parser.add_argument("--quick", action="store_true", help="less data and fewer repeats")
    parser.add_argument("--seed", type=int, help="of the inputs; by default another each time")
    parser.add_argument("--seconds", type=float, default=240.0, help="no kernel is timed after these")
    options = parser.parse_args(arguments)
    _bare.make_importable()
    from hashstream.kernels.cuda._device import cupy_module

    try:
        cupy = cupy_module()
    except (ImportError, RuntimeError) as error:
        print(f"benchmarks.gpu: {error} Nothing was measured.", file=sys.stderr)
        return EXIT_WITHOUT_GPU
    seed = int(np.random.SeedSequence().entropy % 2**32) if options.seed is None else options.seed
    print(f"seed {seed}")
    stream = _bare.has_cpu_kernels()
    if not stream:
        print("hashstream is not installed with its libraries: no atlas is streamed", file=sys.stderr)
    sizes = QUICK if options.quick else Sizes()
    result = measure(cupy, sizes, seed=seed, stream=stream, seconds=options.seconds)
    options.json.parent.mkdir(parents=True, exist_ok=True)
    options.json.write_text(json.dumps(result, indent=1) + "\n")
    return 0 if all(result["equal_to_reference"].values()) else 1


if __name__ == "__main__":
    sys.exit(main())
