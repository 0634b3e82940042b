"""Bucket tokens: all that clustering and annotation see of the data."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from hashstream.kernels import FIXED_POINT_SCALE, prefix_mask

_BLOCK_TOKENS = 4096  # tokens whose float64 sums are held at a time


@dataclass(frozen=True)
class Tokens:
    """One token a bucket, sorted by code; or one a bucket and batch, sorted by code and batch.

    Attributes
    ----------
    codes : (n_tokens, n_words) uint64
        The prefix that the bucket's cells share; higher bits are 0.
    counts : (n_tokens,) int64
        Cells in the bucket.
    means : (n_tokens, n_dims) float32
        Mean embedding of its cells.
    bucket_bits : int
        Length of the prefix.
    half_counts : (n_tokens,) int64, optional
        Cells of half 0: every cell belongs to half 0 or 1 by its row alone, as if by a coin.
    half_means : (n_tokens, 2, n_dims) float32, optional
        Mean embedding of either half's cells; where a half has none, that of all.
    batches : (n_tokens,) int32, optional
        Number of the batch that the token's cells come from.
    """

    codes: NDArray[np.uint64]
    counts: NDArray[np.int64]
    means: NDArray[np.float32]
    bucket_bits: int
    half_counts: NDArray[np.int64] | None = None
    half_means: NDArray[np.float32] | None = None
    batches: NDArray[np.int32] | None = None

    @property
    def n_tokens(self) -> int:
        return len(self.counts)

    @property
    def n_cells(self) -> int:
        return int(self.counts.sum())

    @classmethod
    def from_sums(
        cls,
        *,
        codes: NDArray[np.uint64],
        counts: NDArray[np.int64],
        sums: NDArray[np.int64],
        bucket_bits: int,
        half_counts: NDArray[np.int64] | None = None,
        batches: NDArray[np.int32] | None = None,
        half_means: bool = True,
    ) -> Tokens:
        """Tokens from exact fixed-point sums of the embedding (units of 2**-20).

        Parameters
        ----------
        sums : (n_tokens, n_halves, n_dims) int64
            Of each half, or, without `half_counts`, one sum of all cells.
        half_means
            Whether the means of halves are wanted; they are twice as large as those of all cells.
        """
        n_tokens, n_halves, n_dims = sums.shape
        if n_halves != (1 if half_counts is None else 2):
            raise ValueError(f"sums has {n_halves} parts, which does not go with half_counts {half_counts is not None}")
        means = np.empty((n_tokens, n_dims), dtype=np.float32)
        halves = np.empty((n_tokens, 2, n_dims), dtype=np.float32) if half_means and half_counts is not None else None
        for start in range(0, n_tokens, _BLOCK_TOKENS):
            part = slice(start, start + _BLOCK_TOKENS)
            means[part] = means_of(sums[part], counts[part])
            if half_counts is not None and halves is not None:
                halves[part] = half_means_of(sums[part], counts[part], half_counts[part], means[part])
        return cls(codes, counts, means, bucket_bits, half_counts, halves, batches)

    def shorten(self, bucket_bits: int) -> tuple[Tokens, NDArray[np.int64]]:
        """The tokens of a shorter prefix; tokens of different batches stay apart.

        Parameters
        ----------
        bucket_bits : int
            At most this object's.

        Returns
        -------
        tokens : Tokens
        parent : (n_tokens,) int64
            For each of these tokens, the shorter one that it is part of.

        Raises
        ------
        ValueError
            If the prefix is longer.
        """
        if not 0 <= bucket_bits <= self.bucket_bits:
            raise ValueError(f"bucket_bits is {bucket_bits}; these tokens have {self.bucket_bits}")
        if bucket_bits == self.bucket_bits:
            return self, np.arange(self.n_tokens)
        masked = self.codes & prefix_mask(bucket_bits, self.codes.shape[1])
        order = token_order(masked, self.batches)
        first = np.ones(len(order), dtype=bool)
        first[1:] = (masked[order][1:] != masked[order][:-1]).any(axis=1)
        if self.batches is not None:
            first[1:] |= self.batches[order][1:] != self.batches[order][:-1]
        parent = np.empty(len(order), dtype=np.int64)
        parent[order] = np.cumsum(first) - 1
        n = int(first.sum())

        def total(values: NDArray[np.int64]) -> NDArray[np.int64]:
            totals = np.zeros(n, dtype=np.int64)
            np.add.at(totals, parent, values)
            return totals

        def mean(means: NDArray[np.float32], weights: NDArray[np.int64]) -> NDArray[np.float64]:
            totals = np.zeros((n, means.shape[1]))
            np.add.at(totals, parent, means * weights[:, None].astype(np.float64))
            return totals / np.maximum(total(weights), 1)[:, None]

        counts = total(self.counts)
        means = mean(self.means, self.counts).astype(np.float32)
        half_counts, half_means = None, None
        if self.half_counts is not None and self.half_means is not None:
            half_counts = total(self.half_counts)
            half_means = np.repeat(means[:, None], 2, axis=1)
            for half, weights in enumerate((self.half_counts, self.counts - self.half_counts)):
                occupied = total(weights) > 0
                half_means[occupied, half] = mean(self.half_means[:, half], weights)[occupied]
        batches = None if self.batches is None else self.batches[order][first]
        return Tokens(masked[order][first], counts, means, bucket_bits, half_counts, half_means, batches), parent

    def n_prefixes(self, bucket_bits: int) -> int:
        """How many tokens `shorten` would give."""
        masked = self.codes & prefix_mask(bucket_bits, self.codes.shape[1])
        if self.batches is not None:
            masked = np.column_stack([masked, self.batches.astype(np.uint64)])
        return len(np.unique(masked, axis=0))


def means_of(sums: NDArray[np.int64], counts: NDArray[np.int64]) -> NDArray[np.float64]:
    """(n, n_dims) float64 mean embedding of each bucket from sums (n, n_halves, n_dims); see `Tokens.from_sums`."""
    means: NDArray[np.float64] = sums.sum(axis=1) / (counts[:, None] * float(FIXED_POINT_SCALE))
    return means


def half_means_of(
    sums: NDArray[np.int64], counts: NDArray[np.int64], half_counts: NDArray[np.int64], means: NDArray[np.float32]
) -> NDArray[np.float64]:
    """(n, 2, n_dims) float64 mean embedding of either half of each bucket; where a half has no cells, `means`."""
    by_half = np.stack([half_counts, counts - half_counts], axis=1)
    divisor = np.maximum(by_half, 1)[:, :, None] * float(FIXED_POINT_SCALE)
    return np.where(by_half[:, :, None] > 0, sums / divisor, means[:, None])


def token_order(codes: NDArray[np.uint64], batches: NDArray[np.integer] | None) -> NDArray[np.int64]:
    """The order that sorts tokens by code, then by batch: (n_tokens,) int64."""
    return np.lexsort(codes.T if batches is None else (batches, *codes.T))
