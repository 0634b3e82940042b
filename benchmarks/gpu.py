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
    For Hamming distances: 32-bit population counts by the device's most (16 a clock and multiprocessor). For encode_rows:
    products and sums, rounded apart, by its most (128 a clock and multiprocessor).
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import _bare

ROOT = Path(__file__).resolve().parents[1]
EXIT_WITHOUT_GPU = 2
POPCOUNTS_PER_CLOCK = 16  # 32-bit ones, a multiprocessor; CUDA programming guide, throughput of native instructions
FLOATS_PER_CLOCK = 128  # float32 additions or products, a multiprocessor; 64 on 7.5 and 8.0


@dataclass(frozen=True)
class Sizes:
    """How much is measured."""

    copy_bytes: int = 1 << 30
    cells: int = 100_000
    nnz_per_cell: int = 596
    file_genes: int = 20_000
    genes: int = 2_000
    codes: int = 10_000_000
    many_codes: int = 100_000_000
    queries: tuple[int, ...] = (1, 64, 1000)
    packed_rows: int = 4_000_000
    counted: int = 2_000_000
    buckets: int = 65_536
    checked_rows: int = 300
    checked_codes: int = 20_000
    streamed_cells: int = 500_000
    replicates: int = 7


QUICK = Sizes(copy_bytes=1 << 28, cells=20_000, many_codes=20_000_000, streamed_cells=100_000, replicates=3)


class Device:
    """The GPU, what it can do, and events around what it does."""

    def __init__(self, cupy: Any) -> None:
        self.cupy = cupy
        device = cupy.cuda.Device()
        attributes = device.attributes
        self.multiprocessors = int(attributes["MultiProcessorCount"])
        self.clock_hz = 1e3 * int(attributes["ClockRate"])
        name = cupy.cuda.runtime.getDeviceProperties(device.id)["name"]
        self.name = name.decode() if isinstance(name, bytes) else str(name)
        self.capability = str(device.compute_capability)
        floats = 64 if self.capability in ("75", "80") else FLOATS_PER_CLOCK
        self.popcounts_per_s = POPCOUNTS_PER_CLOCK * self.multiprocessors * self.clock_hz
        self.floats_per_s = floats * self.multiprocessors * self.clock_hz

    def seconds(self, work: Callable[[], Any], replicates: int) -> float:
        """Median seconds of some work, after one run that is not counted."""
        cupy = self.cupy
        work()
        times = []
        for _ in range(replicates):
            start, stop = cupy.cuda.Event(), cupy.cuda.Event()
            start.record()
            work()
            stop.record()
            stop.synchronize()
            times.append(1e-3 * cupy.cuda.get_elapsed_time(start, stop))
        return statistics.median(times)

    def measure_copies(self, n_bytes: int, replicates: int) -> dict[str, float]:
        """Bytes a second: read and written by a copy on the device, and from and to pinned memory."""
        cupy = self.cupy
        source, target = cupy.zeros(n_bytes, np.uint8), cupy.empty(n_bytes, np.uint8)
        pinned = np.frombuffer(cupy.cuda.alloc_pinned_memory(n_bytes), np.uint8, n_bytes)
        stream, address = cupy.cuda.get_current_stream(), pinned.ctypes.data
        up = self.seconds(lambda: target.data.copy_from_host_async(address, n_bytes, stream), replicates)
        down = self.seconds(lambda: target.data.copy_to_host_async(address, n_bytes, stream), replicates)
        across = self.seconds(lambda: cupy.copyto(target, source), replicates)
        return {"device": 2 * n_bytes / across, "to_device": n_bytes / up, "from_device": n_bytes / down}


def simulate_rows(rng: Any, n_rows: int, n_genes: int, nnz: int) -> tuple[Any, Any, Any]:
    """CSR rows of counts: as many distinct rows as are quick to draw, again and again."""
    distinct = min(n_rows, 1000)
    columns = [np.sort(rng.choice(n_genes, nnz, replace=False)) for _ in range(distinct)]
    indices = np.resize(np.concatenate(columns).astype(np.uint16), n_rows * nnz)
    counts = np.minimum(rng.geometric(0.45, n_rows * nnz), 500).astype(np.uint16)
    return np.arange(n_rows + 1, dtype=np.int64) * nnz, indices, counts


def draw_weights(rng: Any, n_genes: int, layers: tuple[int, ...], n_bits: int, activations: tuple[str, ...]) -> Any:
    from hashstream.kernels.encode import EncoderWeights

    shapes = list(zip((n_genes, *layers), layers, strict=False))
    return EncoderWeights(
        cap=np.where(rng.random(n_genes) < 0.5, np.inf, 6 * rng.random(n_genes)),
        weights=tuple(rng.standard_normal(shape) / np.sqrt(shape[0]) for shape in shapes),
        biases=tuple(rng.standard_normal(size) for size in layers),
        activations=activations,
        bit_weight=rng.standard_normal((layers[-1], n_bits)),
        bit_bias=rng.standard_normal(n_bits),
        target_sum=1e4,
    )


