"""The CPU kernels against the libraries one would use without them, on one thread each.

``python -m benchmarks.kernels [--json PATH] [--quick]``. Every ratio is the other library's median time divided by the
kernel's, from calls that took turns. The data are simulated with a fixed seed.

What is compared
----------------
encode_rows_vs_scipy
    Theirs: rows already selected and log-normalised, CSR times dense weights, bias, sign, pack. Ours: everything, from
    raw counts of all genes to codes.
encode_rows_vs_scipy_from_counts
    Theirs with normalising, selecting and taking logarithms of the same chunk counted.
encode_rows_vs_torch
    As the first, with torch's sparse product.
count_buckets_vs_pyarrow
    A stream of codes in chunks of 100,000. Theirs: `group_by` of each chunk, then of the partial counts together.
hamming_topk_vs_faiss
    Theirs: `IndexBinaryFlat.search`.
pack_bits_vs_numpy
    Theirs: `packbits` of the signs.
gram_times_vs_scipy, components_vs_covariance
    The Gram matrix of a sparse sample times 72 columns; theirs: two CSR products. And the 64 leading components by five
    such products, against those of the covariance: a dense product and LAPACK.
"""

from __future__ import annotations

import argparse
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from threadpoolctl import threadpool_limits

from benchmarks._measure import Record, interleave, median_elapsed, write_json
from hashstream import kernels
from hashstream.hashing.components import krylov_components

TARGET_SUM = 1e4
Run = tuple[list[Record], dict[str, float]]


