"""How many reference cells of each category have each code, counted over a stream of cells."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from hashstream.kernels.retrieve import CountedCodes
from hashstream.kernels.sorted_counts import count_keys, merge_counts

_Table = tuple[NDArray[np.uint64], NDArray[np.int64]]


class CodeCounter:
    """Counts cells by code and category; the order in which cells come does not matter.

    A key is a code with the cell's category before it (0 where it has none), so that sorted keys are sorted by code,
    then by category. Sorted tables of blocks of cells lie on a stack in which each is more than twice as large as the
    one on top of it (as in the log-structured merge tree of O'Neil et al. 1996): what is held grows with the number of
    distinct keys, and each key is copied about log2(blocks) times.

    Parameters
    ----------
    n_words : int
        Words of a code.
    """

    def __init__(self, n_words: int) -> None:
        self._n_words = n_words
        self._stack: list[_Table] = []

    def add(self, codes: NDArray[np.uint64], categories: NDArray[np.integer]) -> None:
        """Count cells.

        Parameters
        ----------
        codes : (n, n_words) uint64
        categories : (n,) integer
            -1 for cells without one.
        """
        keys = np.empty((len(codes), self._n_words + 1), np.uint64)
        keys[:, 0] = np.asarray(categories, dtype=np.int64) + 1
        keys[:, 1:] = codes
        self._push(count_keys(keys))

    def add_counted(self, cells: CountedCodes) -> None:
        """Count cells that were counted before, with codes that are sorted and distinct."""
        n = cells.n_codes
        rows = np.repeat(np.arange(n), np.diff(cells.starts))
        without = cells.counts - np.bincount(rows, weights=cells.amounts, minlength=n).astype(np.int64)
        # Each code's cells without a category come before its entries.
        before = np.cumsum(without > 0)
        keys = np.empty((len(rows) + int((without > 0).sum()), self._n_words + 1), np.uint64)
        counts = np.empty(len(keys), np.int64)
        at = np.arange(len(rows)) + before[rows]
        keys[at, 0], counts[at] = cells.categories + 1, cells.amounts
        keys[at, 1:] = cells.codes[rows]
        rows = np.flatnonzero(without > 0)
        at = cells.starts[rows] + before[rows] - 1
        keys[at, 0], counts[at] = 0, without[rows]
        keys[at, 1:] = cells.codes[rows]
        self._push((keys, counts))

    def result(self, n_categories: int) -> CountedCodes:
        """All cells so far: distinct codes, sorted with the last word first; the entries of each by category."""
        table: _Table = (np.empty((0, self._n_words + 1), np.uint64), np.empty(0, np.int64))
        while self._stack:
            table = merge_counts(*self._stack.pop(), *table)
        self._push(table)
        keys, counts = table
        first = np.ones(len(keys), dtype=bool)
        np.any(keys[1:, 1:] != keys[:-1, 1:], axis=1, out=first[1:])
        begins = np.flatnonzero(first)
        known = keys[:, 0] > 0
        # Entries before each code, of those with a category.
        starts = np.concatenate([[0], np.cumsum(known)])[np.append(begins, len(keys))]
        return CountedCodes(
            codes=keys[begins, 1:],
            counts=np.add.reduceat(counts, begins) if len(begins) else counts,
            starts=starts,
            categories=keys[known, 0].astype(np.int64) - 1,
            amounts=counts[known],
            n_categories=n_categories,
        )

    def _push(self, table: _Table) -> None:
        while self._stack and len(self._stack[-1][0]) <= 2 * len(table[0]):
            table = merge_counts(*self._stack.pop(), *table)
        if len(table[0]):
            self._stack.append(table)


def join_columns(columns: Sequence[CountedCodes]) -> CountedCodes:
    """Several columns of the same codes as one, the categories of each numbered after those of the one before.

    Raises
    ------
    ValueError
        If there are none, or their codes differ.
    """
    if not columns:
        raise ValueError("no columns to join")
    if len(columns) == 1:
        return columns[0]
    first = columns[0]
    for other in columns[1:]:
        if not (np.array_equal(first.codes, other.codes) and np.array_equal(first.counts, other.counts)):
            raise ValueError("columns of different codes cannot be joined")
    lengths = np.stack([np.diff(column.starts) for column in columns])
    starts = np.concatenate([[0], np.cumsum(lengths.sum(axis=0))])
    categories, amounts = np.empty(starts[-1], np.int32), np.empty(starts[-1], np.int64)
    offset, begins = 0, starts[:-1].copy()
    for column, length in zip(columns, lengths, strict=True):
        at = np.arange(len(column.categories)) + np.repeat(begins - column.starts[:-1], length)
        categories[at], amounts[at] = column.categories + offset, column.amounts
        begins += length
        offset += column.n_categories
    return CountedCodes(first.codes, first.counts, starts, categories, amounts, offset)
