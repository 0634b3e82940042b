"""10x Genomics .h5 files: CSC of genes x cells, which is CSR of cells (Cell Ranger 3 and later, and before)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pandas as pd

from hashstream.atlas.ingest._arrays import CsrMatrix
from hashstream.atlas.ingest._source import Source, reading, text
from hashstream.errors import InputError

EXPRESSION = "Gene Expression"


def open_tenx_h5(path: Path, root: h5py.File, layer: str | None) -> Source:
    """The source in an open 10x file."""
    if layer is not None:
        raise InputError(f"{path}: a 10x file has one matrix and no layer {layer!r}; leave --layer out")
    groups = tenx_groups(root)
    if len(groups) > 1:
        raise InputError(
            f"{path}: has one matrix for each of {', '.join(groups)}; expected one genome: split the file by genome"
        )
    group = root[groups[0]]
    where = f"{path}: {groups[0]}"
    with reading(where):
        missing = [name for name in ("data", "indices", "indptr", "shape") if name not in group]
        if missing:
            raise InputError(f"{where}: lacks {', '.join(missing)}; the file is damaged or cut off")
        n_genes, n_cells = (int(n) for n in group["shape"][:])
        barcodes = _column(group, "barcodes", n_cells, where)
        var, notes, keep = _genes(group, n_genes, where)
    matrix = CsrMatrix(where, (n_cells, n_genes), group["indptr"], group["indices"], group["data"])
    obs = pd.DataFrame(index=pd.Index(barcodes))
    return Source(path, "10x h5, CSR", obs, var, matrix, groups[0], keep=keep, notes=notes)


def tenx_groups(root: h5py.File) -> list[str]:
    """Groups that hold a 10x matrix: "matrix", or before Cell Ranger 3 one for each genome."""
    return [
        name
        for name, node in root.items()
        if isinstance(node, h5py.Group) and "barcodes" in node and ("features" in node or "genes" in node)
    ]


def _column(group: h5py.Group, name: str, n: int, where: str) -> np.ndarray[Any, np.dtype[np.object_]]:
    """Strings of a column of `n` values, whose length is looked at before it is read."""
    column = group[name]
    if column.shape != (n,):
        found = f"{column.shape[0]:,}" if len(column.shape) == 1 else f"an array of {column.shape}"
        raise InputError(f"{where}: {found} {name}, but the shape says {n:,}; the file is damaged")
    return text(column[:])


def _genes(
    group: h5py.Group, n: int, where: str
) -> tuple[pd.DataFrame, list[str], np.ndarray[Any, np.dtype[np.bool_]] | None]:
    if "features" not in group:
        names = pd.Index(_column(group, "gene_names", n, where))
        return pd.DataFrame({"gene_ids": _column(group, "genes", n, where)}, index=names), [], None
    features, where = group["features"], f"{where}/features"
    columns = {"gene_ids": _column(features, "id", n, where)}
    for key, name in (("feature_type", "feature_types"), ("genome", "genome")):
        if key in features:
            columns[name] = _column(features, key, n, where)
    var = pd.DataFrame(columns, index=pd.Index(_column(features, "name", n, where)))
    return var, *expression_only(var)


def expression_only(var: pd.DataFrame) -> tuple[list[str], np.ndarray[Any, np.dtype[np.bool_]] | None]:
    """Leave out antibodies and the like; say which."""
    if "feature_types" not in var:
        return [], None
    keep = (var["feature_types"] == EXPRESSION).to_numpy()
    if keep.all() or not keep.any():
        return [], None
    others = ", ".join(sorted(set(var["feature_types"][~keep])))
    return [f"{int((~keep).sum()):,} features that are not genes are left out ({others})"], keep
