"""Tables and columns of AnnData stores.

AnnData reads them. The plainest kinds, which gene names and labels mostly are, are read here as AnnData would: loading
it, and dask with it, would be much of the start-up of a stage that needs nothing else of it.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray


def read_element(node: Any) -> Any:
    """An element of a zarr or HDF5 store: what ``anndata.io.read_elem`` gives for it.

    A column of a table by AnnData 0.7 is what that gives for it in the table: with its categories, which lie elsewhere.
    """
    found = _read_plain(node)
    if found is not None:
        return found
    from anndata.io import read_elem

    if "categories" in node.attrs and hasattr(node, "shape"):
        import pandas as pd

        categories = _parent(node)[attribute(node, "categories")]  # a reference, or a path in the table
        ordered = bool(attribute(categories, "ordered"))
        return pd.Categorical.from_codes(read_elem(node), read_elem(categories), ordered=ordered)
    return read_elem(node)


def _parent(node: Any) -> Any:
    """The group that holds an array."""
    if hasattr(node, "parent"):
        return node.parent
    import zarr

    return zarr.open_group(node.store, path=node.path.rpartition("/")[0], mode="r")


def _read_plain(node: Any) -> Any:
    """A table, categories, names or numbers; None where it is, or holds, anything else."""
    kind = _kind(node)
    if kind == ("string-array", "0.2.0") and len(node.shape) == 1:
        return _strings(node)
    if kind == ("array", "0.2.0") and len(node.shape) == 1 and np.dtype(node.dtype).kind in "biuf":
        return node[()]
    if kind == ("categorical", "0.2.0"):
        codes, categories = _read_plain(node["codes"]), _read_plain(node["categories"])
        if codes is None or categories is None:
            return None
        import pandas as pd

        return pd.Categorical.from_codes(codes, categories, ordered=bool(attribute(node, "ordered")))
    if kind == ("dataframe", "0.2.0"):
        index_key = attribute(node, "_index")
        order = [name.decode() if isinstance(name, bytes) else str(name) for name in attribute(node, "column-order")]
        columns = {name: _read_plain(node[name]) for name in order}
        index = _read_plain(node[index_key])
        if index is None or any(values is None for values in columns.values()):
            return None
        import pandas as pd

        frame = pd.DataFrame(columns, index=index, columns=order or None)
        if index_key != "_index":
            frame.index.name = index_key
        return frame
    return None


def text_blocks(node: Any, block: int) -> Iterator[NDArray[np.object_]]:
    """Names as strings, some at a time; those that are no plain array of strings are read as a whole."""
    plain = text_array(node)
    source = np.asarray(read_element(node)) if plain is None else as_strings(plain)
    if plain is not None and plain.chunks:  # none is decoded twice
        block = -(-block // plain.chunks[0]) * plain.chunks[0]
    for start in range(0, len(source) if plain is None else plain.shape[0], block):
        yield np.array([str(name) for name in source[start : start + block]], dtype=object)


def read_plain_text(node: Any) -> NDArray[np.object_] | None:
    """Names, or categories that are names, as strings; None for anything else. A cell of no category is "nan"."""
    plain, kind = text_array(node), _kind(node)
    if plain is not None:
        return np.asarray(_strings(plain), dtype=object)
    if kind == ("categorical", "0.2.0"):
        codes, categories = _read_plain(node["codes"]), read_plain_text(node["categories"])
        if codes is None or categories is None or codes.dtype.kind not in "iu":
            return None
        if len(codes) and not -1 <= int(codes.min()) <= int(codes.max()) < len(categories):
            return None  # pandas says what is wrong
        return np.append(categories, "nan")[np.where(codes < 0, len(categories), codes)]
    return None


def text_array(node: Any) -> Any:
    """The one-dimensional array of strings that a node is, or holds where none of them is missing; else None.

    AnnData 0.13 writes names with a mask of those that are missing.
    """
    if _kind(node) == ("nullable-string-array", "0.1.0") and not np.any(node["mask"][()]):
        node = node["values"]
    return node if len(getattr(node, "shape", ())) == 1 and _kind(node) == ("string-array", "0.2.0") else None


def as_strings(array: Any) -> Any:
    """Such an array as what gives strings where it is sliced."""
    return array.asstr() if hasattr(array, "asstr") else array


def _kind(node: Any) -> tuple[Any, Any]:
    return attribute(node, "encoding-type"), attribute(node, "encoding-version")


def _strings(array: Any) -> NDArray[Any]:
    return as_strings(array)[()]


def attribute(node: Any, key: str) -> Any:
    """An attribute of a node; HDF5 may give bytes."""
    value = node.attrs.get(key)
    return value.decode() if isinstance(value, bytes) else value
