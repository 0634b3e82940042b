"""Loom files (https://linnarssonlab.org/loompy/format): a dense matrix of genes x cells with attributes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import h5py
import pandas as pd

from hashstream.atlas.ingest._arrays import DenseMatrix
from hashstream.atlas.ingest._rows import FAULTS, first_fault
from hashstream.atlas.ingest._source import Source, not_counts, reading, text
from hashstream.errors import InputError

GENE_NAMES = ("Gene", "var_names", "gene_names", "GeneName", "Accession", "gene_ids")
CELL_NAMES = ("CellID", "obs_names", "Cell", "cell_names", "barcode", "Barcode")


def open_loom(path: Path, root: h5py.File, layer: str | None) -> Source:
    """The source in an open loom file."""
    layers = sorted(root["layers"]) if "layers" in root else []
    there = ["matrix"] * ("matrix" in root) + [f"layers/{name}" for name in layers]
    if "matrix" not in root or "row_attrs" not in root or "col_attrs" not in root:
        raise InputError(
            f"{path}: not a whole loom file: it has {', '.join(sorted(root)) or 'nothing'}; expected matrix, row_attrs "
            "and col_attrs"
        )
    notes: list[str] = []
    if layer is None:
        name, faults = "", []
        for candidate in [c for c in ("matrix", "layers/counts") if c in there]:
            fault = first_fault(_matrix(path, root, candidate).peek())
            if not fault:
                name = candidate
                break
            faults.append(FAULTS[fault])
        if not name:
            raise not_counts(f"{path}: matrix", f"{faults[0]}, and no counts in layers/counts")
        if faults:
            notes.append(f"{name} is taken, since matrix has {faults[0]}")
    else:
        name = "matrix" if layer in ("matrix", "X") else f"layers/{layer}"
        if name not in there:
            raise InputError(f"{path}: has no {name}; it has {', '.join(there)}")
    matrix = _matrix(path, root, name)
    n_genes, n_cells = root[name].shape
    obs = _attributes(path, root["col_attrs"], n_cells, CELL_NAMES)
    var = _attributes(path, root["row_attrs"], n_genes, GENE_NAMES)
    if var is None:
        raise InputError(
            f"{path}: row_attrs has no gene names; expected one of {', '.join(GENE_NAMES)}, found "
            f"{', '.join(sorted(root['row_attrs'])) or 'none'}"
        )
    if obs is None:
        obs = pd.DataFrame(index=[str(i) for i in range(n_cells)])
    return Source(path, "loom, dense", obs, var, matrix, name, notes=notes)


def _matrix(path: Path, root: h5py.File, name: str) -> DenseMatrix:
    where = f"{path}: {name}"
    with reading(where):
        array = root[name]
        if not isinstance(array, h5py.Dataset) or array.ndim != 2:
            raise InputError(f"{where}: is not a two-dimensional array; expected genes x cells")
    return DenseMatrix(where, array, cells_first=False)


def _attributes(path: Path, group: h5py.Group, n: int, names: tuple[str, ...]) -> pd.DataFrame | None:
    """One-dimensional attributes as a table, indexed by the first of `names` that is there."""
    columns: dict[str, Any] = {}
    for key in group:
        with reading(f"{path}: {group.name}/{key}"):
            values = group[key]
            if not isinstance(values, h5py.Dataset) or values.ndim != 1:
                continue
            if len(values) != n:
                raise InputError(
                    f"{path}: {group.name}/{key} has {len(values):,} values, expected {n:,} as in the matrix"
                )
            raw = values[:]
        columns[key] = text(raw) if raw.dtype.kind in "OSU" else raw
    index = next((name for name in names if name in columns), None)
    if index is None:
        return pd.DataFrame(columns, index=[str(i) for i in range(n)]) if names is CELL_NAMES else None
    labels = pd.Index([str(label) for label in columns.pop(index)])
    return pd.DataFrame(columns, index=labels)
