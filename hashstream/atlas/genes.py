"""The columns of a gene table that may identify genes."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from hashstream.atlas._elements import attribute, read_plain_text

if TYPE_CHECKING:
    import pandas as pd

VAR_NAMES = "var_names"
_BETWEEN = "\0"


def gene_columns(var: pd.DataFrame) -> dict[str, NDArray[np.object_]]:
    """The index of a gene table as ``var_names``, and every text column: (n_genes,) strings each."""
    columns: dict[str, NDArray[np.object_]] = {VAR_NAMES: np.asarray(var.index.astype(str), dtype=object)}
    for name in var.columns:
        values = var[name]
        if values.dtype.kind in "OSU" or str(values.dtype) in ("category", "string", "str"):
            columns.setdefault(str(name), np.asarray(values.astype(str), dtype=object))
    return columns


#: Strings in one; or as they are, where one holds what is put between them.
PackedNames = str | NDArray[np.object_]


def packed(values: NDArray[np.object_]) -> PackedNames:
    """Strings in a tenth of the memory; those of several stores that are the same are held once."""
    text = _BETWEEN.join(values)
    return sys.intern(text) if text.count(_BETWEEN) == len(values) - 1 else values


def unpacked(names: PackedNames) -> NDArray[np.object_]:
    """The strings of `packed`, anew."""
    return np.array(names.split(_BETWEEN), dtype=object) if isinstance(names, str) else names


def folded_alike(gene_names: Sequence[Iterable[Any]], n_shared: int) -> str | None:
    """What would make gene names of several stores the same, of which few are; None for neither of what is tried."""
    folds: dict[str, Callable[[str], str]] = {
        "case": str.upper,
        "a version behind a dot": lambda name: re.sub(r"\.\d+$", "", name),
    }
    for what, fold in folds.items():
        n_folded = len(set.intersection(*({fold(str(name)) for name in names} for names in gene_names)))
        if n_folded > 2 * n_shared:
            return f"{n_folded:,} would be the same but for {what}: write the names of all alike"
    return None


#: A stable id of Ensembl, with or without a version.
ENSEMBL_ID = re.compile(r"^ENS[A-Z]*G\d{6,}(\.\d+)?$")
_SYMBOLS = (
    "gene_symbols",
    "gene_symbol",
    "gene_symbols_harmonized",
    "feature_name",
    "gene_name",
    "gene_names",
    "symbol",
)


def symbols_of(names: NDArray[np.object_], columns: Mapping[str, NDArray[np.object_]]) -> NDArray[np.object_] | None:
    """What genes are called whose names are stable ids, (n_genes,); None where these are no such, or nothing says so.

    Parameters
    ----------
    names : (n_genes,) object
    columns
        `Store.gene_columns` of a store that has these genes.
    """
    if 2 * sum(bool(ENSEMBL_ID.match(str(name).upper())) for name in names) <= len(names):
        return None
    for column in _SYMBOLS:
        if column in columns:
            of_name = dict(zip(columns[VAR_NAMES], columns[column], strict=True))
            found = [of_name[name] for name in names]
            return np.array(
                [name if one in ("", "nan", "<NA>", "None") else one for name, one in zip(names, found, strict=True)],
                dtype=object,
            )
    return None


#: Where `folded_alike` knows nothing.
LOOK_AT_NAMES = "look whether names differ by case or version, or are ids in some and symbols in others"


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
