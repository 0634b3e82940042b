"""Exact Hamming search against faiss, usearch and numpy, on one thread each.

``python -m benchmarks.search [--cells 10000000] [--json PATH]``.

Every ratio is the other library's median time divided by ours, from calls that took turns. Before they are timed, the
distances found are held against faiss's, and for a few queries rows and distances against the NumPy reference.

What is compared
----------------
topk64_vs_faiss, topk128_vs_faiss, topk256_vs_faiss
    The 10 nearest of ``--cells`` uniform codes for a block of 128 queries. Theirs: `IndexBinaryFlat.search`.
single_query_vs_faiss
    One query of 64 bits. Ours scans, too: nothing is made before.
single_query_index_vs_faiss
    One query after the other, of 64 bits, among the same uniform codes, which suit an index least. Ours: `MultiIndex`.
    `single_query_index_build_s` says what making it takes.
multi_index_vs_faiss
    128 cells that are not in the index, among the codes of ``--cells`` encoded cells of a simulated atlas. Ours:
    `MultiIndex`, theirs: `IndexBinaryFlat`. Making either is not in the time; `build_s` says what ours takes.
multi_index_4096q_vs_faiss
    4,096 of them at once. An index shares what it reads among queries; `hashstream search` gives it up to 32,768.
two_threads_vs_one
    Ours with two threads, for the block of 128 queries of 64 bits: one thread's time divided by two's.

Further ratios have a number of codes, of queries or the kind of codes in their names. `IndexBinaryMultiHash` is given
the flips that make it exact for half of the queries; what it finds is scored (`multihash_recall`). It, usearch and
numpy are slow, so they are asked where that takes seconds.
"""

from __future__ import annotations

import argparse
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from itertools import cycle
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from threadpoolctl import threadpool_limits

from benchmarks._measure import Record, interleave, median_elapsed, write_json
from benchmarks._quality_page import machine
from benchmarks._simulated import cache_folder
from hashstream import kernels
from hashstream.kernels import reference
from hashstream.runtime.provenance import peak_rss_bytes
from hashstream.runtime.run import Run

K, BLOCK, MANY = 10, 128, 4096
WIDTHS = (64, 128, 256)
FEW_HASHED = 8  # queries for faiss's hash tables
FEWER = 10  # the smaller set has so many times fewer codes
SHAPE = {"genes": 3000, "types": 54, "batches": 8, "nnz-per-cell": 60}
Codes = NDArray[np.uint64]
Found = tuple[list[Record], dict[str, float]]


def atlas_codes(cells: int, bits: int, *, seed: int = 0) -> Codes:
    """Codes of a simulated atlas; simulated and encoded by the command line if they are not there yet."""
    path = cache_folder() / f"codes-{cells}-{bits}-{seed}.npy"
    if not path.exists():
        atlas, run = path.with_suffix(".zarr"), path.with_suffix(".run")
        hashstream = [sys.executable, "-m", "hashstream.cli", "--quiet", "--seed", str(seed)]
        shape = [part for k, v in SHAPE.items() for part in (f"--{k}", str(v))]
        for command in (
            ["simulate", str(atlas), "--cells", str(cells), *shape, "--force"],
            ["encode", str(atlas), "-o", str(run), "--bits", str(bits), "--max-memory", "3GiB", "--force"],
        ):
            subprocess.run([*hashstream, *command], check=True, stdout=subprocess.DEVNULL)
        np.save(path, Run.open(run).codes())
        shutil.rmtree(atlas)
        shutil.rmtree(run)
    return np.load(path)


def held_out(codes: Codes, n: int, seed: int) -> tuple[Codes, Codes]:
    """Codes of n cells drawn at random, and those of all others."""
    drawn = np.zeros(len(codes), bool)
    drawn[np.random.default_rng(seed).choice(len(codes), n, replace=False)] = True
    return codes[drawn], codes[~drawn]


