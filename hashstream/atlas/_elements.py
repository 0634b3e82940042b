"""Tables and columns of AnnData stores.

AnnData reads them. The plainest kinds, which gene names and labels mostly are, are read here as AnnData would: loading
it, and dask with it, would be much of the start-up of a stage that needs nothing else of it.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd


def read_element(node: Any) -> Any:
    """An element of a zarr or HDF5 store: what ``anndata.io.read_elem`` gives for it."""
    found = _read_plain(node)
    if found is not None:
        return found
    from anndata.io import read_elem

    return read_elem(node)


def _read_plain(node: Any) -> Any:
    """A table, categories, names or numbers; None where it is, or holds, anything else."""
    kind = (_attribute(node, "encoding-type"), _attribute(node, "encoding-version"))
    if kind == ("string-array", "0.2.0") and len(node.shape) == 1:
        return node.asstr()[()] if hasattr(node, "asstr") else node[()]
    if kind == ("array", "0.2.0") and len(node.shape) == 1 and np.dtype(node.dtype).kind in "biuf":
        return node[()]
    if kind == ("categorical", "0.2.0"):
        codes, categories = _read_plain(node["codes"]), _read_plain(node["categories"])
        if codes is None or categories is None:
            return None
        return pd.Categorical.from_codes(codes, categories, ordered=bool(_attribute(node, "ordered")))
    if kind == ("dataframe", "0.2.0"):
        index_key = _attribute(node, "_index")
        order = [name.decode() if isinstance(name, bytes) else str(name) for name in _attribute(node, "column-order")]
        columns = {name: _read_plain(node[name]) for name in order}
        index = _read_plain(node[index_key])
        if index is None or any(values is None for values in columns.values()):
            return None
        frame = pd.DataFrame(columns, index=index, columns=order or None)
        if index_key != "_index":
            frame.index.name = index_key
        return frame
    return None


def _attribute(node: Any, key: str) -> Any:
    value = node.attrs.get(key)
    return value.decode() if isinstance(value, bytes) else value
