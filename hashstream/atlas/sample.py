"""A bounded random sample of an atlas: blocks of rows drawn over all of it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hashstream.atlas.chunk import CsrChunk
from hashstream.atlas.counts import summarise_values
from hashstream.atlas.genes import LOOK_AT_NAMES, folded_alike
from hashstream.atlas.open import Atlas, Store
from hashstream.atlas.stream import RowRange, stream_chunks
from hashstream.errors import InputError
from hashstream.kernels import RowFlag, row_totals

BLOCK_ROWS = 256
DEFAULT_SAMPLE_CELLS = 50_000
DEFAULT_SAMPLE_NNZ = 40_000_000


@dataclass(frozen=True)
class SampleBlock:
    """Raw counts of some sampled cells, CSR; the entries of a row are in no order.

    Attributes
    ----------
    indptr, indices, data : (n_cells + 1,) int64, (nnz,) uint16 or int32, (nnz,) as stored
    totals : (n_cells,) float64
        Total count of each cell over all genes of its store, above 0.
    rows : (n_cells,) int64
        Rows of the atlas.
    """

    indptr: NDArray[np.int64]
    indices: NDArray[np.integer]
    data: NDArray[Any]
    totals: NDArray[np.float64]
    rows: NDArray[np.int64]


@dataclass
class Sample:
    """Sampled cells over the genes that all stores share, genes sorted by name.

    Sorting makes everything that is learned from a sample independent of the order of the columns in the file.

    Attributes
    ----------
    blocks : tuple of SampleBlock
        In the order of the atlas. How cells fall into blocks depends on the atlas and the seed alone.
    gene_names : (n_genes,) object
    gene_ids : (n_genes,) object or None
    """

    blocks: tuple[SampleBlock, ...]
    gene_names: NDArray[np.object_]
    gene_ids: NDArray[np.object_] | None

    @property
    def n_cells(self) -> int:
        return sum(len(block.totals) for block in self.blocks)

    def keep_genes(self, genes: NDArray[np.int64]) -> None:
        """Forget the counts of all other genes, block by block so that both are never held at once.

        Parameters
        ----------
        genes : (n_kept,) int64
            Ascending. They become genes 0 to n_kept - 1; totals stay those over all genes.
        """
        dtype = np.dtype(np.uint16 if len(genes) < np.iinfo(np.uint16).max else np.int32)
        number = np.full(len(self.gene_names), largest(dtype), dtype=dtype)
        number[genes] = np.arange(len(genes), dtype=dtype)
        blocks = list(self.blocks)
        self.blocks = ()
        for i, block in enumerate(blocks):
            renumbered = number[block.indices]
            kept = np.flatnonzero(renumbered != largest(dtype))
            indptr = np.searchsorted(kept, block.indptr)
            blocks[i] = SampleBlock(indptr, renumbered[kept], block.data[kept], block.totals, block.rows)
        self.blocks = tuple(blocks)
        self.gene_names = self.gene_names[genes]
        self.gene_ids = None if self.gene_ids is None else self.gene_ids[genes]

    def cells(self, cells: NDArray[np.int64]) -> Sample:
        """The sample of some of its cells (ascending numbers), over the same genes."""
        blocks, first = [], 0
        for block in self.blocks:
            start, stop = np.searchsorted(cells, [first, first + len(block.totals)])
            if start < stop:
                own = cells[start:stop] - first
                lengths = np.diff(block.indptr)
                chosen = np.zeros(len(block.totals), dtype=bool)
                chosen[own] = True
                entries = np.repeat(chosen, lengths)
                indptr = np.concatenate([[0], np.cumsum(lengths[own])])
                kept = block.indices[entries], block.data[entries], block.totals[own], block.rows[own]
                blocks.append(SampleBlock(indptr, *kept))
            first += len(block.totals)
        return Sample(tuple(blocks), self.gene_names, self.gene_ids)


def draw_sample(
    atlas: Atlas, *, n_cells: int = DEFAULT_SAMPLE_CELLS, max_nnz: int = DEFAULT_SAMPLE_NNZ, seed: int = 0
) -> Sample:
    """At most `n_cells` cells with at most about `max_nnz` stored values.

    The atlas is cut into equal strata, and one block of 256 consecutive rows is drawn in each: few reads, yet spread
    over the whole atlas, in the order of its rows. An atlas that is small enough is taken whole. Cells without
    counts are left out.

    Raises
    ------
    InputError
        If stores share no genes, values are no counts, or every sampled cell is empty.
    """
    names, ids, columns = shared_genes(atlas)
    ranges = _draw_ranges(atlas, n_cells=affordable_cells(atlas, n_cells, max_nnz), seed=seed)
    blocks = []
    for rows, chunk in stream_chunks(atlas, ranges):
        store = atlas.stores[rows.store]
        totals, flags = row_totals(chunk.indptr, chunk.indices, chunk.data, chunk.n_genes)
        raise_on_bad_rows(flags, first_row=chunk.start - atlas.offsets[rows.store], where=store.matrix.where)
        blocks.append(sample_block(chunk, columns[rows.store], totals))
    sample = Sample(tuple(block for block in blocks if len(block.totals)), names, ids)
    if sample.n_cells == 0:
        raise InputError(
            f"{', '.join(atlas.paths)}: every sampled cell has zero counts; expected a matrix with counts."
        )
    return sample


def raise_on_bad_rows(flags: NDArray[np.uint8], *, first_row: int, where: str) -> None:
    """An InputError for the first row that is not a row of counts; empty rows pass.

    Parameters
    ----------
    flags : (n_rows,) uint8
        `hashstream.kernels.RowFlag` of each row.
    first_row : int
        Row of the file that the first flag belongs to.
    """
    bad = np.flatnonzero(flags > RowFlag.EMPTY)
    if len(bad) == 0:
        return
    row = first_row + int(bad[0])
    found = {
        RowFlag.NEGATIVE: ("a negative value", "HashStream needs raw counts; name their layer with --layer"),
        RowFlag.NOT_INTEGER: ("a non-integer value", "HashStream needs raw counts; name their layer with --layer"),
        RowFlag.NOT_FINITE: ("NaN, an infinite value, or counts beyond 2^53", "repair or remove the cell"),
        RowFlag.INDEX_RANGE: ("a gene index outside the matrix", "the file is damaged; rebuild it from its source"),
        RowFlag.INDEX_ORDER: (
            "unsorted or repeated gene indices",
            "sort them (scipy: matrix.sum_duplicates()), or rebuild the store with `hashstream ingest`",
        ),
    }
    what, remedy = found[RowFlag(int(flags[bad[0]]))]
    more = f" ({len(bad)} such rows among rows {first_row} to {first_row + len(flags)})" if len(bad) > 1 else ""
    raise InputError(f"{where}: row {row} has {what}{more}; expected non-negative integer counts. Remedy: {remedy}.")


def shared_genes(
    atlas: Atlas,
) -> tuple[NDArray[np.object_], NDArray[np.object_] | None, list[NDArray[np.integer]]]:
    """Genes of all stores sorted by name, their ids, and for each store the new number of each column (or the mark)."""
    shared = set(atlas.stores[0].gene_names)
    for store in atlas.stores[1:]:
        shared &= set(store.gene_names)
    if not shared:
        raise InputError(
            f"{' and '.join(atlas.paths)}: no gene name is in all of them; use stores that name genes the same way."
        )
    names = np.asarray(sorted(shared), dtype=object)
    position = {name: i for i, name in enumerate(names)}
    dtype = np.dtype(np.uint16 if len(names) < np.iinfo(np.uint16).max else np.int32)
    absent = largest(dtype)
    columns = [np.asarray([position.get(n, absent) for n in s.gene_names], dtype=dtype) for s in atlas.stores]
    return names, _gene_ids(atlas.stores[0], names), columns


def few_shared_genes(atlas: Atlas, n_shared: int) -> str | None:
    """A note where stores share less than half of the genes of the smallest: only these are used."""
    by_size = sorted(atlas.stores, key=lambda store: len(store.gene_names))
    least, most = len(by_size[0].gene_names), len(by_size[-1].gene_names)
    if 2 * n_shared >= least:
        return None
    why = folded_alike([store.gene_names for store in atlas.stores], n_shared) or LOOK_AT_NAMES
    return (
        f"only {n_shared:,} genes are in all stores and used, of {least:,} in {by_size[0].path} and {most:,} in "
        f"{by_size[-1].path}: {why}"
    )


def _gene_ids(store: Store, names: NDArray[np.object_]) -> NDArray[np.object_] | None:
    present = store.var_columns()
    for column in ("gene_ids", "gene_id", "ensembl", "ensembl_id", "feature_id", "featureid", "accession"):
        if column in present:
            ids = store.gene_columns.get(column)
            if ids is None:  # numbers
                ids = np.asarray(store.var[column].astype(str), dtype=object)
            of_name = dict(zip(store.gene_names, ids, strict=True))
            return np.array([of_name[name] for name in names], dtype=object)
    return None


def expected_values(atlas: Atlas) -> int:
    """Stored values of all cells; of a dense matrix about as many as are not zero, by a look at some rows."""
    total = 0
    for store in atlas.stores:
        if store.matrix.nnz is not None:
            total += store.matrix.nnz
        else:
            seen = summarise_values(store.matrix)
            total += int(store.n_cells * seen.n_values / max(seen.n_rows, 1))
    return total


def affordable_cells(atlas: Atlas, n_cells: int, max_nnz: int) -> int:
    """At most `n_cells` cells that have about `max_nnz` values at most."""
    return max(1, min(n_cells, atlas.n_cells, int(max_nnz / max(expected_values(atlas) / atlas.n_cells, 1e-9))))


def _draw_ranges(atlas: Atlas, *, n_cells: int, seed: int) -> list[RowRange]:
    if n_cells >= atlas.n_cells:
        starts = np.arange(0, atlas.n_cells, BLOCK_ROWS)
        ends = starts + BLOCK_ROWS
    else:
        n_blocks = -(-n_cells // BLOCK_ROWS)
        edges = np.linspace(0, atlas.n_cells, n_blocks + 1).astype(np.int64)
        room = np.maximum(np.diff(edges) - BLOCK_ROWS, 0)
        starts = edges[:-1] + np.random.default_rng(seed).integers(0, room + 1)
        ends = np.minimum(starts + BLOCK_ROWS, edges[1:])
    offsets = atlas.offsets
    ranges = []
    taken = 0
    for start, end in zip(starts.tolist(), ends.tolist(), strict=True):
        stop = min(end, atlas.n_cells, start + max(n_cells - taken, 0))
        for store, (low, high) in enumerate(zip(offsets, offsets[1:], strict=False)):
            first, last = max(start, low), min(stop, high)
            if first < last:
                ranges.append(RowRange(store, first, last))
                taken += last - first
    return ranges


def sample_block(chunk: CsrChunk, columns: NDArray[np.integer], totals: NDArray[np.float64]) -> SampleBlock:
    """The cells of a chunk that have counts, over the kept genes under their new numbers; stored zeros are left out."""
    genes, counted = columns[chunk.indices], totals > 0
    if counted.all() and genes.max() < _absent(columns) and chunk.data.all():
        return SampleBlock(chunk.indptr.copy(), genes, chunk.data.copy(), totals, np.arange(chunk.start, chunk.stop))
    cells = np.repeat(np.arange(chunk.n_rows), np.diff(chunk.indptr))
    kept = (genes != _absent(columns)) & counted[cells] & (chunk.data != 0)
    indptr = np.zeros(int(counted.sum()) + 1, dtype=np.int64)
    np.cumsum(np.bincount(cells[kept], minlength=chunk.n_rows)[counted], out=indptr[1:])
    rows = chunk.start + np.flatnonzero(counted)
    return SampleBlock(indptr, genes[kept], chunk.data[kept], totals[counted], rows)


def _absent(columns: NDArray[np.integer]) -> int:
    """What marks a column that is not a shared gene."""
    return largest(columns.dtype)


def largest(dtype: np.dtype[Any]) -> int:
    return int(np.iinfo(dtype).max)