def flat_index(codes: Codes) -> Any:
    import faiss

    index = faiss.IndexBinaryFlat(64 * codes.shape[1])
    index.add(codes.view(np.uint8))
    return index


def multi_hash(codes: Codes, distance: int) -> tuple[Any, int]:
    """faiss's tables of four substrings, and the flips with which they find what is as near as a distance."""
    import faiss

    index = faiss.IndexBinaryMultiHash(64, 4, 16)
    index.nflip = distance // 4
    index.add(codes.view(np.uint8))
    return index, index.nflip


def by_numpy(queries: Codes, codes: Codes) -> NDArray[np.intp]:
    """The nearest of each query, one query at a time, ties as they come."""
    rows = [np.bitwise_count(codes ^ query).sum(axis=1, dtype=np.uint16) for query in queries]
    return np.array([np.argpartition(distances, K)[:K] for distances in rows])


def by_usearch(queries: Codes, codes: Codes) -> NDArray[Any]:
    from usearch.index import MetricKind, search

    found = search(codes.view(np.uint8), queries.view(np.uint8), K, MetricKind.Hamming, exact=True, threads=1)
    return np.asarray(found.distances)


def check(ours: Any, queries: Codes, codes: Codes, theirs: Any, n_rows: int = 2) -> None:
    """Distances as faiss has them; rows and distances of the first queries as the reference has them."""
    np.testing.assert_array_equal(ours[0], theirs[0])
    for mine, expected in zip(ours, reference.hamming_topk(queries[:n_rows], codes, K), strict=True):
        np.testing.assert_array_equal(mine[:n_rows], expected)


def size(n: int) -> str:
    return f"{n // 1_000_000}M" if n % 1_000_000 == 0 else f"{n // 1000}k"


def bench_topk(codes: Codes, queries: Codes, kind: str, *, replicates: int, slow_too: bool) -> Found:
    """One query, a block and all queries, by scanning."""
    n, bits = len(codes), 64 * codes.shape[1]
    index = flat_index(codes)
    records: list[Record] = []
    ratios: dict[str, float] = {}
    for n_queries in (1, BLOCK, len(queries)):
        some = queries[:n_queries]
        task = f"topk{bits}_{kind}_{size(n)}_{n_queries}q"
        contestants: dict[str, Callable[[], Any]] = {
            "hashstream": lambda some=some: kernels.hamming_topk(some, codes, K),
            "faiss": lambda some=some: index.search(some.view(np.uint8), K),
        }
        check(contestants["hashstream"](), some, codes, contestants["faiss"](), n_rows=min(2, n_queries))
        if n_queries == 1 or (slow_too and n_queries == BLOCK):
            contestants["numpy"] = lambda some=some: by_numpy(some, codes)
        if slow_too and n_queries == BLOCK:
            contestants["usearch"] = lambda some=some: by_usearch(some, codes)
        few = replicates if n_queries <= BLOCK and "usearch" not in contestants else 1
        few = 3 * replicates if n_queries == 1 else few
        dataset = f"{n} {kind} codes of {bits} bits, {n_queries} queries, k={K}"
        records += interleave(task, dataset, contestants, replicates=few)
        seconds = median_elapsed(records, f"{task}/hashstream")
        ratios[f"{task}_gcodes_per_s"] = n * n_queries / seconds / 1e9
        for other in contestants:
            if other != "hashstream":
                ratios[f"{task}_vs_{other}"] = median_elapsed(records, f"{task}/{other}") / seconds
    return records, ratios


def bench_threads(codes: Codes, queries: Codes, *, replicates: int) -> Found:
    """The same block on one thread and on two."""
    dataset = f"{len(codes)} uniform codes of 64 bits, {len(queries)} queries"
    contestants = {
        "one": lambda: kernels.hamming_topk(queries, codes, K, n_threads=1),
        "two": lambda: kernels.hamming_topk(queries, codes, K, n_threads=2),
    }
    records = interleave("threads", dataset, contestants, replicates=5 * replicates)
    one, two = (median_elapsed(records, f"threads/{name}") for name in contestants)
    return records, {"two_threads_vs_one": one / two}


