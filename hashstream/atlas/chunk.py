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

    def with_sorted_rows(self) -> CsrChunk:
        """A copy whose rows are in the order of their columns; the chunk itself if a column is beyond 32 bits."""
        low, high = (int(self.indices.min()), int(self.indices.max())) if self.nnz else (0, 0)
        if not 0 <= low <= high <= np.iinfo(np.int32).max:
            return self
        import scipy.sparse as sp

        values = self.data.astype(np.float32) if self.data.dtype == np.float16 else self.data
        shape = (self.n_rows, max(self.n_genes, high + 1))
        indices, indptr = self.indices.astype(np.int32), self.indptr.astype(np.int32)
        rows = sp.csr_matrix((np.array(values), indices, indptr), shape=shape)
        rows.has_sorted_indices = False
        rows.sort_indices()
        return CsrChunk(self.start, self.indptr, rows.indices, rows.data, self.n_genes)

    def take(self, rows: NDArray[np.integer]) -> CsrChunk:
        """A chunk of some of the rows (positions within the chunk), in the order given; its `start` is 0."""
        lengths = np.diff(self.indptr)[rows]
        indptr = np.zeros(len(rows) + 1, dtype=np.int64)
        np.cumsum(lengths, out=indptr[1:])
        entries = np.repeat(self.indptr[:-1][rows] - indptr[:-1], lengths) + np.arange(indptr[-1])
        return CsrChunk(0, indptr, self.indices[entries], self.data[entries], self.n_genes)