def draw_map(rng: Any, n_file_genes: int, n_genes: int) -> Any:
    gene_map = np.full(n_file_genes, -1, np.int32)
    gene_map[rng.choice(n_file_genes, n_genes, replace=False)] = np.arange(n_genes)
    return gene_map


def draw_codes(rng: Any, n: int, n_words: int) -> Any:
    return rng.integers(0, 2**64, (n, n_words), dtype=np.uint64)


# ------------------------------------------------------------------------------------------------------------- checking


def check_kernels(cupy: Any, sizes: Sizes, seed: int) -> dict[str, bool]:
    """Whether each kernel gives the reference's bits, on random inputs of a seed."""
    from hashstream.kernels import cuda, reference

    rng = np.random.default_rng(seed)

    def same(got: Any, expected: Any) -> bool:
        pairs = zip(got, expected, strict=True)
        return all(cupy.asnumpy(a).tobytes() == np.ascontiguousarray(b).tobytes() for a, b in pairs)

    def encode_rows() -> Iterator[bool]:
        cases: list[tuple[tuple[int, ...], tuple[str, ...]]] = [((64,), ("linear",))]
        cases += [((130, 65), ("relu", "tanh")), ((96, 64, 48), ("sigmoid", "relu", "linear"))]
        for layers, activations in cases:
            rows = simulate_rows(rng, sizes.checked_rows, 3000, 400)
            gene_map = draw_map(rng, 3000, 2500)
            weights = draw_weights(rng, 2500, layers, 64 * len(layers) - 1, activations)
            yield same(cuda.encode_rows(*rows, gene_map, weights), reference.encode_rows(*rows, gene_map, weights))

    def pack_bits() -> Iterator[bool]:
        for n_bits in (1, 63, 64, 65, 200):
            values = rng.standard_normal((sizes.checked_rows, n_bits)).astype(np.float32)
            yield same([cuda.pack_bits(values)], [reference.pack_bits(values)])

    def count_buckets() -> Iterator[bool]:
        from hashstream.kernels.buckets import new_bucket_arrays

        for n_words, max_rows in ((1, 4000), (2, 500), (4, 4000)):
            codes = draw_codes(rng, 2000, n_words)[rng.integers(0, 2000, 10 * sizes.checked_rows)]
            embedding = rng.standard_normal((len(codes), 33)).astype(np.float32)
            mask = np.full(n_words, 2**64 - 1, np.uint64)
            got = cuda.new_bucket_arrays(max_rows, n_words, 33, with_halves=True)
            expected = new_bucket_arrays(max_rows, n_words, 33, with_halves=True)
            ends = [
                count(arrays, codes, embedding, mask, first_row=12345)
                for count, arrays in ((cuda.count_buckets, got), (reference.count_buckets, expected))
            ]
            yield ends[0] == ends[1] and same(got[1:], expected[1:])

    def hamming_topk() -> Iterator[bool]:
        for n_words in (1, 2, 3, 4):
            codes, queries = draw_codes(rng, sizes.checked_codes, n_words), draw_codes(rng, 9, n_words)
            codes[:, 0] &= np.uint64(0xFFFF)  # ties
            for k in (1, 100):
                yield same(cuda.hamming_topk(queries, codes, k), reference.hamming_topk(queries, codes, k))
                yield same(cuda.hamming_topk(queries, cupy.asarray(codes)[1:], k),
                           reference.hamming_topk(queries, codes[1:], k))  # fmt: skip

    def hamming_histogram() -> Iterator[bool]:
        for n_words in (1, 2, 3, 4):
            codes, queries = draw_codes(rng, sizes.checked_codes, n_words), draw_codes(rng, 9, n_words)
            distances = reference.hamming_distances(queries, codes)
            counts = [np.bincount(row, minlength=64 * n_words + 1) for row in distances]
            yield same([cuda.hamming_histogram(queries, codes)], [np.array(counts, np.int64)])

    checks = (encode_rows, pack_bits, count_buckets, hamming_topk, hamming_histogram)
    # list: every case is looked at, also after one that differs.
    return {check.__name__: all(list(check())) for check in checks}


# --------------------------------------------------------------------------------------------------------------- timing


