"""The GPU and the times of its kernels, beside what it can do; numpy and cupy alone."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from benchmarks._gpu_inputs import Sizes, draw_codes, draw_map, draw_weights, simulate_rows

POPCOUNTS_PER_CLOCK = 16  # 32-bit ones, a multiprocessor; CUDA programming guide, throughput of native instructions
FLOATS_PER_CLOCK = 128  # float32 additions or products, a multiprocessor; 64 on 7.5 and 8.0
Record = dict[str, Any]


class Device:
    """The GPU, what it can do, and events around what it does."""

    def __init__(self, cupy: Any) -> None:
        self.cupy = cupy
        device = cupy.cuda.Device()
        attributes = device.attributes
        self.multiprocessors = int(attributes["MultiProcessorCount"])
        self.clock_hz = 1e3 * int(attributes.get("ClockRate", 0))  # 0 where the driver does not say
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


class Timer:
    """Makes a record of each measurement.

    Parameters
    ----------
    device : Device
    copy : float
        Bytes a second that a copy on the device reads and writes.
    replicates : int
    """

    def __init__(self, device: Device, copy: float, replicates: int) -> None:
        self.device, self._copy, self._replicates = device, copy, replicates

    def record(
        self,
        task: str,
        n: int,
        unit: str,
        n_bytes: float,
        work: Callable[[], Any],
        operations: float = 0.0,
        operations_per_s: float = 0.0,
    ) -> Record:
        """Times `work`, which makes `n` of a unit in so many operations, of which the device can do so many."""
        seconds = self.device.seconds(work, self._replicates)
        made = {"task": task, "seconds": seconds, f"{unit}_per_s": n / seconds, "bytes_per_s": n_bytes / seconds}
        made["of_copy"] = n_bytes / seconds / self._copy
        if operations_per_s:
            made["of_arithmetic"] = operations / seconds / operations_per_s
        return made


def time_kernels(device: Device, sizes: Sizes, copy: float, seed: int) -> Iterator[Record]:
    """One record a measurement."""
    timer, rng = Timer(device, copy, sizes.replicates), np.random.default_rng(seed)
    yield from _encode_rows(timer, sizes, rng)
    yield from _pack_bits(timer, sizes, rng)
    yield from _count_buckets(timer, sizes, rng)
    yield from _hamming(timer, sizes, rng)


def _encode_rows(timer: Timer, sizes: Sizes, rng: Any) -> Iterator[Record]:
    from hashstream.kernels import cuda

    rows = [timer.device.cupy.asarray(a) for a in simulate_rows(rng, sizes.cells, sizes.file_genes, sizes.nnz_per_cell)]
    gene_map = draw_map(rng, sizes.file_genes, sizes.genes)
    selected = int((gene_map[timer.device.cupy.asnumpy(rows[1])] >= 0).sum())
    n_read = sum(int(array.nbytes) for array in rows)
    for layers in ((64,), (512,), (256, 64)):
        weights = draw_weights(rng, sizes.genes, layers, 64, ("linear",) * len(layers))
        encoder = cuda.RowEncoder(gene_map, weights)
        out = encoder.empty(sizes.cells)
        dense = sum(a * b for a, b in zip(layers, (*layers[1:], 64), strict=True))
        operations = 2 * (selected * layers[0] + sizes.cells * dense)
        shape = "-".join(map(str, (sizes.genes, *layers, 64)))
        yield timer.record(
            f"encode_rows {sizes.cells} cells, {selected / sizes.cells:.0f} of {sizes.nnz_per_cell} values, {shape}",
            sizes.cells,
            "cells",
            n_read + sum(int(array.nbytes) for array in out),
            lambda encoder=encoder, out=out: encoder.encode(*rows, out),
            operations,
            timer.device.floats_per_s,
        )


def _pack_bits(timer: Timer, sizes: Sizes, rng: Any) -> Iterator[Record]:
    from hashstream.kernels import cuda

    n = sizes.packed_rows
    values = timer.device.cupy.asarray(rng.standard_normal((n, 64), dtype=np.float32))
    yield timer.record(f"pack_bits {n} x 64", n, "codes", values.nbytes + 8 * n, lambda: cuda.pack_bits(values))


def _count_buckets(timer: Timer, sizes: Sizes, rng: Any) -> Iterator[Record]:
    from hashstream.kernels import cuda

    n, cupy = sizes.counted, timer.device.cupy
    codes = cupy.asarray(draw_codes(rng, sizes.buckets, 1)[rng.integers(0, sizes.buckets, n)])
    embedding = cupy.asarray(rng.standard_normal((n, 64), dtype=np.float32))
    mask = np.full(1, 2**64 - 1, np.uint64)
    for n_dims, sums in ((0, None), (64, embedding)):
        table = cuda.new_bucket_arrays(2 * sizes.buckets, 1, n_dims)
        yield timer.record(
            f"count_buckets {n} codes, {sizes.buckets} buckets, {n_dims} dimensions",
            n,
            "codes",
            codes.nbytes + 4 * n * n_dims,
            lambda table=table, sums=sums: cuda.count_buckets(table, codes, sums, mask),
        )


def _hamming(timer: Timer, sizes: Sizes, rng: Any) -> Iterator[Record]:
    from hashstream.kernels import cuda

    cupy = timer.device.cupy
    searches = [(sizes.codes, words, n) for words in (1, 2, 4) for n in sizes.queries] + [(sizes.many_codes, 1, 1)]
    for n, n_words, n_queries in searches:
        codes = cupy.asarray(draw_codes(rng, n, n_words))
        queries = cupy.asarray(draw_codes(rng, n_queries, n_words))
        what = f"{n} codes of {64 * n_words} bits, {n_queries} queries"
        works: dict[str, Callable[[], Any]] = {
            "hamming_topk": lambda codes=codes, queries=queries: cuda.hamming_topk(queries, codes, 10),
            "hamming_histogram": lambda codes=codes, queries=queries: cuda.hamming_histogram(queries, codes),
        }
        for name, work in works.items():
            n_distances, peak = n * n_queries, timer.device.popcounts_per_s
            operations = 2 * n_words * n_distances
            yield timer.record(f"{name} {what}", n_distances, "distances", codes.nbytes, work, operations, peak)
