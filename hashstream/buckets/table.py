"""Count buckets while codes stream by, within a bounded number of buckets.

The bucket of a cell is the low `n_bits` of its code. When the table would hold more than `max_buckets`, the highest
bucket bit is dropped and buckets merge. No part of the data ever needs a shorter prefix than the whole, so the end
result does not depend on the order or the partitioning of the cells.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from hashstream.buckets.tokens import Tokens, token_order
from hashstream.errors import SettingsError
from hashstream.kernels import (
    BucketArrays,
    count_buckets,
    lookup_buckets,
    merge_buckets,
    new_bucket_arrays,
    prefix_mask,
    shorten_buckets,
)

DEFAULT_MAX_BUCKETS = 1 << 16
#: A table is let grow by this much beyond `max_buckets` before its prefix is shortened to fit: shortening by a bit
#: often merges only a few buckets, and would come again at once.
_HEADROOM = 1.25
#: Columns of 8 bytes that are moved at a time when a table is sorted.
_SORTED_COLUMNS = 32


def table_bytes(max_buckets: int, n_words: int, n_dims: int) -> int:
    """What a table with halves takes in memory, and the tokens without halves that are made of it."""
    key = 8 * n_words + 16
    return int(_HEADROOM * max_buckets * (key + 16 * n_dims + 16)) + max_buckets * (key + 4 * n_dims)


class BucketTable:
    """A streaming table of buckets: count and exact fixed-point sum of the embedding of each, in one part or two.

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
    with_halves : bool
        Count and sum two halves of the cells apart (see `Tokens`).
    with_batches : bool
        Count each pair of a bucket and a batch apart. The key then has one more word, the number of the batch.
    """

    def __init__(
        self,
        n_bits: int,
        n_dims: int,
        *,
        max_buckets: int = DEFAULT_MAX_BUCKETS,
        bucket_bits: int | None = None,
        with_halves: bool = False,
        with_batches: bool = False,
    ) -> None:
        if max_buckets < 1:
            raise SettingsError(f"max_buckets is {max_buckets}; expected at least 1.")
        start = n_bits if bucket_bits is None else bucket_bits
        if not 0 < start <= n_bits:
            raise SettingsError(f"bucket_bits is {start}; expected 1 to {n_bits}, the length of the code.")
        self.n_bits, self.n_dims, self.max_buckets = n_bits, n_dims, max_buckets
        self.bucket_bits = start
        self.with_halves, self.with_batches = with_halves, with_batches
        self._arrays = self._empty()

    @property
    def n_words(self) -> int:
        return (self.n_bits + 63) // 64

    @property
    def n_buckets(self) -> int:
        """Buckets (or pairs of bucket and batch) now; up to a quarter more than `max_buckets` until `fit` is called."""
        return int(self._arrays.used[0])

    @property
    def keys(self) -> NDArray[np.uint64]:
        """(n_buckets, n_words) uint64; one word more with batches."""
        return self._arrays.keys[: self.n_buckets]

    @property
    def counts(self) -> NDArray[np.int64]:
        return self._arrays.counts[: self.n_buckets]

    @property
    def half_counts(self) -> NDArray[np.int64]:
        """Cells of half 0; no rows without halves."""
        return self._arrays.half_counts[: self.n_buckets]

    @property
    def sums(self) -> NDArray[np.int64]:
        """(n_buckets, n_halves, n_dims) int64, in units of 2**-20."""
        return self._arrays.sums[: self.n_buckets]

    def add(
        self,
        codes: NDArray[np.uint64],
        embedding: NDArray[np.float32],
        *,
        first_row: int | None = None,
        batches: NDArray[np.integer] | None = None,
    ) -> None:
        """Count cells.

        Parameters
        ----------
        codes : (n_cells, n_words) uint64
        embedding : (n_cells, n_dims) float32
        first_row : int, optional
            Row of the first cell in the whole atlas, for a table with halves.
        batches : (n_cells,) integer, optional
            Number of each cell's batch, from 0, for a table with batches.

        Raises
        ------
        SettingsError
            There are more batches than the table may hold buckets.
        ValueError
            `first_row` or `batches` is missing or not wanted.
        """
        if (batches is not None) != self.with_batches:
            raise ValueError("batches are given to a table without them, or not given to one with them")
        if (first_row is not None) != self.with_halves:
            raise ValueError("first_row is given to a table without halves, or not given to one with them")
        keys = codes if batches is None else pair_keys(codes, batches)
        done, mask = 0, self._mask()
        while (done := count_buckets(self._arrays, keys, embedding, mask, start=done, first_row=first_row)) < len(keys):
            self._make_room(keys[done : done + 1])
            mask = self._mask()

    def merge(self, other: BucketTable) -> None:
        """Add another table of the same kind, whatever its prefix."""
        if other._kind() != self._kind():
            raise ValueError("tables of different codes, embeddings or sizes cannot be merged")
        self.shorten(other.bucket_bits)
        self.merge_rows(other.keys, other.counts, other.half_counts, other.sums)

    def merge_rows(
        self,
        keys: NDArray[np.uint64],
        counts: NDArray[np.int64],
        half_counts: NDArray[np.int64],
        sums: NDArray[np.int64],
    ) -> None:
        """Add buckets given as the arrays of another table; their prefix must be at least this table's."""
        done, rows = 0, (keys, counts, half_counts, sums)
        while (done := merge_buckets(self._arrays, *rows, self._mask(), start=done)) < len(keys):
            self._make_room(keys[done : done + 1])

    def shorten(self, bucket_bits: int) -> None:
        """Merge buckets down to a prefix of `bucket_bits`; nothing happens if it is that short already."""
        if bucket_bits >= self.bucket_bits:
            return
        self.bucket_bits = bucket_bits
        shorten_buckets(self._arrays, self._mask())

    def fit(self) -> None:
        """Shorten the prefix to the longest at which the buckets are at most `max_buckets`."""
        if self.n_buckets > self.max_buckets:
            self.shorten(self._longest_fit(self.keys))

    def tokens(self, *, half_means: bool = True) -> tuple[Tokens, NDArray[np.int64]]:
        """The buckets as tokens, fitted, and their exact sums (n_tokens, n_halves, n_dims) in units of 2**-20.

        They are sorted by code (and batch), so that the result does not depend on the order of counting. The sums are
        the table's own, as they are as large as all else together: they hold until it is added to. Without
        `half_means` the tokens of a table with halves lack the means of these.
        """
        self.fit()
        self._sort()
        tokens = Tokens.from_sums(
            codes=self.keys[:, : self.n_words].copy(),
            counts=self.counts.copy(),
            sums=self.sums,
            bucket_bits=self.bucket_bits,
            half_counts=self.half_counts.copy() if self.with_halves else None,
            batches=self.keys[:, -1].astype(np.int32) if self.with_batches else None,
            half_means=half_means,
        )
        return tokens, self.sums

    def _sort(self) -> None:
        """Put the rows in the order of tokens, in place but for a few columns at a time."""
        batches = self.keys[:, -1].astype(np.int32) if self.with_batches else None
        order = token_order(self.keys[:, : self.n_words], batches)
        rank = np.empty(len(order) + 1, dtype=np.int32)
        rank[order], rank[-1] = np.arange(len(order), dtype=np.int32), -1  # slot -1 holds no row
        slots = self._arrays.slots
        slots[:] = rank[slots]
        for rows in (self.keys, self.counts, self.half_counts, self.sums):
            if rows.size:
                columns = rows.reshape(len(rows), -1)
                for start in range(0, columns.shape[1], _SORTED_COLUMNS):
                    some = columns[:, start : start + _SORTED_COLUMNS]
                    some[:] = some[order]

    def _kind(self) -> tuple[int, int, int, bool, bool]:
        return self.n_bits, self.n_dims, self.max_buckets, self.with_halves, self.with_batches

    def _mask(self, bucket_bits: int | None = None) -> NDArray[np.uint64]:
        mask = prefix_mask(self.bucket_bits if bucket_bits is None else bucket_bits, self.n_words)
        return np.append(mask, ~np.uint64(0)) if self.with_batches else mask

    def _empty(self) -> BucketArrays:
        return new_bucket_arrays(
            int(self.max_buckets * _HEADROOM) + 1,
            self.n_words + self.with_batches,
            self.n_dims,
            with_halves=self.with_halves,
        )

    def _make_room(self, key: NDArray[np.uint64]) -> None:
        """Shorten the prefix to the longest at which the buckets and one more `key` (1, n_words) fit."""
        self.shorten(self._longest_fit(np.concatenate([self.keys, key])))

    def _longest_fit(self, keys: NDArray[np.uint64]) -> int:
        # The number of distinct prefixes rises with their length, so the length is found by bisection.
        fits, too_long = 0, self.bucket_bits
        if self.with_batches and (n_batches := self._n_distinct(keys, 0)) > self.max_buckets:
            raise SettingsError(
                f"{n_batches} batches or more, but max_buckets is {self.max_buckets}: one bucket a batch does not fit. "
                "Give fewer batches, or raise --max-buckets when encoding."
            )
        while too_long - fits > 1:
            middle = (fits + too_long) // 2
            if self._n_distinct(keys, middle) <= self.max_buckets:
                fits = middle
            else:
                too_long = middle
        return fits

    def _n_distinct(self, keys: NDArray[np.uint64], bucket_bits: int) -> int:
        arrays = new_bucket_arrays(len(keys), keys.shape[1], 0)
        count_buckets(arrays, keys, None, self._mask(bucket_bits))
        return int(arrays.used[0])


