"""Draw labelled cells from an atlas of any size: rows balanced over types, read in one pass."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from hashstream.atlas.open import Atlas
from hashstream.atlas.sample import (
    Sample,
    SampleBlock,
    affordable_cells,
    largest,
    raise_on_bad_rows,
    sample_block,
    shared_genes,
)
from hashstream.atlas.stream import plan_ranges, stream_chunks
from hashstream.errors import InputError
from hashstream.kernels import row_totals

#: Share of the drawn cells that may be without a label, where there are any.
_UNLABELLED_SHARE = 0.2
_BLOCK_ROWS = 1 << 20


def balanced_rows(
    labels: NDArray[np.int32], n_classes: int, n_wanted: int, *, rng: np.random.Generator, balance: float = 1.0
) -> NDArray[np.int64]:
    """Rows of about `n_wanted` labelled cells, ascending: all of small classes, equally many of the larger ones.

    Parameters
    ----------
    labels : (n_cells,) int32
        -1 where there is none.
    balance : float
        Of the larger classes, one of n cells gets a share of n to the power 1 - balance.
    """
    sizes = _sizes(labels, n_classes)
    if sizes.sum() <= n_wanted:
        return np.flatnonzero(labels >= 0)
    # The largest number a share at which the total fits: classes below it give their surplus to the others.
    shares = sizes.astype(np.float64) ** (1 - balance)
    full_at = sizes.astype(np.float64) ** balance
    rising = np.argsort(full_at, kind="stable")
    taken, rest = np.cumsum(sizes[rising]) - sizes[rising], np.cumsum(shares[rising][::-1])[::-1]
    room = (n_wanted - taken) / rest
    a_share = room[int((full_at[rising] > room).argmax())]
    return draw_rows(labels, np.minimum(sizes, np.maximum((a_share * shares).astype(np.int64), 1)), rng=rng)


def draw_rows(
    classes: NDArray[np.integer | np.bool_], n_wanted: NDArray[np.integer], *, rng: np.random.Generator
) -> NDArray[np.int64]:
    """So many rows of each class, ascending, spread over all of its rows.

    The rows of a class are cut into as many equal strata as are wanted, and one is drawn from each; beside `classes`
    that takes memory for what is wanted only.

    Parameters
    ----------
    classes : (n_cells,) integer or bool
        Rows below 0 belong to no class.
    n_wanted : (n_classes,) integer
        At most the size of each class.
    """
    n_classes = len(n_wanted)
    sizes = _sizes(classes, n_classes)
    offsets = np.cumsum(sizes) - sizes
    wanted = np.concatenate(
        [first + _strata(int(n), int(m), rng) for first, n, m in zip(offsets, sizes, n_wanted, strict=True)]
    )
    met, found = offsets.copy(), []
    for number, block in enumerate(_blocks(classes)):
        rows = np.flatnonzero(block >= 0)
        rows = rows[np.argsort(block[rows], kind="stable")]
        n_here = np.bincount(block[rows], minlength=n_classes)
        # The place of each row among all rows, put in the order of their classes.
        places = np.arange(len(rows)) + np.repeat(met - (np.cumsum(n_here) - n_here), n_here)
        at = np.minimum(np.searchsorted(wanted, places), max(len(wanted) - 1, 0))
        if len(wanted):
            found.append(np.sort(rows[wanted[at] == places]) + number * _BLOCK_ROWS)
        met += n_here
    return np.concatenate([np.empty(0, np.int64), *found])


def _sizes(classes: NDArray[np.integer | np.bool_], n_classes: int) -> NDArray[np.int64]:
    """(n_classes,) int64 rows of each class."""
    sizes = np.zeros(n_classes, np.int64)
    for block in _blocks(classes):
        sizes += np.bincount(block[block >= 0], minlength=n_classes)
    return sizes


def _blocks(classes: NDArray[np.integer | np.bool_]) -> Iterator[NDArray[np.integer | np.bool_]]:
    return (classes[start : start + _BLOCK_ROWS] for start in range(0, len(classes), _BLOCK_ROWS))


def _strata(size: int, n_wanted: int, rng: np.random.Generator) -> NDArray[np.int64]:
    """(n_wanted,) int64 numbers below `size`, ascending, one of each of `n_wanted` equal parts."""
    edges = np.linspace(0, size, n_wanted + 1).astype(np.int64)
    return edges[:-1] + rng.integers(0, np.diff(edges))


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
    n_wanted = affordable_cells(atlas, n_cells, max_nnz)
    n_labelled = int(np.count_nonzero(labels >= 0))
    n_without = len(labels) - n_labelled
    n_unlabelled = min(n_without, int(_UNLABELLED_SHARE * n_wanted))
    if n_labelled < n_wanted - n_unlabelled:
        n_unlabelled = min(n_without, n_wanted - n_labelled)
    rows = balanced_rows(labels, n_classes, n_wanted - n_unlabelled, rng=rng)
    whole = len(rows) == n_labelled
    if n_unlabelled:
        rows = np.sort(np.concatenate([rows, draw_rows(labels < 0, np.array([0, n_unlabelled]), rng=rng)]))
    names, ids, columns = shared_genes(atlas)
    return Sample(tuple(read_cells(atlas, rows, columns)), names, ids), whole


def numbers_among(atlas: Atlas, names: NDArray[np.object_]) -> list[NDArray[np.integer]]:
    """For each store the number of each of its columns among `names`, or the largest number of the type."""
    dtype = np.dtype(np.uint16 if len(names) < np.iinfo(np.uint16).max else np.int32)
    position = {str(name): i for i, name in enumerate(names)}
    absent = largest(dtype)
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
        block = sample_block(chunk.take(drawn), columns[span.store], totals[drawn])
        if len(block.totals):
            blocks.append(replace(block, rows=rows[first:last][block.rows]))
    if not blocks:
        raise InputError(
            f"{', '.join(atlas.paths)}: every cell to learn from has zero counts; expected a matrix with counts."
        )
    return blocks
