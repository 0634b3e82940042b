"""AnnData files: h5ad, and zarr of format 2 and 3."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import h5py
import pandas as pd
import zarr

from hashstream.atlas._checks import check_column_names
from hashstream.atlas._elements import read_element
from hashstream.atlas.ingest._arrays import CscMatrix, CsrMatrix, DenseMatrix
from hashstream.atlas.ingest._rows import FAULTS, first_fault
from hashstream.atlas.ingest._source import Matrix, Source, not_counts, reading
from hashstream.atlas.layout import check_lengths, stated_shape
from hashstream.atlas.missing import check_chunks
from hashstream.atlas.open import names_of
from hashstream.errors import InputError

FALLBACKS = ("layers/counts", "raw/X")


def open_anndata(path: Path, root: Any, kind: str, layer: str | None) -> Source:
    """The source in an open HDF5 or zarr group; `kind` is its name in the report ("h5ad")."""
    chosen, notes = _choose(path, root, layer)
    matrix, form = _matrix(path, root, chosen)
    obs, obs_notes = _table(path, root, "obs", matrix.shape[0])
    var, var_notes = _table(path, root, "raw/var" if chosen == "raw/X" else "var", matrix.shape[1])
    return Source(path, f"{kind}, {form}", obs, var, matrix, chosen, notes=[*notes, *obs_notes, *var_notes])


def _choose(path: Path, root: Any, layer: str | None) -> tuple[str, list[str]]:
    """The array that holds the counts, and what to say of the choice."""
    there = ["X"] if "X" in root else []
    there += [f"layers/{name}" for name in root["layers"]] if "layers" in root else []
    there += ["raw/X"] if "raw/X" in root else []
    if layer is not None:
        (wanted,) = names_of(layer)
        if wanted not in there:
            raise InputError(f"{path}: has no {wanted}; it has {', '.join(there) or 'no matrix'}")
        return wanted, []
    faults: dict[str, str] = {}
    for candidate in ("X", *FALLBACKS):
        if candidate not in there:
            continue
        values = _matrix(path, root, candidate)[0].peek()
        fault = first_fault(values)
        if not fault:
            notes = [f"{candidate} is taken, since {first} has {found}" for first, found in [*faults.items()][:1]]
            return candidate, notes
        faults[candidate] = FAULTS[fault]
    if not faults:
        raise InputError(f"{path}: has no X, layers/counts or raw/X; it has {', '.join(there) or 'no matrix'}")
    first = next(iter(faults))
    elsewhere = " or ".join(name for name in ("X", "layers/counts", "raw.X") if name != first.replace("/X", ".X"))
    raise not_counts(f"{path}: {first}", f"{faults[first]}, and no counts in {elsewhere}")


def _matrix(path: Path, root: Any, name: str) -> tuple[Matrix, str]:
    where = f"{path}: {name}"
    with reading(where):
        node = root[name]
        attributes = dict(node.attrs)
        if isinstance(node, h5py.Dataset | zarr.Array):
            if len(node.shape) != 2:
                raise InputError(f"{where}: an array of shape {node.shape}; expected cells x genes")
            return DenseMatrix(where, node), "dense"
        encoding = attributes.get("encoding-type") or f"{attributes.get('h5sparse_format', '?')}_matrix"
        shape = attributes.get("shape", attributes.get("h5sparse_shape"))
        if encoding not in ("csr_matrix", "csc_matrix") or shape is None:
            raise InputError(f"{where}: is stored as {encoding}; expected a CSR, CSC or dense matrix")
        arrays = node["indptr"], node["indices"], node["data"]
    size = stated_shape(shape, where)
    if encoding == "csr_matrix":
        return CsrMatrix(where, size, *arrays), "CSR"
    return CscMatrix(where, size, *arrays), "CSC"


def _table(path: Path, root: Any, name: str, n_rows: int) -> tuple[pd.DataFrame, list[str]]:
    """A table of cells or genes, and what to say of it."""
    if name not in root:
        raise InputError(f"{path}: has no {name}; expected an AnnData file with obs and var")
    with reading(f"{path}: {name}"), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # older encodings: they are read all the same
        check_lengths(root[name], n_rows, f"{path}: {name}")
        names = dict(root[name].attrs).get("_index")
        if isinstance(names, str) and names in root[name]:
            stored = root[name][names]
            if hasattr(stored, "keys") and "values" in stored:  # with a mask of those that are missing
                names, stored = f"{names}/values", stored["values"]
            check_chunks(f"{path}: {name}/{names}", stored)
        table = read_element(root[name])
    if not isinstance(table, pd.DataFrame):
        raise InputError(f"{path}: {name} is not a table; expected one row a {'cell' if name == 'obs' else 'gene'}")
    table.columns, notes = _storable(name, [str(column) for column in table.columns])
    check_column_names(f"{path}: {name}", table.columns)
    table.index = table.index.astype(str)
    return table, notes


def _storable(where: str, names: list[str]) -> tuple[list[str], list[str]]:
    """Column names without slashes, which in zarr would be folders, and what to say of it."""
    made: list[str] = []
    notes: list[str] = []
    for name in names:
        usual = not {"", ".", ".."} & set(name.split("/"))
        new = name.replace("/", "_") if usual else name
        while new != name and (new in names or new in made):
            new += "_"
        if new != name:
            notes.append(f"{where}: column {name!r} is called {new!r}, as no column of a zarr store may have a slash")
        made.append(new)
    return made, notes
