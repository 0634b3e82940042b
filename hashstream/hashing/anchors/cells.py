"""The cells that are held in memory: log-normalised values of the chosen genes, made dense a batch at a time."""

from __future__ import annotations

from collections.abc import Iterator
from copy import copy
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from hashstream.atlas.sample import SampleBlock
from hashstream.runtime.memory import trim

_GROUP_CELLS = 1024
_TRIMMED = 16  # blocks after which what they took is given back
_STEP = 1 << 20  # values that moments are summed of at once


@dataclass(frozen=True)
class Cells:
    """CSR rows of log-normalised values of the chosen genes.

    Attributes
    ----------
    indptr, genes, values : (n_cells + 1,) int64, (nnz,) integer, (nnz,) float32
        ``values`` are log1p(count * target_sum / total).
    rows : (n_cells,) int64
        Rows of the atlas.
    n_genes : int
    """

    indptr: NDArray[np.int64]
    genes: NDArray[np.integer]
    values: NDArray[np.float32]
    rows: NDArray[np.int64]
    n_genes: int

    @classmethod
    def from_blocks(cls, blocks: list[SampleBlock], n_genes: int, target_sum: float) -> Cells:
        """The cells of some blocks, a list that is emptied meanwhile: both are never held at once."""
        lengths = np.concatenate([np.diff(b.indptr) for b in blocks])
        indptr = np.zeros(len(lengths) + 1, dtype=np.int64)
        np.cumsum(lengths, out=indptr[1:])
        rows = np.concatenate([b.rows for b in blocks])
        genes = np.empty(int(indptr[-1]), dtype=np.result_type(*{b.indices.dtype for b in blocks}))
        values = np.empty(len(genes), dtype=np.float32)
        last = len(genes)
        while blocks:
            block = blocks.pop()
            first = last - len(block.data)
            values[first:last] = np.log1p(block.data * np.repeat(target_sum / block.totals, np.diff(block.indptr)))
            genes[first:last] = block.indices
            last = first
            del block
            if len(blocks) % _TRIMMED == 0:
                trim()
        return cls(indptr, genes, values, rows, n_genes)

    @property
    def n_cells(self) -> int:
        return len(self.rows)

    def moments(self) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Mean and standard deviation of each gene; a constant gene has deviation 1."""
        total, square = np.zeros(self.n_genes), np.zeros(self.n_genes)
        # Numbers of 64 bits for all values at once would take several times what the cells do.
        for first in range(0, len(self.genes), _STEP):
            part = slice(first, first + _STEP)
            genes, values = self.genes[part].astype(np.intp), self.values[part].astype(np.float64)
            np.add.at(total, genes, values)
            np.add.at(square, genes, values * values)
        mean = total / self.n_cells
        variance = np.maximum(square - self.n_cells * mean * mean, 0.0) / max(self.n_cells - 1, 1)
        return mean, np.where(variance > 1e-12, np.sqrt(variance), 1.0)


class Standardised:
    """Standardised, clipped values z of cells, dense, by cell number.

    Parameters
    ----------
    cells
    mean, scale : (n_genes,) float64
    clip : float
    """

    def __init__(self, cells: Cells, mean: NDArray[np.float64], scale: NDArray[np.float64], clip: float) -> None:
        self.cells, self._clip = cells, np.float32(clip)
        self._mean, self._scale = mean.astype(np.float32), scale.astype(np.float32)
        self._absent = -self._mean / self._scale

    @property
    def n_genes(self) -> int:
        return self.cells.n_genes

    def of(self, cells: Cells) -> Standardised:
        """The same standardisation of other cells."""
        other = copy(self)
        other.cells = cells
        return other

    def __call__(self, numbers: NDArray[np.integer]) -> NDArray[np.float32]:
        """z of some cells: (n, n_genes) float32."""
        starts = self.cells.indptr[numbers]
        lengths = self.cells.indptr[np.asarray(numbers) + 1] - starts
        ends = np.cumsum(lengths)
        entries = np.arange(ends[-1] if len(ends) else 0) + np.repeat(starts - ends + lengths, lengths)
        genes = self.cells.genes[entries]
        z = np.empty((len(numbers), self.n_genes), dtype=np.float32)
        z[:] = self._absent
        z[np.repeat(np.arange(len(numbers)), lengths), genes] = (
            self.cells.values[entries] - self._mean[genes]
        ) / self._scale[genes]
        return np.minimum(z, self._clip, out=z)

    def groups(self, numbers: NDArray[np.integer]) -> Iterator[tuple[slice, NDArray[np.float32]]]:
        """About a thousand cells at a time, in order: where they stand in `numbers`, and their z."""
        for start in range(0, len(numbers), _GROUP_CELLS):
            part = slice(start, min(start + _GROUP_CELLS, len(numbers)))
            yield part, self(numbers[part])


@dataclass(frozen=True)
class LabelledCells:
    """The cells in memory, and the classes of those that have one.

    Attributes
    ----------
    z : Standardised
    labels : (n_cells,) int64
        -1 where there is none.
    names : tuple of str
        Of the classes.
    counts : (n_classes,) int64
        Labelled cells of the whole atlas.
    """

    z: Standardised
    labels: NDArray[np.int64]
    names: tuple[str, ...]
    counts: NDArray[np.int64]

    @property
    def n_classes(self) -> int:
        return len(self.names)
