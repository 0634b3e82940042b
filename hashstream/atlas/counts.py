"""Which matrix of a store holds raw counts."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from hashstream.atlas.chunk import CsrChunk
from hashstream.atlas.matrix import RowMatrix
from hashstream.errors import InputError

_BLOCKS = 8
_BLOCK_ROWS = 64


@dataclass(frozen=True)
class ValueSummary:
    """What a look at a few blocks of rows of a matrix found.

    Attributes
    ----------
    n_rows, n_values : int
        Rows looked at, and their values that are stored or, of a dense matrix, not zero.
    unsorted : bool
        Whether the columns of a row fall somewhere.
    problem : str or None
        Why they are no counts, with the first row at fault; None where they are.
    maximum : float
    """

    n_rows: int
    n_values: int
    unsorted: bool
    problem: str | None
    maximum: float

    def describe(self) -> str:
        return self.problem or f"integer counts up to {self.maximum:.0f}"


def summarise_values(matrix: RowMatrix) -> ValueSummary:
    """A look at up to 8 blocks of 64 rows spread evenly over the matrix."""
    n_rows = matrix.shape[0]
    starts = np.unique(np.linspace(0, max(n_rows - _BLOCK_ROWS, 0), _BLOCKS).astype(np.int64))
    chunks = [matrix.read_rows(int(s), min(int(s) + _BLOCK_ROWS, n_rows)) for s in starts]
    values = np.concatenate([np.asarray(c.data, dtype=np.float64) for c in chunks])
    rows = np.concatenate([c.start + np.repeat(np.arange(c.n_rows), np.diff(c.indptr)) for c in chunks])
    n_looked_at = sum(c.n_rows for c in chunks)
    unsorted = any(_is_unsorted(chunk) for chunk in chunks)
    maximum = float(np.nanmax(values, initial=0.0))
    scale = "log-normalisation" if maximum < 30 else "normalisation"
    for wrong, what in (
        (~np.isfinite(values), "NaN or infinite values"),
        (values < 0, f"negative values (down to {np.nanmin(values, initial=0.0):.3g}), as after scaling"),
        (values != np.floor(values), f"non-integer values up to {maximum:.3g}, as after {scale}"),
    ):
        if wrong.any():
            problem = f"{what}, first in row {rows[wrong][0]}"
            return ValueSummary(n_looked_at, len(values), unsorted, problem, maximum)
    return ValueSummary(n_looked_at, len(values), unsorted, None, maximum)


def _is_unsorted(chunk: CsrChunk) -> bool:
    falls = np.diff(chunk.indices.astype(np.int64)) < 0
    begins = chunk.indptr[1:-1]
    falls[begins[(begins > 0) & (begins < chunk.nnz)] - 1] = False  # from the end of one row to the next
    return bool(falls.any())


def choose_counts(candidates: dict[str, RowMatrix], *, path: str) -> tuple[str, ValueSummary]:
    """The name of the first candidate (tried in order) that holds raw counts, and what was found there.

    Raises
    ------
    InputError
        If none does; the message says what each one holds.
    """
    found: dict[str, str] = {}
    for name, matrix in candidates.items():
        summary = summarise_values(matrix)
        if summary.problem is None:
            return name, summary
        found[name] = summary.describe()
    listing = "; ".join(f"{name}: {what}" for name, what in found.items())
    raise InputError(
        f"{path}: no raw counts found ({listing}). HashStream needs the non-negative integer counts, in X, in "
        "layers['counts'] or in raw.X; name another layer with --layer, or fetch the file's unnormalised version."
    )
