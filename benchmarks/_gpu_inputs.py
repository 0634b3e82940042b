"""Sizes and random inputs of the GPU benchmark; numpy alone."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np


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