class BucketIndex:
    """Finds the bucket of each code (and batch), after counting: the row of its token."""

    def __init__(self, tokens: Tokens) -> None:
        self._mask = prefix_mask(tokens.bucket_bits, tokens.codes.shape[1])
        self._with_batches = tokens.batches is not None
        keys = tokens.codes
        if tokens.batches is not None:
            self._mask = np.append(self._mask, ~np.uint64(0))
            keys = pair_keys(keys, tokens.batches)
        self._arrays = new_bucket_arrays(max(tokens.n_tokens, 1), keys.shape[1], 0)
        none, empty = np.zeros(0, dtype=np.int64), np.zeros((tokens.n_tokens, 1, 0), dtype=np.int64)
        # Rows are given in the order of insertion, so a table row is a token row.
        merge_buckets(self._arrays, keys, tokens.counts, none, empty, self._mask)

    def rows(self, codes: NDArray[np.uint64], batches: NDArray[np.integer] | None = None) -> NDArray[np.int32]:
        """(n_cells,) int32 row of the token of each code and batch, -1 where no bucket holds it.

        Raises
        ------
        ValueError
            If `batches` is missing though the tokens have batches, or given though they have none.
        """
        if (batches is not None) != self._with_batches:
            raise ValueError("batches are given for tokens without them, or not given for tokens with them")
        return lookup_buckets(self._arrays, codes if batches is None else pair_keys(codes, batches), self._mask)


def pair_keys(codes: NDArray[np.uint64], batches: NDArray[np.integer]) -> NDArray[np.uint64]:
    """Codes with the number of the batch as one more word: (n, n_words + 1) uint64."""
    return np.column_stack([codes, batches.astype(np.uint64)])
