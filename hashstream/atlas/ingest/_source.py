"""What every format gives: names, tables, and a matrix that yields its rows in bounded memory."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from hashstream.atlas.chunk import CsrChunk
from hashstream.errors import HashStreamError, InputError


@dataclass(frozen=True)
class Budget:
    """How a reader may use memory and disk.

    Attributes
    ----------
    block_bytes : int
        Size of a block as read; a reader holds about four blocks in all.
    folder : path
        Where it may spill.
    room_bytes : int
        What blocks and the chunks that they are decoded from may take in all.
    """

    block_bytes: int
    folder: Path
    room_bytes: int = 1 << 40


class Matrix(Protocol):
    """Rows of counts, not yet checked: indices may be unsorted, values may be anything."""

    where: str
    """The array in words, for messages: ``a.h5ad: X``."""

    shape: tuple[int, int]
    """Cells and genes."""

    def rows(self, start: int, budget: Budget) -> Iterator[CsrChunk]:
        """Blocks of rows from `start` to the last, in order."""
        ...

    def peek(self) -> NDArray[Any]:
        """Some of the stored values, (at most about 100,000,)."""
        ...


@dataclass
class Source:
    """One opened input.

    Attributes
    ----------
    path : path
    format : str
        In words, for the report: "h5ad, CSR".
    obs : DataFrame
        A row a cell; the index holds the cells' names.
    var : DataFrame
        A row a gene of the matrix; the index holds the genes' names.
    matrix : Matrix
        (n_cells, n_genes).
    array : str
        The array that is taken: "X", "layers/counts", ...
    keep : (n_genes,) bool, optional
        Genes of the matrix to take; all by default.
    notes : list of str
        What the user should know about the choices made.
    """

    path: Path
    format: str
    obs: pd.DataFrame
    var: pd.DataFrame
    matrix: Matrix
    array: str
    keep: NDArray[np.bool_] | None = None
    notes: list[str] = field(default_factory=list)

    @property
    def stem(self) -> str:
        """The file's name without its endings."""
        name = self.path.name
        for ending in (".gz", ".h5ad", ".loom", ".h5", ".zarr", ".csv", ".tsv", ".txt", ".mtx"):
            name = name.removesuffix(ending)
        return name or str(self.path)


class UnsortedRowsError(Exception):
    """A matrix that was taken for sorted is not; the ingest starts it again through the spill."""


@contextmanager
def reading(where: str) -> Iterator[None]:
    """Turn what the format libraries raise on damaged files into one sentence."""
    try:
        yield
    except (HashStreamError, UnsortedRowsError):
        raise
    except MemoryError as error:  # also where a damaged chunk says that it holds billions
        raise InputError(
            f"{where}: takes more memory than there is ({str(error) or 'no more is given'}); the file is damaged: copy "
            "or download it again, or it is larger than this machine can read"
        ) from error
    except Exception as error:  # each library has its own
        raise InputError(
            f"{where}: cannot be read ({type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}); "
            "the file is damaged or cut off: copy or download it again"
        ) from error


def native(where: str, values: Any) -> NDArray[Any]:
    """`values` as an array of a dtype that the kernels know."""
    values = np.asarray(values)
    if values.dtype.kind == "b":
        return values.view(np.uint8)
    if values.dtype.kind not in "iuf" or values.dtype.itemsize > 8:
        raise not_counts(where, f"values of type {values.dtype}")
    if values.dtype == np.float16:
        return values.astype(np.float32)
    return values if values.dtype.isnative else values.astype(values.dtype.newbyteorder("="))


def text(values: NDArray[Any]) -> NDArray[np.object_]:
    """Strings from bytes or strings, (n,)."""
    return np.array([v.decode("utf-8") if isinstance(v, bytes) else str(v) for v in values], dtype=object)


def not_counts(where: str, fault: str, row: int | None = None) -> InputError:
    """The error for values that are no counts."""
    at = "" if row is None else f", row {row:,}"
    return InputError(
        f"{where}{at}: {fault}; expected counts (whole numbers from 0). If they are elsewhere, name the layer "
        "that holds them with --layer (raw for raw.X)"
    )