def simulate_counts(rng: Any, n_cells: int, n_genes: int, nnz: int) -> tuple[Any, Any, Any]:
    """CSR rows with `nnz` counts each at columns whose popularity falls off as a power."""
    popularity = np.log(1 / np.arange(1, n_genes + 1) ** 0.6)[rng.permutation(n_genes)]
    # The largest of log-probability plus Gumbel noise are a draw without replacement.
    indices = [
        np.sort(np.argpartition(-(popularity + rng.gumbel(size=n_genes)), nnz)[:nnz]) for _ in range(min(n_cells, 2000))
    ]
    repeats = -(-n_cells // len(indices))
    columns = np.concatenate(indices * repeats)[: n_cells * nnz].astype(np.uint16)
    counts = np.minimum(rng.geometric(0.45, n_cells * nnz), 500).astype(np.uint16)
    return np.arange(n_cells + 1, dtype=np.int64) * nnz, columns, counts


def choose_genes(indices: Any, n_genes: int, n_chosen: int, per_cell: float, nnz: int) -> Any:
    """Genes of which a cell has about `per_cell` on average: a run of the order of popularity."""
    order = np.argsort(-np.bincount(indices, minlength=n_genes), kind="stable")
    share = np.bincount(indices, minlength=n_genes)[order] / len(indices) * nnz
    sums = np.convolve(share, np.ones(n_chosen), "valid")
    first = int(np.argmin(np.abs(sums - per_cell)))
    return np.sort(order[first : first + n_chosen])


def bench_encode(*, quick: bool, replicates: int, n_out: int) -> Run:
    import torch
    from scipy import sparse

    torch.set_num_threads(1)
    rng = np.random.default_rng(0)
    n_cells, n_genes, nnz, n_chosen = 2000 if quick else 10_000, 20_000, 596, 2000
    indptr, indices, counts = simulate_counts(rng, n_cells, n_genes, nnz)
    genes = choose_genes(indices, n_genes, n_chosen, 152, nnz)
    gene_map = np.full(n_genes, -1, np.int32)
    gene_map[genes] = np.arange(n_chosen)
    weight = rng.standard_normal((n_chosen, n_out)).astype(np.float32)
    bias = rng.standard_normal(n_out).astype(np.float32)
    # The bits are the signs of the layer itself, as for the others.
    weights = kernels.EncoderWeights(
        cap=np.full(n_chosen, np.inf, np.float32),
        weights=(weight,),
        biases=(bias,),
        activations=("linear",),
        bit_weight=np.eye(n_out, dtype=np.float32),
        bit_bias=np.zeros(n_out, np.float32),
        target_sum=TARGET_SUM,
    )

    def normalise() -> Any:
        matrix = sparse.csr_matrix((counts.astype(np.float32), indices.astype(np.int32), indptr), (n_cells, n_genes))
        scale = TARGET_SUM / np.asarray(matrix.sum(axis=1)).ravel()
        chosen = matrix[:, genes]
        chosen.data *= np.repeat(scale, np.diff(chosen.indptr)).astype(np.float32)
        np.log1p(chosen.data, out=chosen.data)
        return chosen

    selected = normalise()
    warnings.filterwarnings("ignore", message="Sparse CSR tensor support is in beta")
    tensor = torch.sparse_csr_tensor(
        torch.from_numpy(selected.indptr), torch.from_numpy(selected.indices), torch.from_numpy(selected.data),
        size=selected.shape, check_invariants=False,
    )  # fmt: skip
    torch_weight, torch_bias = torch.from_numpy(weight), torch.from_numpy(bias)

    def pack(values: Any) -> Any:
        return np.packbits(values > 0, axis=1, bitorder="little")

    dataset = f"{n_cells} cells x {n_genes} genes, {nnz} stored, {selected.nnz / n_cells:.0f} selected, W 2000x{n_out}"
    task = f"encode_rows_{n_out}"
    records = interleave(
        task,
        dataset,
        {
            "hashstream": lambda: kernels.encode_rows(indptr, indices, counts, gene_map, weights),
            "scipy": lambda: pack(selected @ weight + bias),
            "scipy_from_counts": lambda: pack(normalise() @ weight + bias),
            "torch": lambda: pack(torch.addmm(torch_bias, tensor, torch_weight).numpy()),
        },
        replicates=replicates,
    )
    ours = median_elapsed(records, f"{task}/hashstream")
    suffix = "" if n_out == 512 else f"_{n_out}"
    ratios = {
        f"encode_rows{suffix}_vs_{other}": median_elapsed(records, f"{task}/{other}") / ours
        for other in ("scipy", "scipy_from_counts", "torch")
    }
    return records, ratios | {f"encode_rows{suffix}_kcells_per_s": n_cells / ours / 1e3}


def bench_buckets(*, quick: bool, replicates: int) -> Run:
    import pyarrow as pa

    pa.set_cpu_count(1)
    rng = np.random.default_rng(1)
    n_codes, n_buckets, chunk = 1_000_000 if quick else 10_000_000, 130_000, 100_000
    keys = rng.integers(0, 2**63, n_buckets, dtype=np.uint64)
    codes = keys[rng.integers(0, n_buckets, n_codes)][:, None]
    mask = kernels.prefix_mask(64, 1)

    def ours() -> Any:
        table = kernels.new_bucket_arrays(262_144, 1, 0)
        for start in range(0, n_codes, chunk):
            kernels.count_buckets(table, codes[start : start + chunk], None, mask)
        return table.counts[: table.used[0]]

    def theirs() -> Any:
        parts = [
            pa.table({"code": codes[start : start + chunk, 0]})
            .group_by("code", use_threads=False)
            .aggregate([("code", "count")])
            for start in range(0, n_codes, chunk)
        ]
        partial = pa.concat_tables(parts)
        return partial.group_by("code", use_threads=False).aggregate([("code_count", "sum")])

    assert len(ours()) == len(theirs())
    dataset = f"{n_codes} codes, {n_buckets} buckets, chunks of {chunk}"
    records = interleave("count_buckets", dataset, {"hashstream": ours, "pyarrow": theirs}, replicates=replicates)
    seconds = median_elapsed(records, "count_buckets/hashstream")
    return records, {
        "count_buckets_vs_pyarrow": median_elapsed(records, "count_buckets/pyarrow") / seconds,
        "count_buckets_mcodes_per_s": n_codes / seconds / 1e6,
    }


def bench_hamming(*, quick: bool, replicates: int) -> Run:
    import faiss

    faiss.omp_set_num_threads(1)
    rng = np.random.default_rng(2)
    n_codes, n_queries, k = 1_000_000 if quick else 10_000_000, 64, 10
    codes = rng.integers(0, 2**64, (n_codes, 1), dtype=np.uint64)
    queries = rng.integers(0, 2**64, (n_queries, 1), dtype=np.uint64)
    index = faiss.IndexBinaryFlat(64)
    index.add(codes.view(np.uint8))
    contestants: dict[str, Callable[[], Any]] = {
        "hashstream": lambda: kernels.hamming_topk(queries, codes, k),
        "faiss": lambda: index.search(queries.view(np.uint8), k),
    }
    np.testing.assert_array_equal(contestants["hashstream"]()[0], contestants["faiss"]()[0])
    dataset = f"{n_codes} codes of 64 bits, {n_queries} queries, k={k}"
    records = interleave("hamming_topk", dataset, contestants, replicates=replicates)
    seconds = median_elapsed(records, "hamming_topk/hashstream")
    return records, {
        "hamming_topk_vs_faiss": median_elapsed(records, "hamming_topk/faiss") / seconds,
        "hamming_topk_gcodes_per_s": n_codes * n_queries / seconds / 1e9,
    }


def bench_pack(*, quick: bool, replicates: int) -> Run:
    rng = np.random.default_rng(3)
    values = rng.standard_normal((50_000 if quick else 500_000, 64)).astype(np.float32)
    contestants: dict[str, Callable[[], Any]] = {
        "hashstream": lambda: kernels.pack_bits(values),
        "numpy": lambda: np.packbits(values > 0, axis=1, bitorder="little").view(np.uint64),
    }
    np.testing.assert_array_equal(contestants["hashstream"](), contestants["numpy"]())
    records = interleave("pack_bits", f"{values.shape[0]} x 64 float32", contestants, replicates=replicates)
    seconds = median_elapsed(records, "pack_bits/hashstream")
    return records, {
        "pack_bits_vs_numpy": median_elapsed(records, "pack_bits/numpy") / seconds,
        "pack_bits_gb_per_s": values.nbytes / seconds / 1e9,
    }


def bench_components(*, quick: bool, replicates: int) -> Run:
    """What a fit on a sample spends most of its time on."""
    import scipy.linalg
    import scipy.sparse as sp

    rng = np.random.default_rng(5)
    n_cells, n_genes, width, nnz = (5_000 if quick else 50_000), 2_000, 72, 144
    own = rng.integers(0, n_genes, (60, 100))[rng.integers(0, 60, n_cells)]  # genes of each cell's type
    columns = np.where(
        rng.random((n_cells, nnz)) < 0.4,
        np.take_along_axis(own, rng.integers(0, 100, (n_cells, nnz)), axis=1),
        rng.integers(0, n_genes, (n_cells, nnz)),
    )
    indptr, values = np.arange(n_cells + 1) * nnz, rng.gamma(2.0, 0.5, n_cells * nnz)
    matrix = sp.csr_matrix((values, columns.ravel(), indptr), shape=(n_cells, n_genes))
    matrix.sum_duplicates()
    block = rng.normal(size=(n_genes, width))
    csr = matrix.indptr, matrix.indices, matrix.data.astype(np.float32)
    matrix.data = csr[2].astype(np.float64)
    dataset = f"{n_cells} cells x {n_genes} genes, {matrix.nnz / n_cells:.0f} values a cell"
    products = {
        "hashstream": lambda: kernels.gram_times(*csr, block),
        "scipy": lambda: matrix.T @ (matrix @ block),
    }
    np.testing.assert_allclose(products["hashstream"](), products["scipy"](), rtol=1e-8)
    records = interleave("gram_times", dataset, products, replicates=replicates)

    def covariance() -> Any:
        dense = matrix.astype(np.float32).toarray()
        return scipy.linalg.eigh(dense.T @ dense, subset_by_index=(n_genes - 64, n_genes - 1), check_finite=False)

    def krylov() -> Any:
        return krylov_components(lambda q: kernels.gram_times(*csr, q), n_genes, 64, rng=np.random.default_rng(0))

    captured = (matrix @ krylov()) ** 2
    assert captured.sum() > 0.99 * covariance()[0].sum()
    records += interleave(
        "components", dataset, {"hashstream": krylov, "covariance": covariance}, replicates=replicates
    )
    return records, {
        "gram_times_vs_scipy": median_elapsed(records, "gram_times/scipy")
        / median_elapsed(records, "gram_times/hashstream"),
        "components_vs_covariance": median_elapsed(records, "components/covariance")
        / median_elapsed(records, "components/hashstream"),
    }


def bench_ward(*, quick: bool) -> Run:
    rng = np.random.default_rng(4)
    n, n_dims = 4000 if quick else 20_000, 50
    points = rng.standard_normal((n, n_dims)) + 4 * rng.standard_normal((40, n_dims))[rng.integers(0, 40, n)]
    weights = rng.integers(1, 100, n).astype(float)
    run = {"hashstream": lambda: kernels.ward_linkage(points, weights)}
    records = interleave("ward_linkage", f"{n} points x {n_dims}", run, replicates=1)
    return records, {"ward_linkage_s": median_elapsed(records, "ward_linkage/hashstream")}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, help="write all times and the ratios here")
    parser.add_argument("--quick", action="store_true", help="small data and few repeats")
    parser.add_argument("--only", choices=["encode", "buckets", "hamming", "pack", "components", "ward"])
    options = parser.parse_args()
    replicates = 3 if options.quick else 7
    common = {"quick": options.quick, "replicates": replicates}
    tasks: dict[str, list[Callable[[], Run]]] = {
        "encode": [lambda: bench_encode(n_out=512, **common), lambda: bench_encode(n_out=64, **common)],
        "buckets": [lambda: bench_buckets(**common)],
        "hamming": [lambda: bench_hamming(**common)],
        "pack": [lambda: bench_pack(**common)],
        "components": [lambda: bench_components(**common)],
        "ward": [lambda: bench_ward(quick=options.quick)],
    }
    records: list[Record] = []
    summary: dict[str, float] = {}
    for name, runs in tasks.items():
        if options.only in (None, name):
            for run in runs:
                with threadpool_limits(1):
                    more, ratios = run()
                records += more
                summary |= ratios
    for name, value in summary.items():
        print(f"{name:40} {value:10.2f}")
    if options.json is not None:
        write_json(options.json, records, summary)


if __name__ == "__main__":
    main()
