"""Exact nearest codes by multi-index hashing: tables of substrings instead of a scan of everything.

Two codes that differ in few bits agree, or nearly so, in one of a few disjoint substrings. A table for each substring
lists the codes by its value; a query looks up the values within growing distances of its own, until no code that was
not met can be as near as the k-th nearest. The method is Norouzi, Punjani & Fleet, Fast exact search in Hamming space
with multi-index hashing (TPAMI 2014). What is our own: the codes themselves are copied into the order of each table, so
that a bucket is read in one run; the lookups of many queries are put in the order of the buckets, so that those who
share a bucket share its reading; a code met in several tables is recognised from its bits, without a list of those
seen; and substrings take every p-th bit, since neighbouring bits of a code are alike in how cells crowd in them.
"""

from __future__ import annotations

from itertools import combinations
from math import comb
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hashstream.kernels._arrays import codes_array, share_rows
from hashstream.kernels._jit import jit
from hashstream.kernels._probe import (
    CHUNK,
    CODES,
    FIRST,
    MASK,
    NUMBERS,
    PROBE_COST,
    REPEATED,
    SHIFT,
    WIDTH,
    WORD,
    search_tables,
)

MAX_WORDS = 4
AT_ONCE = 1 << 15  # queries that share what is read: for each of them its k best codes are held


@jit
def _gather_bits(codes, source, out):  # type: ignore[no-untyped-def]
    """Bit b of `out` is bit ``source[b]`` of the code; byte by byte from tables of what each byte contributes."""
    n_words = codes.shape[1]
    parts = np.zeros((8 * n_words, 256, n_words), np.uint64)
    for b in range(64 * n_words):
        byte, bit = source[b] >> 3, source[b] & 7
        for value in range(256):
            if value >> bit & 1:
                parts[byte, value, b >> 6] |= np.uint64(1) << np.uint64(b & 63)
    for row in range(len(codes)):
        for word in range(n_words):
            total = np.uint64(0)
            for byte in range(8 * n_words):
                held = (codes[row, byte >> 3] >> np.uint64(8 * (byte & 7))) & np.uint64(255)
                total |= parts[byte, held, word]
            out[row, word] = total


@jit
def _fill_table(codes, starts, word, shift, mask, first, ordered, numbers):  # type: ignore[no-untyped-def]
    """Counting sort of the codes by a substring; word w of all codes goes to ``ordered[w]``."""
    n, n_words = codes.shape
    first[:] = 0
    for row in range(n):
        first[np.int64((codes[row, word] >> shift) & mask) + 1] += 1
    for value in range(1, len(first)):
        first[value] += first[value - 1]
    places = first[:-1].copy()
    for row in range(n):
        held = np.int64((codes[row, word] >> shift) & mask)
        place = places[held]
        places[held] = place + 1
        numbers[place] = np.uint32(row if starts[row + 1] - starts[row] == 1 else row | REPEATED)
        for w in range(n_words):
            ordered[w, place] = codes[row, w]


def best_tables_per_word(n_codes: int) -> int:
    """Substrings that a word of 64 bits is cut into: wide enough that a bucket holds few codes, not so wide that
    most are empty."""
    return 5 if n_codes < 1 << 19 else 4 if n_codes < 1 << 25 else 3


