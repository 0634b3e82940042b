"""Which matrix of a store holds raw counts."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hashstream.atlas.chunk import CsrChunk
from hashstream.atlas.matrix import RowMatrix
from hashstream.errors import InputError

_BLOCKS = 8
_BLOCK_ROWS = 64
_BLOCK_BYTES = 32 << 20


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
    """A look at up to 8 blocks of 64 rows spread evenly over the matrix, or of fewer, where rows may be long."""
    n_rows = matrix.shape[0]
    n_looked = max(1, min(_BLOCK_ROWS, _BLOCK_BYTES // matrix.max_row_bytes))
    starts = np.unique(np.linspace(0, max(n_rows - n_looked, 0), _BLOCKS).astype(np.int64))
    n_looked_at = n_values = 0
    unsorted = False
    least, most = 0.0, 0.0
    first_row: dict[str, int] = {}  # that has values of a kind
    for start in starts:
        chunk = matrix.read_rows(int(start), min(int(start) + n_looked, n_rows))
        n_looked_at, n_values = n_looked_at + chunk.n_rows, n_values + chunk.nnz
        unsorted = unsorted or _is_unsorted(chunk)
        values: NDArray[Any] = chunk.data
        least = min(least, float(np.nanmin(values, initial=0)))
        most = max(most, float(np.nanmax(values, initial=0)))
        for kind, wrong in (
            ("not finite", ~np.isfinite(values)),
            ("negative", values < 0),
            ("fraction", values != np.floor(values)),
        ):
            if kind not in first_row and wrong.any():
                row = int(np.searchsorted(chunk.indptr, wrong.argmax(), side="right")) - 1
                first_row[kind] = chunk.start + row
    scale = "log-normalisation" if most < 30 else "normalisation"
    words = {
        "not finite": "NaN or infinite values",
        "negative": f"negative values (down to {least:.3g}), as after scaling",
        "fraction": f"non-integer values up to {most:.3g}, as after {scale}",
    }
    problem = next(
        (f"{what}, first in row {first_row[kind]}" for kind, what in words.items() if kind in first_row), None
    )
    return ValueSummary(n_looked_at, n_values, unsorted, problem, most)


def _is_unsorted(chunk: CsrChunk) -> bool:
    falls = chunk.indices[1:] < chunk.indices[:-1]
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
