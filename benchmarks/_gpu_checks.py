"""Whether every CUDA kernel gives the bits of `kernels/reference.py`; numpy and cupy alone."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from benchmarks._gpu_inputs import Sizes, draw_codes, draw_map, draw_weights, simulate_rows


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
