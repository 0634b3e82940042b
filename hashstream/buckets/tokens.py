"""Bucket tokens: all that clustering and annotation see of the data."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from hashstream.kernels import FIXED_POINT_SCALE, prefix_mask


@dataclass(frozen=True)
class Tokens:
    """One token a bucket, sorted by code.

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
    """

    codes: NDArray[np.uint64]
    counts: NDArray[np.int64]
    means: NDArray[np.float32]
    bucket_bits: int

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
    ) -> Tokens:
        """Tokens from exact fixed-point sums of the embedding (units of 2**-20)."""
        means = sums / (counts[:, None] * float(FIXED_POINT_SCALE))
        return cls(codes=codes, counts=counts, means=means.astype(np.float32), bucket_bits=bucket_bits)

    def shorten(self, bucket_bits: int) -> tuple[Tokens, NDArray[np.int64]]:
        """The tokens of a shorter prefix.

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
        order = np.lexsort(masked.T)
        first = np.ones(len(order), dtype=bool)
        first[1:] = (masked[order][1:] != masked[order][:-1]).any(axis=1)
        parent = np.empty(len(order), dtype=np.int64)
        parent[order] = np.cumsum(first) - 1
        n = int(first.sum())
        counts = np.zeros(n, dtype=np.int64)
        np.add.at(counts, parent, self.counts)
        totals = np.zeros((n, self.means.shape[1]))
        np.add.at(totals, parent, self.means * self.counts[:, None].astype(np.float64))
        means = (totals / counts[:, None]).astype(np.float32)
        return Tokens(codes=masked[order][first], counts=counts, means=means, bucket_bits=bucket_bits), parent

    def n_prefixes(self, bucket_bits: int) -> int:
        """How many tokens `shorten` would give."""
        masked = self.codes & prefix_mask(bucket_bits, self.codes.shape[1])
        return len(np.unique(masked, axis=0))
