"""Draw labelled cells from an atlas of any size: rows balanced over types, read in one pass."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from hashstream.atlas import Atlas
from hashstream.atlas.sample import (
    Sample,
    SampleBlock,
    _affordable_cells,
    _block,
    _largest,
    raise_on_bad_rows,
    shared_genes,
)
from hashstream.atlas.stream import plan_ranges, stream_chunks
from hashstream.errors import InputError
from hashstream.kernels import row_totals

#: Share of the drawn cells that may be without a label, where there are any.
_UNLABELLED_SHARE = 0.2


def balanced_rows(
    labels: NDArray[np.int32], n_classes: int, n_wanted: int, *, rng: np.random.Generator
) -> NDArray[np.int64]:
    """Rows of about `n_wanted` labelled cells, ascending: all of small classes, equally many of the larger ones.

    Parameters
    ----------
    labels : (n_cells,) int32
        -1 where there is none.
    """
    sizes = np.bincount(labels[labels >= 0], minlength=n_classes)
    if sizes.sum() <= n_wanted:
        return np.flatnonzero(labels >= 0)
    # The largest number a class at which the total fits: classes below it give their surplus to the others.
    rising = np.sort(sizes)
    room = (n_wanted - np.cumsum(rising) + rising) / np.arange(n_classes, 0, -1)
    quota = max(int(room[int((rising > room).argmax())]), 1)
    # A random number for each cell, and those that are smallest within their class.
    key = rng.random(len(labels))
    order = np.lexsort((key, labels))
    first = int((labels < 0).sum())
    rank = np.empty(len(labels), dtype=np.int64)
    starts = np.concatenate([[0], np.cumsum(sizes)])[:-1] + first
    rank[order] = np.arange(len(labels))
    rank -= starts[labels]
    return np.flatnonzero((labels >= 0) & (rank < quota))


def draw_labelled(
    atlas: Atlas, labels: NDArray[np.int32], n_classes: int, *, n_cells: int, max_nnz: int, rng: np.random.Generator
) -> tuple[Sample, bool]:
    """A sample of labelled cells and, up to a fifth, of cells without a label, over the genes that all stores share.

    Returns
    -------
    sample : Sample
    whole : bool
        Whether every labelled cell was taken.
    """
    n_wanted = _affordable_cells(atlas, n_cells, max_nnz)
    unlabelled = np.flatnonzero(labels < 0)
    n_unlabelled = min(len(unlabelled), int(_UNLABELLED_SHARE * n_wanted))
    n_labelled = len(labels) - len(unlabelled)
    if n_labelled < n_wanted - n_unlabelled:
        n_unlabelled = min(len(unlabelled), n_wanted - n_labelled)
    rows = balanced_rows(labels, n_classes, n_wanted - n_unlabelled, rng=rng)
    whole = len(rows) == n_labelled
    if n_unlabelled:
        rows = np.sort(np.concatenate([rows, rng.choice(unlabelled, n_unlabelled, replace=False)]))
    names, ids, columns = shared_genes(atlas)
    return Sample(tuple(read_cells(atlas, rows, columns)), names, ids), whole


def gene_columns(atlas: Atlas, names: NDArray[np.object_]) -> list[NDArray[np.integer]]:
    """For each store the number of each of its columns among `names`, or the largest number of the type."""
    dtype = np.dtype(np.uint16 if len(names) < np.iinfo(np.uint16).max else np.int32)
    position = {str(name): i for i, name in enumerate(names)}
    absent = _largest(dtype)
    return [np.asarray([position.get(str(n), absent) for n in s.gene_names], dtype=dtype) for s in atlas.stores]


def read_cells(atlas: Atlas, rows: NDArray[np.int64], columns: list[NDArray[np.integer]]) -> list[SampleBlock]:
    """Some cells, in one pass over the chunks that hold any of them; empty cells are left out.

    Parameters
    ----------
    rows : (n,) int64
        Ascending rows of the atlas.
    columns
        Of each store, the number of each column, or the largest number of the type for a gene that is not wanted.

    Raises
    ------
    InputError
        If a chunk holds values that are no counts, or every cell is empty.
    """
    wanted = (r for r in plan_ranges(atlas) if np.searchsorted(rows, r.start) < np.searchsorted(rows, r.stop))
    blocks: list[SampleBlock] = []
    for span, chunk in stream_chunks(atlas, wanted):
        store = atlas.stores[span.store]
        totals, flags = row_totals(chunk.indptr, chunk.indices, chunk.data, chunk.n_genes)
        raise_on_bad_rows(flags, first_row=chunk.start - atlas.offsets[span.store], where=store.matrix.where)
        first, last = np.searchsorted(rows, [span.start, span.stop])
        drawn = rows[first:last] - chunk.start
        block = _block(chunk.take(drawn), columns[span.store], totals[drawn])
        if len(block.totals):
            blocks.append(replace(block, rows=rows[first:last][block.rows]))
    if not blocks:
        raise InputError(
            f"{', '.join(atlas.paths)}: every cell to learn from has zero counts; expected a matrix with counts."
        )
    return blocks
