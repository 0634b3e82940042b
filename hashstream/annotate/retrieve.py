"""The nearest reference cells of query codes, and what they are composed of."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from hashstream.annotate.composition import join_columns
from hashstream.kernels import affine_rows, prefix_mask, words_for_bits
from hashstream.kernels.retrieve import CountedCodes, NearestCells, nearest_cells, nearest_cells_asymmetric

#: The number of a category where cells have none.
MISSING = -1


class CompositionRows(NamedTuple):
    """Compositions as a tidy table: one row a query, column and category that its neighbours are in.

    Attributes
    ----------
    query : (n_rows,) int64
        Ascending.
    column : (n_rows,) int32
        Number of the column, ascending within a query.
    category : (n_rows,) int32
        Number among the column's categories, ascending within a column, at last `MISSING`.
    n_cells : (n_rows,) int64
        Neighbours in it.
    share : (n_rows,) float64
        Of all neighbours of the query; the rows of a column add up to 1.
    """

    query: NDArray[np.int64]
    column: NDArray[np.int32]
    category: NDArray[np.int32]
    n_cells: NDArray[np.int64]
    share: NDArray[np.float64]


@dataclass(frozen=True)
class ReferenceCells:
    """Counted codes of reference cells by one or several columns of obs.

    Attributes
    ----------
    cells : CountedCodes
        The categories of each column are numbered after those of the one before.
    sizes : tuple of int
        Number of categories of each column.
    """

    cells: CountedCodes
    sizes: tuple[int, ...]

    @classmethod
    def of_columns(cls, columns: Sequence[CountedCodes]) -> ReferenceCells:
        """The columns of the same codes together, so that one walk over the codes serves them all."""
        return cls(join_columns(columns), tuple(column.n_categories for column in columns))

    def prefix(self, n_bits: int) -> ReferenceCells:
        """The same cells with the first `n_bits` of their codes only; codes may then repeat."""
        n_words = words_for_bits(n_bits)
        cells = self.cells
        if n_words == cells.codes.shape[1] and n_bits % 64 == 0:
            return self
        codes = cells.codes[:, :n_words] & prefix_mask(n_bits, n_words)
        shortened = CountedCodes(codes, cells.counts, cells.starts, cells.categories, cells.amounts, cells.n_categories)
        return ReferenceCells(shortened, self.sizes)

    def nearest(self, codes: NDArray[np.uint64], k: int, *, n_threads: int = 1) -> NearestCells:
        """See `hashstream.kernels.retrieve.nearest_cells`."""
        return nearest_cells(codes, self.cells, k, n_threads=n_threads)

    def nearest_asymmetric(
        self, margins: NDArray[np.floating], k: int, *, n_candidates: int, n_threads: int = 1
    ) -> NearestCells:
        """See `hashstream.kernels.retrieve.nearest_cells_asymmetric`."""
        return nearest_cells_asymmetric(margins, self.cells, k, n_candidates=n_candidates, n_threads=n_threads)

    def rows(self, found: NearestCells) -> CompositionRows:
        """The compositions of queries as a tidy table; neighbours without a category of a column are `MISSING`."""
        # Each column gets a further category, for the cells that have none.
        n_queries = len(found.n_cells)
        parts, columns, categories, start = [], [], [], 0
        for number, size in enumerate(self.sizes):
            part = found.composition[:, start : start + size]
            parts += [part, (found.n_cells - part.sum(axis=1))[:, None]]
            columns += [number] * (size + 1)
            categories += [*range(size), MISSING]
            start += size
        whole = np.concatenate(parts, axis=1) if parts else np.zeros((n_queries, 0), np.int64)
        query, at = np.nonzero(whole)
        n_cells = whole[query, at]
        return CompositionRows(
            query=query.astype(np.int64),
            column=np.array(columns, dtype=np.int32)[at],
            category=np.array(categories, dtype=np.int32)[at],
            n_cells=n_cells,
            share=n_cells / found.n_cells[query],
        )


def bit_margins(
    embedding: NDArray[np.floating], bit_weight: NDArray[np.floating], bit_bias: NDArray[np.floating], n_bits: int
) -> NDArray[np.float32]:
    """The projections whose signs are the first bits of codes, as `encode_rows` computes them: (n, n_bits) float32.

    Parameters
    ----------
    embedding : (n, n_dims) float
    bit_weight, bit_bias : (n_dims, n_all_bits), (n_all_bits,) float
    """
    return affine_rows(embedding, bit_weight[:, :n_bits], bit_bias[:n_bits])