def one_by_one(search: Callable[[Codes], Any], queries: Codes) -> Callable[[], Any]:
    """Searches for another query each time: what one query reads would be in the cache when it came again."""
    turns = cycle(range(len(queries)))

    def call() -> Any:
        i = next(turns)
        return search(queries[i : i + 1])

    return call


def bench_single(codes: Codes, queries: Codes, *, replicates: int) -> Found:
    """One query after the other by the multi-index, on uniform codes."""
    flat = flat_index(codes)
    begin = time.perf_counter()
    index = kernels.MultiIndex(codes)
    build = time.perf_counter() - begin
    check(index.search(queries, K), queries, codes, flat.search(queries.view(np.uint8), K))
    contestants = {
        "hashstream": one_by_one(lambda query: index.search(query, K), queries),
        "scan": one_by_one(lambda query: kernels.hamming_topk(query, codes, K), queries),
        "faiss": one_by_one(lambda query: flat.search(query.view(np.uint8), K), queries),
    }
    dataset = f"{len(codes)} uniform codes of 64 bits, one query after the other, k={K}"
    records = interleave("single_query_index", dataset, contestants, replicates=3 * replicates)
    seconds = median_elapsed(records, "single_query_index/hashstream")
    return records, {
        "single_query_index_vs_faiss": median_elapsed(records, "single_query_index/faiss") / seconds,
        "single_query_index_vs_scan": median_elapsed(records, "single_query_index/scan") / seconds,
        "single_query_index_build_s": build,
    }