class MultiIndex:
    """Exact k-nearest search among codes that do not change, over the distinct ones.

    Parameters
    ----------
    codes : (n, n_words) uint64
        At most 4 words and 2**31 - 1 rows. Rows may repeat; they are copied, not kept.
    tables_per_word : int, optional
        Substrings that each 64 bits are cut into, 3 to 8; by the number of distinct codes if not given.

    Attributes
    ----------
    n_rows, n_distinct, n_words, n_tables : int
    nbytes : int
        Memory that the index holds.

    Raises
    ------
    TypeError, ValueError
        An array of the wrong kind or shape, too many rows or words, or too few or many tables.
    """

    def __init__(self, codes: Any, *, tables_per_word: int | None = None) -> None:
        codes = codes_array(codes)
        self.n_rows, self.n_words = codes.shape
        if self.n_words > MAX_WORDS or self.n_rows > np.iinfo(np.int32).max:
            raise ValueError(f"codes has shape {codes.shape}, expected at most {MAX_WORDS} words and 2**31 - 1 rows")
        if tables_per_word is not None and not 3 <= tables_per_word <= 8:
            raise ValueError(f"tables_per_word is {tables_per_word}, expected 3 to 8")
        distinct, self._starts, self._rows = _distinct(codes)
        self.n_distinct = len(distinct)
        per_word = tables_per_word or best_tables_per_word(self.n_distinct)
        self._source, self._layout = _layout(self.n_words, per_word, self.n_distinct)
        self.n_tables = len(self._layout)
        self._masks, self._shells = _masks(int(self._layout[:, WIDTH].max()), self.n_distinct)
        permuted = np.empty_like(distinct)
        _gather_bits(distinct, self._source, permuted)
        self._first = np.empty(int((self._layout[:, MASK] + 2).sum()), np.int32)
        stride = self.n_distinct + CHUNK  # a chunk may reach beyond the last code
        self._codes = np.zeros(self.n_tables * self.n_words * stride, np.uint64)
        self._numbers = np.empty(self.n_tables * self.n_distinct, np.uint32)
        for row in self._layout:
            codes_at, numbers_at = int(row[CODES]), int(row[NUMBERS])
            _fill_table(
                permuted,
                self._starts,
                int(row[WORD]),
                np.uint64(row[SHIFT]),
                np.uint64(row[MASK]),
                self._first[row[FIRST] : row[FIRST] + row[MASK] + 2],
                self._codes[codes_at : codes_at + self.n_words * stride].reshape(self.n_words, stride),
                self._numbers[numbers_at : numbers_at + self.n_distinct],
            )

    @property
    def nbytes(self) -> int:
        arrays = (self._starts, self._rows, self._masks, self._first, self._codes, self._numbers)
        return sum(array.nbytes for array in arrays)

    def search(self, queries: Any, k: int, *, n_threads: int = 1) -> tuple[NDArray[np.int32], NDArray[np.int64]]:
        """The k nearest rows of each query: exactly what `hamming_topk` gives for the codes that were indexed.

        Parameters
        ----------
        queries : (n_queries, n_words) uint64
        k : int
            Clipped to the number of rows. Best up to some hundreds.
        n_threads : int
            Threads that share the queries; the result is the same for any number.

        Returns
        -------
        distances : (n_queries, k) int32
            Ascending.
        rows : (n_queries, k) int64
            Among equal distances ascending.

        Raises
        ------
        TypeError, ValueError
            Arrays of the wrong kind or shape, or k below 1.
        """
        queries = codes_array(queries, "queries", n_words=self.n_words)
        if k < 1:
            raise ValueError(f"k is {k}, expected at least 1")
        k = min(int(k), self.n_rows)
        best = np.empty((len(queries), k), np.int64)
        if k == 0 or len(queries) == 0:
            return best.astype(np.int32), best
        permuted = np.empty_like(queries)
        _gather_bits(queries, self._source, permuted)

        def work(start: int, stop: int) -> None:
            for first in range(start, stop, AT_ONCE):
                some = slice(first, min(first + AT_ONCE, stop))
                search_tables(
                    permuted[some], (0,) * self.n_words, self._first, self._codes, self._numbers, self._layout,
                    self._masks, self._shells, self._starts, self._rows, k, best[some],
                )  # fmt: skip

        share_rows(work, len(queries), n_threads)
        return (best >> 32).astype(np.int32), best & np.int64(0xFFFFFFFF)


def permute_bits(codes: Any, per_word: int) -> tuple[NDArray[np.uint64], NDArray[np.int64]]:
    """Codes with the bits of each substring moved together, and the layout of the tables (columns as above)."""
    codes = codes_array(codes)
    source, layout = _layout(codes.shape[1], per_word, len(codes))
    out = np.empty_like(codes)
    _gather_bits(codes, source, out)
    return out, layout


def _distinct(codes: NDArray[np.uint64]) -> tuple[NDArray[np.uint64], NDArray[np.int32], NDArray[np.int32]]:
    """The distinct codes by their first rows, where the rows of each begin, and the rows, ascending within a code."""
    n = len(codes)
    rows = np.lexsort(codes.T).astype(np.int32)
    ordered = codes[rows]
    new = np.ones(n, bool)
    np.any(ordered[1:] != ordered[:-1], axis=1, out=new[1:])
    begins = np.flatnonzero(new).astype(np.int32)
    order = np.argsort(rows[begins])
    begins, n_rows = begins[order], np.diff(begins, append=np.int32(n))[order]
    starts = np.zeros(len(begins) + 1, np.int32)
    np.cumsum(n_rows, out=starts[1:])
    rows = rows[np.arange(n, dtype=np.int32) + np.repeat(begins - starts[:-1], n_rows)]
    return codes[rows[starts[:-1]]], starts, rows


def _layout(n_words: int, per_word: int, n_codes: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Which bit goes where, and where everything of each substring's table is (columns as above).

    Of the m substrings the i-th takes the bits i, i + m, i + 2 m, ...; these are then moved together within a word.
    """
    layout: list[tuple[int, ...]] = []
    first = codes = numbers = 0
    stride = n_codes + CHUNK
    for word in range(n_words):
        shift = 0
        for table in range(per_word):
            width = len(range(table, 64, per_word))
            layout.append((word, shift, (1 << width) - 1, width, first, codes, numbers, stride))
            shift += width
            first, codes, numbers = first + (1 << width) + 1, codes + n_words * stride, numbers + n_codes
    # Tables take turns; one that is full is passed over.
    members: list[list[int]] = [[] for _ in layout]
    turn = 0
    for bit in range(64 * n_words):
        while len(members[turn % len(layout)]) == layout[turn % len(layout)][WIDTH]:
            turn += 1
        members[turn % len(layout)].append(bit)
        turn += 1
    source = [bit for bits in members for bit in bits]
    return np.array(source, np.int64), np.array(layout, np.int64)


def _masks(width: int, n_codes: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """All patterns of 0, 1, 2, ... differing bits, as many as may pay, and where those of each number begin."""
    masks: list[NDArray[np.int64]] = []
    shells = [0]
    for radius in range(width + 1):
        if comb(width, radius) * PROBE_COST > max(n_codes, PROBE_COST):
            break
        picked = np.array(list(combinations(range(width), radius)), np.int64).reshape(comb(width, radius), radius)
        masks.append(np.sort((1 << picked).sum(axis=1)))
        shells.append(shells[-1] + len(masks[-1]))
    return np.concatenate(masks), np.array(shells, np.int64)