def time_kernels(device: Device, sizes: Sizes, copy: float, seed: int) -> Iterator[dict[str, Any]]:
    """One record a measurement."""
    from hashstream.kernels import cuda

    cupy, rng = device.cupy, np.random.default_rng(seed)

    def record(task: str, n: int, unit: str, n_bytes: float, work: Callable[[], Any], **more: float) -> dict[str, Any]:
        seconds = device.seconds(work, sizes.replicates)
        made = {"task": task, "seconds": seconds, f"{unit}_per_s": n / seconds, "bytes_per_s": n_bytes / seconds}
        made["of_copy"] = n_bytes / seconds / copy
        if "operations" in more:
            made["of_arithmetic"] = more["operations"] / seconds / more["operations_per_s"]
        return made

    rows = [cupy.asarray(a) for a in simulate_rows(rng, sizes.cells, sizes.file_genes, sizes.nnz_per_cell)]
    gene_map = draw_map(rng, sizes.file_genes, sizes.genes)
    selected = int((gene_map[cupy.asnumpy(rows[1])] >= 0).sum())
    read = sum(int(array.nbytes) for array in rows)
    for layers in ((64,), (512,), (256, 64)):
        weights = draw_weights(rng, sizes.genes, layers, 64, ("linear",) * len(layers))
        encoder = cuda.RowEncoder(gene_map, weights)
        out = encoder.empty(sizes.cells)
        dense = sum(a * b for a, b in zip(layers, (*layers[1:], 64), strict=True))
        yield record(
            f"encode_rows {sizes.cells} cells, {selected / sizes.cells:.0f} of {sizes.nnz_per_cell} values, "
            + "-".join(map(str, (sizes.genes, *layers, 64))),
            sizes.cells, "cells", read + sum(int(array.nbytes) for array in out),
            lambda encoder=encoder, out=out: encoder.encode(*rows, out),
            operations=2.0 * (selected * layers[0] + sizes.cells * dense), operations_per_s=device.floats_per_s,
        )  # fmt: skip
    del rows, out

    values = cupy.asarray(rng.standard_normal((sizes.packed_rows, 64), dtype=np.float32))
    n_bytes = values.nbytes + 8 * sizes.packed_rows
    yield record(f"pack_bits {values.shape}", sizes.packed_rows, "codes", n_bytes, lambda: cuda.pack_bits(values))
    del values

    keys = draw_codes(rng, sizes.buckets, 1)
    codes = cupy.asarray(keys[rng.integers(0, sizes.buckets, sizes.counted)])
    embedding = cupy.asarray(rng.standard_normal((sizes.counted, 64), dtype=np.float32))
    mask = np.full(1, 2**64 - 1, np.uint64)
    for n_dims, sums in ((0, None), (64, embedding)):
        table = cuda.new_bucket_arrays(2 * sizes.buckets, 1, n_dims)
        yield record(
            f"count_buckets {sizes.counted} codes, {sizes.buckets} buckets, {n_dims} dimensions", sizes.counted, "codes",
            codes.nbytes + (0 if sums is None else sums.nbytes),
            lambda table=table, sums=sums: cuda.count_buckets(table, codes, sums, mask),
        )  # fmt: skip
    del codes, embedding

    searches = [(sizes.codes, words, n) for words in (1, 2, 4) for n in sizes.queries] + [(sizes.many_codes, 1, 1)]
    for n_codes, n_words, n_queries in searches:
        codes, queries = (
            cupy.asarray(draw_codes(rng, n_codes, n_words)),
            cupy.asarray(draw_codes(rng, n_queries, n_words)),
        )
        for kernel in (cuda.hamming_topk, cuda.hamming_histogram):
            k = (10,) if kernel is cuda.hamming_topk else ()
            yield record(
                f"{kernel.__name__} {n_codes} codes of {64 * n_words} bits, {n_queries} queries",
                n_codes * n_queries, "distances", codes.nbytes,
                lambda kernel=kernel, codes=codes, queries=queries, k=k: kernel(queries, codes, *k),
                operations=2.0 * n_words * n_codes * n_queries, operations_per_s=device.popcounts_per_s,
            )  # fmt: skip


# ------------------------------------------------------------------------------------------------------------ streaming


def stream_atlas(sizes: Sizes, seed: int) -> dict[str, Any]:
    """`encode` of a simulated atlas on the CPU and on the GPU, and reading it alone."""
    from hashstream.atlas import open_atlas, plan_ranges, stream_chunks
    from hashstream.atlas.simulate import simulate
    from hashstream.stages.encode import encode
    from hashstream.stages.encode_plan import EncodeSettings
    from hashstream.stages.fit import fit

    made: dict[str, Any] = {"cells": sizes.streamed_cells}
    with tempfile.TemporaryDirectory(prefix="hashstream-gpu-") as name:
        folder = Path(name)
        atlas = simulate(folder / "atlas.zarr", n_cells=sizes.streamed_cells, n_genes=20_000, n_types=30, seed=seed)
        fit(atlas, folder / "hasher", sample_cells=20_000, seed=seed)
        start = time.perf_counter()
        opened = open_atlas(atlas)
        made["values"] = sum(chunk.nnz for _, chunk in stream_chunks(opened, plan_ranges(opened)))
        made["read_s"] = time.perf_counter() - start
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
    # 1 where the device's work hides behind reading altogether.
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
