"""What a stored matrix says of itself, checked before anything is done with it: its shape, and its arrays' types."""

from __future__ import annotations

import numbers
from typing import Any

import numpy as np

from hashstream.errors import InputError

#: Of a column with fewer rows; a column may keep categories that none of its values has.
MOST_CATEGORIES = 1 << 20
_REBUILD = "The file is damaged: rebuild it from its source."
_INTEGERS, _COUNTS = "iu", "iufb"


def stated_shape(value: Any, where: str) -> tuple[int, int]:
    """The attribute ``shape`` of a sparse matrix as (cells, genes).

    Raises
    ------
    InputError
        If it is not two whole numbers from 0.
    """
    sizes = np.asarray(value, dtype=object).tolist() if value is not None else None
    if (
        not isinstance(sizes, list)
        or len(sizes) != 2
        or any(isinstance(n, bool) or not isinstance(n, numbers.Integral) or n < 0 for n in sizes)
    ):
        found = "no attribute 'shape'" if value is None else f"the shape {value!r}"
        raise InputError(
            f"{where}: a sparse matrix with {found}; expected two whole numbers, of cells and of genes. The file is "
            "damaged: rebuild it from its source."
        )
    return int(sizes[0]), int(sizes[1])


def check_lengths(node: Any, n_rows: int, where: str) -> None:
    """Raise InputError if a table, or a column of one, states another number of rows than `n_rows`.

    Such elements are read whole, into memory that is taken for what they state.
    """
    if not hasattr(node, "keys"):
        shape = tuple(getattr(node, "shape", ()))
        if shape[:1] not in ((), (n_rows,)):
            raise InputError(f"{where}: {shape[0]:,} rows, expected {n_rows:,}. {_REBUILD}")
        return
    attributes = dict(node.attrs)
    if "column-order" in attributes:
        for name in [attributes.get("_index", "_index"), *attributes["column-order"]]:
            name = name.decode() if isinstance(name, bytes) else str(name)
            if name in node:
                check_lengths(node[name], n_rows, f"{where}/{name}")
        return
    for name in ("codes", "values", "mask"):
        if name in node:
            check_lengths(node[name], n_rows, f"{where}/{name}")
    shape = tuple(getattr(node["categories"], "shape", ())) if "categories" in node else ()
    if shape and shape[0] > max(n_rows, MOST_CATEGORIES):
        raise InputError(f"{where}: {shape[0]:,} categories of {n_rows:,} values. {_REBUILD}")


def check_sparse_arrays(where: str, *, data: Any, indices: Any, indptr: Any) -> None:
    """Raise InputError unless the arrays of a sparse matrix have one dimension, and types that such arrays can have."""
    for name, array, kinds in (("data", data, _COUNTS), ("indices", indices, _INTEGERS), ("indptr", indptr, _INTEGERS)):
        shape, dtype = getattr(array, "shape", None), getattr(array, "dtype", None)
        if shape is None or dtype is None or len(shape) != 1:
            raise InputError(
                f"{where}/{name}: expected an array of one dimension, found "
                f"{'a group' if shape is None or dtype is None else f'the shape {tuple(shape)}'}. The file is damaged: "
                "rebuild it from its source."
            )
        _check_kind(f"{where}/{name}", dtype, kinds)


def check_counts_dtype(where: str, dtype: Any) -> None:
    """Raise InputError unless values of a dtype can be counts: integers or floats of at most 64 bits."""
    _check_kind(where, dtype, _COUNTS)


def _check_kind(where: str, dtype: Any, kinds: str) -> None:
    if getattr(dtype, "kind", "") not in kinds or dtype.itemsize > 8:
        raise InputError(
            f"{where}: values of type {dtype}; expected {'integers' if kinds == _INTEGERS else 'counts'} of at most 64 "
            "bits. The file is damaged, or its counts are in another layer (--layer)."
        )
