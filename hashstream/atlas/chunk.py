"""The unit that flows through the engine: a block of consecutive cells in CSR form."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, slots=True)
class CsrChunk:
    """Rows `start` to `start + n_rows` of a count matrix.

    Attributes
    ----------
    start : int
        Row of the matrix that the chunk's first row is.
    indptr : (n_rows + 1,) int64
        Row pointers local to the chunk: ``indptr[0] == 0`` and ``indptr[-1] == len(indices) == len(data)``.
    indices : (nnz,) unsigned or signed integer
        Column (gene) of each stored value.
    data : (nnz,) integer or float
        Stored values (counts).
    n_genes : int
        Number of columns of the matrix.
    """

    start: int
    indptr: NDArray[np.int64]
    indices: NDArray[np.integer]
    data: NDArray[np.generic]
    n_genes: int

    @property
    def n_rows(self) -> int:
        return len(self.indptr) - 1

    @property
    def stop(self) -> int:
        return self.start + self.n_rows

    @property
    def nnz(self) -> int:
        return int(self.indptr[-1])

    def take(self, rows: NDArray[np.integer]) -> CsrChunk:
        """A chunk of some of the rows (positions within the chunk), in the order given; its `start` is 0."""
        lengths = np.diff(self.indptr)[rows]
        indptr = np.zeros(len(rows) + 1, dtype=np.int64)
        np.cumsum(lengths, out=indptr[1:])
        entries = np.repeat(self.indptr[:-1][rows] - indptr[:-1], lengths) + np.arange(indptr[-1])
        return CsrChunk(0, indptr, self.indices[entries], self.data[entries], self.n_genes)
