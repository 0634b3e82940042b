"""Read some cells of an atlas, as the standardised gene values of a Hasher."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from hashstream.atlas import Atlas, RowRange, stream_chunks
from hashstream.atlas.sample import raise_on_bad_rows
from hashstream.hashing import Hasher
from hashstream.hashing.genes import DEFAULT_MIN_OVERLAP
from hashstream.kernels import check_rows

#: Wanted rows that are no further apart are read together with what lies between: stored chunks hold many rows.
_GAP = 256
_MOST_ROWS = 4096


def standardised_cells(
    atlas: Atlas, rows: NDArray[np.int64], hasher: Hasher, *, min_overlap: float = DEFAULT_MIN_OVERLAP
) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    """The standardised gene values of some cells.

    Parameters
    ----------
    atlas
    rows : (n,) int64
        Rows of the atlas, ascending and distinct.
    hasher
    min_overlap
        Smallest share of the Hasher's genes that each store must have.

    Returns
    -------
    z : (n, n_genes) float64
        ``min((log1p(count * target_sum / total) - mean) / scale, clip)``, 0 for genes that the cell's store lacks.
    present : (n_genes,) bool
        Genes that at least one of the cells' stores has.

    Raises
    ------
    InputError
        If too few genes match, or a cell's values are no counts.
    """
    z = np.zeros((len(rows), hasher.n_genes))
    present = np.zeros(hasher.n_genes, dtype=bool)
    bound = {}
    done = 0
    for where, chunk in stream_chunks(atlas, _ranges(atlas, rows)):
        store = atlas.stores[where.store]
        if where.store not in bound:
            gene_map = hasher.bind(store.gene_columns, where=str(store.path), min_overlap=min_overlap).match.gene_map
            known = np.flatnonzero(gene_map >= 0)
            genes = np.full(chunk.n_genes, -1, dtype=np.int64)
            genes[known] = gene_map[known]
            here = np.zeros(hasher.n_genes, dtype=bool)
            here[genes[known]] = True
            bound[where.store] = genes, here
        genes, here = bound[where.store]
        wanted = rows[done:][rows[done:] < where.stop]
        taken = chunk.take(wanted - chunk.start)
        flags = np.zeros(chunk.n_rows, np.uint8)  # rows that are not wanted may hold what they will
        flags[wanted - chunk.start] = check_rows(taken.indptr, taken.indices, taken.data, taken.n_genes)
        raise_on_bad_rows(
            flags,
            first_row=chunk.start - atlas.offsets[where.store],
            where=store.matrix.where,
        )
        part = slice(done, done + len(wanted))
        z[part] = _standardise(taken.indptr, genes[taken.indices], taken.data, here, hasher)
        present |= here
        done += len(wanted)
    return z, present


def _standardise(
    indptr: NDArray[np.int64],
    genes: NDArray[np.int64],
    counts: NDArray[np.generic],
    here: NDArray[np.bool_],
    hasher: Hasher,
) -> NDArray[np.float64]:
    n = len(indptr) - 1
    cells = np.repeat(np.arange(n), np.diff(indptr))
    values = np.asarray(counts, dtype=np.float64)
    totals = np.bincount(cells, weights=values, minlength=n)
    used = genes >= 0
    y = np.zeros((n, hasher.n_genes))
    factors = np.divide(hasher.target_sum, totals, out=np.zeros(n), where=totals > 0)
    y[cells[used], genes[used]] = np.log1p(values[used] * factors[cells[used]])
    z = np.minimum((y - hasher.gene_mean) / hasher.gene_scale, hasher.clip)
    return np.where(here, z, 0.0)


def _ranges(atlas: Atlas, rows: NDArray[np.int64]) -> list[RowRange]:
    """Ranges that cover the rows, each within one store."""
    store_of = np.searchsorted(atlas.offsets, rows, side="right") - 1
    ranges: list[RowRange] = []
    for row, store in zip(rows.tolist(), store_of.tolist(), strict=True):
        last = ranges[-1] if ranges else None
        if last and last.store == store and row - last.stop < _GAP and row - last.start < _MOST_ROWS:
            ranges[-1] = RowRange(store, last.start, row + 1)
        else:
            ranges.append(RowRange(store, row, row + 1))
    return ranges
