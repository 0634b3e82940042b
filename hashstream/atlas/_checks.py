"""What a writer checks before it takes rows, tables or a target."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from hashstream.atlas.chunk import CsrChunk
from hashstream.errors import HashStreamError, InputError, SettingsError

WIDENING = ("uint8", "uint16", "uint32", "float32")
"""Dtypes of stored values, each of which holds what the one before holds (uint32 and float32: see `CsrFiles`)."""

_OTHER_FORMATS = (".h5ad", ".h5", ".hdf5", ".loom", ".csv", ".tsv", ".txt", ".mtx", ".gz", ".parquet", ".npz", ".zip")


def check_chunk(chunk: CsrChunk, n_genes: int) -> None:
    """Raise InputError unless the arrays fit together and to `n_genes`."""
    rows = f"rows {chunk.start:,} to {chunk.stop:,}"
    if chunk.n_genes != n_genes:
        raise InputError(f"{rows}: {chunk.n_genes:,} genes, expected {n_genes:,}; all blocks must have the same genes")
    nnz = len(chunk.indices)
    if chunk.indptr[0] != 0 or chunk.nnz != nnz or len(chunk.data) != nnz or np.any(np.diff(chunk.indptr) < 0):
        raise InputError(
            f"{rows}: row pointers from {int(chunk.indptr[0])} to {chunk.nnz} do not fit {nnz} indices and "
            f"{len(chunk.data)} values; expected pointers that rise from 0 to their number"
        )
    if nnz and (int(chunk.indices.min()) < 0 or int(chunk.indices.max()) >= n_genes):
        raise InputError(
            f"{rows}: column indices from {int(chunk.indices.min())} to {int(chunk.indices.max())}; expected 0 to "
            f"{n_genes - 1}; the matrix is damaged or belongs to other genes"
        )


def needed_dtype(chunk: CsrChunk) -> str:
    """The narrowest stored dtype that holds the chunk's values."""
    data = chunk.data
    if not len(data):
        return WIDENING[0]
    low, high = data.min(), data.max()
    if data.dtype.kind == "f":
        if not (np.isfinite(low) and np.isfinite(high)):
            raise InputError(
                f"rows {chunk.start:,} to {chunk.stop:,}: values that are not finite; replace NaN and infinity first"
            )
        if low < 0 or not np.array_equal(np.rint(data), data):
            return "float32"
    elif data.dtype.kind not in "iub":
        raise InputError(f"rows {chunk.start:,} to {chunk.stop:,}: values of type {data.dtype}, expected numbers")
    elif int(low) < 0:
        return "float32"
    for name in WIDENING[:3]:
        if int(high) <= np.iinfo(name).max:
            return name
    raise InputError(
        f"rows {chunk.start:,} to {chunk.stop:,}: a value of {int(high):,}, expected counts below 2^32; "
        "check that the array holds counts"
    )


def check_ending(path: Path) -> None:
    """Raise SettingsError if the name of a store to make promises another format."""
    ending = path.suffix.lower()
    if ending in _OTHER_FORMATS:
        raise SettingsError(
            f"{path}: an atlas is a zarr folder, but {ending} is the ending of another format; call it "
            f"{path.with_suffix('.zarr').name}. HashStream writes .h5ad with `hashstream export` only."
        )


def check_new_column(name: str, option: str) -> None:
    """Raise SettingsError where a column to make could not be stored under its name."""
    if not _storable(name) or name == "_index":
        raise SettingsError(f"{option} is {name!r}, which cannot be the name of a column; choose another.")


def _storable(name: str) -> bool:
    """Whether a column can have this name in zarr, where it is that of a folder."""
    return "/" not in name and name not in ("", ".", "..")


def check_column_names(where: str, names: Iterable[Any]) -> None:
    """Raise InputError where a column could not be stored under its own name: in zarr that is the name of a folder."""
    for name in map(str, names):
        if not _storable(name):
            raise InputError(
                f"{where} has a column named {name!r}, which cannot be stored in a zarr store; rename it, such as with "
                f"adata.{where[-3:]}.rename(columns=...), and write the file again"
            )


def check_length(name: str, table: Mapping[str, Any] | pd.DataFrame, n: int) -> None:
    """Raise HashStreamError unless every column of `table` has `n` rows."""
    if isinstance(table, pd.DataFrame):
        lengths = {"its index": len(table)}
    else:
        lengths = {key: len(values) for key, values in table.items()}
    for key, length in lengths.items():
        if length != n:
            raise HashStreamError(f"{name} ({key}) has {length:,} rows, expected {n:,}, one for each row of the matrix")