def bench_index(codes: Codes, many: Codes, *, replicates: int) -> Found:
    """The multi-index against scans and faiss's hash tables, on codes of an atlas."""
    queries = many[:BLOCK]
    flat = flat_index(codes)
    begin = time.perf_counter()
    index = kernels.MultiIndex(codes)
    build = time.perf_counter() - begin
    theirs = flat.search(queries.view(np.uint8), K)
    ours = index.search(queries, K)
    check(ours, queries, codes, theirs)
    contestants: dict[str, Callable[[], Any]] = {
        "hashstream": lambda: index.search(queries, K),
        "scan": lambda: kernels.hamming_topk(queries, codes, K),
        "faiss": lambda: flat.search(queries.view(np.uint8), K),
    }
    task = "multi_index"
    dataset = f"{len(codes)} atlas codes of 64 bits, {index.n_distinct} distinct, {len(queries)} queries, k={K}"
    records = interleave(task, dataset, contestants, replicates=replicates)
    all_at_once: dict[str, Callable[[], Any]] = {
        "hashstream": lambda: index.search(many, K),
        "faiss": lambda: flat.search(many.view(np.uint8), K),
    }
    check(all_at_once["hashstream"](), many, codes, all_at_once["faiss"]())
    dataset = f"{len(codes)} atlas codes of 64 bits, {len(many)} queries, k={K}"
    records += interleave("multi_index_many", dataset, all_at_once, replicates=1 + replicates // 3)
    of_many = median_elapsed(records, "multi_index_many/hashstream")
    one = {
        "hashstream": one_by_one(lambda query: index.search(query, K), queries),
        "faiss": one_by_one(lambda query: flat.search(query.view(np.uint8), K), queries),
    }
    records += interleave("multi_index_1q", dataset, one, replicates=3 * replicates)
    few = queries[:FEW_HASHED]
    hashed, flips = multi_hash(codes, int(np.median(ours[0][:, -1])))
    found = hashed.search(few.view(np.uint8), K)
    both = {"hashstream": lambda: index.search(few, K), "multihash": lambda: hashed.search(few.view(np.uint8), K)}
    records += interleave("multihash", dataset, both, replicates=1)
    seconds = median_elapsed(records, f"{task}/hashstream")
    plan = kernels.plan_search(queries, codes, K, n_queries=len(codes))
    return records, {
        **{
            f"multi_index_vs_{other}": median_elapsed(records, f"{task}/{other}") / seconds
            for other in ("faiss", "scan")
        },
        f"multi_index_{len(many)}q_vs_faiss": median_elapsed(records, "multi_index_many/faiss") / of_many,
        f"multi_index_{len(many)}q_us_per_query": of_many / len(many) * 1e6,
        "multi_index_single_query_vs_faiss": median_elapsed(records, "multi_index_1q/faiss")
        / median_elapsed(records, "multi_index_1q/hashstream"),
        "multi_index_us_per_query": seconds / len(queries) * 1e6,
        "multi_index_build_s": build,
        "multi_index_bytes_per_code": index.nbytes / len(codes),
        "multi_index_median_distance_of_kth": float(np.median(ours[0][:, -1])),
        "multi_index_planned_vs_scan": plan.scan / plan.index,
        "multi_index_vs_multihash": median_elapsed(records, "multihash/multihash")
        / median_elapsed(records, "multihash/hashstream"),
        "multihash_flips": float(flips),
        "multihash_recall": float((found[0] == ours[0][: len(few)]).mean()),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, help="write all times and the ratios here")
    parser.add_argument("--cells", type=int, default=10_000_000, help="codes of the larger set")
    parser.add_argument("--queries", type=int, default=1000, help="queries of the largest block")
    parser.add_argument("--replicates", type=int, default=5)
    options = parser.parse_args()
    import faiss

    faiss.omp_set_num_threads(1)
    begin = time.perf_counter()
    n, fewer = options.cells, options.cells // FEWER
    records: list[Record] = []
    summary: dict[str, Any] = {}
    shown: set[str] = set()

    def show(values: dict[str, Any]) -> None:
        for name, value in values.items():
            print(f"{name:50} {value:16.3f}", flush=True)
            shown.add(name)

    def add(found: Found) -> None:
        nonlocal records, summary
        records += found[0]
        summary |= found[1]
        show(found[1])

    with threadpool_limits(1):
        # First, while little memory is taken: two more processes simulate and encode.
        atlas, wide = atlas_codes(n + MANY, 64), atlas_codes(fewer + options.queries, 256)
        queries, codes = held_out(atlas, MANY, seed=1)
        del atlas
        add(bench_index(codes, queries, replicates=options.replicates))
        add(bench_topk(codes, queries[:BLOCK], "atlas", replicates=options.replicates, slow_too=False))
        for bits in WIDTHS:
            # A prefix of the code is the code of the leading components.
            queries, codes = held_out(np.ascontiguousarray(wide[:, : bits // 64]), options.queries, seed=1)
            add(bench_topk(codes, queries, "atlas", replicates=options.replicates, slow_too=False))
        rng = np.random.default_rng(2)
        for bits in WIDTHS:
            queries = rng.integers(0, 2**64, (options.queries, bits // 64), dtype=np.uint64)
            codes = rng.integers(0, 2**64, (n, bits // 64), dtype=np.uint64)
            add(bench_topk(codes[:fewer], queries, "uniform", replicates=options.replicates, slow_too=True))
            add(bench_topk(codes, queries, "uniform", replicates=options.replicates, slow_too=False))
            if bits == 64:
                add(bench_threads(codes, queries[:BLOCK], replicates=options.replicates))
                add(bench_single(codes, queries[:BLOCK], replicates=options.replicates))
    summary |= {f"topk{bits}_vs_faiss": summary[f"topk{bits}_uniform_{size(n)}_{BLOCK}q_vs_faiss"] for bits in WIDTHS}
    summary["single_query_vs_faiss"] = summary[f"topk64_uniform_{size(n)}_1q_vs_faiss"]
    summary |= {"cells": n, "seconds": time.perf_counter() - begin, "peak_rss_bytes": peak_rss_bytes()}
    show({name: value for name, value in summary.items() if name not in shown})
    if options.json is not None:
        write_json(options.json, records, {**summary, "machine": machine()})


if __name__ == "__main__":
    main()
