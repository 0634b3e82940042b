"""Count buckets while codes stream by, within a bounded number of buckets.

The bucket of a cell is the low `n_bits` of its code. When the table would hold more than `max_buckets`, the highest
bucket bit is dropped and buckets merge. No part of the data ever needs a shorter prefix than the whole, so the end
result does not depend on the order or the partitioning of the cells.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from hashstream.buckets.tokens import Tokens
from hashstream.errors import SettingsError
from hashstream.kernels import (
    BucketArrays,
    count_buckets,
    lookup_buckets,
    merge_buckets,
    new_bucket_arrays,
    prefix_mask,
)

DEFAULT_MAX_BUCKETS = 1 << 16
#: A table is let grow by this much beyond `max_buckets` before its prefix is shortened to fit: shortening by a bit
#: often merges only a few buckets, and would come again at once.
_HEADROOM = 1.25


class BucketTable:
    """A streaming table of buckets: count and exact fixed-point sum of the embedding of each.

    Parameters
    ----------
    n_bits : int
        Length of the code; also the prefix that counting starts with, unless `bucket_bits` is given.
    n_dims : int
        Length of the embedding.
    max_buckets : int
        Most buckets that the table may hold.
    bucket_bits : int, optional
        Prefix to start with.
    """

    def __init__(
        self, n_bits: int, n_dims: int, *, max_buckets: int = DEFAULT_MAX_BUCKETS, bucket_bits: int | None = None
    ) -> None:
        if max_buckets < 1:
            raise SettingsError(f"max_buckets is {max_buckets}; expected at least 1.")
        start = n_bits if bucket_bits is None else bucket_bits
        if not 0 < start <= n_bits:
            raise SettingsError(f"bucket_bits is {start}; expected 1 to {n_bits}, the length of the code.")
        self.n_bits, self.n_dims, self.max_buckets = n_bits, n_dims, max_buckets
        self.bucket_bits = start
        self._arrays = self._empty()

    @property
    def n_words(self) -> int:
        return (self.n_bits + 63) // 64

    @property
    def n_buckets(self) -> int:
        """Buckets now; up to a quarter more than `max_buckets` until `fit` is called."""
        return int(self._arrays.used[0])

    @property
    def keys(self) -> NDArray[np.uint64]:
        return self._arrays.keys[: self.n_buckets]

    @property
    def counts(self) -> NDArray[np.int64]:
        return self._arrays.counts[: self.n_buckets]

    @property
    def sums(self) -> NDArray[np.int64]:
        return self._arrays.sums[: self.n_buckets]

    def add(self, codes: NDArray[np.uint64], embedding: NDArray[np.float32]) -> None:
        """Count cells: codes (n_cells, n_words) and their embedding (n_cells, n_dims)."""
        done = 0
        while (done := count_buckets(self._arrays, codes, embedding, self._mask(), start=done)) < len(codes):
            self._make_room(codes[done : done + 1])

    def merge(self, other: BucketTable) -> None:
        """Add another table of the same kind, whatever its prefix."""
        if (other.n_bits, other.n_dims, other.max_buckets) != (self.n_bits, self.n_dims, self.max_buckets):
            raise ValueError("tables of different codes, embeddings or sizes cannot be merged")
        self.shorten(other.bucket_bits)
        self.merge_rows(other.keys, other.counts, other.sums)

    def merge_rows(self, keys: NDArray[np.uint64], counts: NDArray[np.int64], sums: NDArray[np.int64]) -> None:
        """Add buckets given as arrays; their prefix must be at least this table's."""
        done = 0
        while (done := merge_buckets(self._arrays, keys, counts, sums, self._mask(), start=done)) < len(keys):
            self._make_room(keys[done : done + 1])

    def shorten(self, bucket_bits: int) -> None:
        """Merge buckets down to a prefix of `bucket_bits`; nothing happens if it is that short already."""
        if bucket_bits >= self.bucket_bits:
            return
        old, used = self._arrays, self.n_buckets
        self._arrays = self._empty()
        self.bucket_bits = bucket_bits
        merge_buckets(self._arrays, old.keys[:used], old.counts[:used], old.sums[:used], self._mask())

    def fit(self) -> None:
        """Shorten the prefix to the longest at which the buckets are at most `max_buckets`."""
        if self.n_buckets > self.max_buckets:
            self.shorten(self._longest_fit(self.keys))

    def tokens(self) -> tuple[Tokens, NDArray[np.int64]]:
        """The buckets as tokens, fitted, and their exact sums (n_tokens, n_dims) in units of 2**-20.

        They are sorted by code, so that the result does not depend on the order of counting.
        """
        self.fit()
        order = np.lexsort(self.keys.T)
        sums = self.sums[order]
        tokens = Tokens.from_sums(
            codes=self.keys[order], counts=self.counts[order], sums=sums, bucket_bits=self.bucket_bits
        )
        return tokens, sums

    def _mask(self) -> NDArray[np.uint64]:
        return prefix_mask(self.bucket_bits, self.n_words)

    def _empty(self) -> BucketArrays:
        return new_bucket_arrays(int(self.max_buckets * _HEADROOM) + 1, self.n_words, self.n_dims)

    def _make_room(self, key: NDArray[np.uint64]) -> None:
        """Shorten the prefix to the longest at which the buckets and one more `key` (1, n_words) fit."""
        self.shorten(self._longest_fit(np.concatenate([self.keys, key])))

    def _longest_fit(self, keys: NDArray[np.uint64]) -> int:
        # The number of distinct prefixes rises with their length, so the length is found by bisection.
        fits, too_long = 0, self.bucket_bits
        while too_long - fits > 1:
            middle = (fits + too_long) // 2
            if self._n_distinct(keys, middle) <= self.max_buckets:
                fits = middle
            else:
                too_long = middle
        return fits

    def _n_distinct(self, keys: NDArray[np.uint64], bucket_bits: int) -> int:
        arrays = new_bucket_arrays(len(keys), self.n_words, 0)
        count_buckets(arrays, keys, None, prefix_mask(bucket_bits, self.n_words))
        return int(arrays.used[0])


class BucketIndex:
    """Finds the bucket of each code, after counting: the row of its token."""

    def __init__(self, tokens: Tokens) -> None:
        self._mask = prefix_mask(tokens.bucket_bits, tokens.codes.shape[1])
        self._arrays = new_bucket_arrays(max(tokens.n_tokens, 1), tokens.codes.shape[1], 0)
        empty = np.zeros((tokens.n_tokens, 0), dtype=np.int64)
        # Rows are given in the order of insertion, so a table row is a token row.
        merge_buckets(self._arrays, tokens.codes, tokens.counts, empty, self._mask)

    def rows(self, codes: NDArray[np.uint64]) -> NDArray[np.int32]:
        """(n_cells,) int32 row of the token of each code, -1 where no bucket holds it."""
        return lookup_buckets(self._arrays, codes, self._mask)
