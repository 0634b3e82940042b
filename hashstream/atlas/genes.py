"""The columns of a gene table that may identify genes."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from hashstream.atlas._elements import attribute, read_plain_text

if TYPE_CHECKING:
    import pandas as pd

VAR_NAMES = "var_names"


def gene_columns(var: pd.DataFrame) -> dict[str, NDArray[np.object_]]:
    """The index of a gene table as ``var_names``, and every text column: (n_genes,) strings each."""
    columns: dict[str, NDArray[np.object_]] = {VAR_NAMES: np.asarray(var.index.astype(str), dtype=object)}
    for name in var.columns:
        values = var[name]
        if values.dtype.kind in "OSU" or str(values.dtype) in ("category", "string", "str"):
            columns.setdefault(str(name), np.asarray(values.astype(str), dtype=object))
    return columns


def read_gene_columns(node: Any) -> dict[str, NDArray[np.object_]] | None:
    """As `gene_columns` of a stored table, without pandas, whose loading takes longer than all else of a start.

    None for a table that holds anything but text, numbers and categories of text.
    """
    if (attribute(node, "encoding-type"), attribute(node, "encoding-version")) != ("dataframe", "0.2.0"):
        return None
    stored = {VAR_NAMES: attribute(node, "_index")}
    for key in attribute(node, "column-order"):
        name = key.decode() if isinstance(key, bytes) else str(key)
        stored.setdefault(name, name)
    columns: dict[str, NDArray[np.object_]] = {}
    for name, key in stored.items():
        kind = getattr(node[key], "dtype", None)
        if name != VAR_NAMES and kind is not None and np.dtype(kind).kind in "biuf":
            continue
        values = read_plain_text(node[key])
        if values is None:
            return None
        columns[name] = values
    return columns
