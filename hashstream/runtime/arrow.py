"""Between NumPy and arrow without pandas.

`pyarrow.array` and ``to_numpy`` load pandas, to see whether that is what they are given or asked for: a large part
of the start of a stage that has no other use for it. What is here gives the same.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeVar

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

Rows = TypeVar("Rows", pa.Table, pa.RecordBatch)


def number_array(values: NDArray[Any]) -> pa.Array:
    """Numbers (n,) as an arrow array, without a copy where they follow each other."""
    values = np.ascontiguousarray(values)
    return pa.Array.from_buffers(pa.from_numpy_dtype(values.dtype), len(values), [None, pa.py_buffer(values)])


def string_array(strings: Sequence[str]) -> pa.Array:
    """Strings as an arrow array."""
    encoded = [string.encode() for string in strings]
    offsets = np.zeros(len(encoded) + 1, np.int32)
    np.cumsum([len(one) for one in encoded], out=offsets[1:])
    return pa.StringArray.from_buffers(len(encoded), pa.py_buffer(offsets), pa.py_buffer(b"".join(encoded)))


def category_array(names: Sequence[str], codes: NDArray[np.integer]) -> pa.Array:
    """Strings, each of them ``names[code]``, as a dictionary-encoded arrow array."""
    return pa.DictionaryArray.from_arrays(number_array(codes.astype(np.int32)), string_array(names))


def list_array(matrix: NDArray[Any], type_: pa.DataType) -> pa.Array:
    """A matrix as an arrow array of fixed-size lists, of a type as `FixedSizeListType`."""
    flat = np.ascontiguousarray(matrix, dtype=type_.value_type.to_pandas_dtype()).reshape(-1)
    return pa.FixedSizeListArray.from_arrays(number_array(flat), matrix.shape[1])


def numbers_of(column: pa.Array | pa.ChunkedArray) -> NDArray[Any]:
    """The numbers of an arrow array, read-only, without a copy where they follow each other.

    Raises
    ------
    ArrowInvalid
        One is missing.
    """
    if column.null_count:
        raise pa.ArrowInvalid(f"{column.null_count} numbers are missing")
    chunks = column.chunks if isinstance(column, pa.ChunkedArray) else [column]
    if len(chunks) == 1:
        return np.from_dlpack(chunks[0])
    return np.concatenate([np.empty(0, column.type.to_pandas_dtype()), *map(np.from_dlpack, chunks)])


def matrix_of(column: pa.Array | pa.ChunkedArray) -> NDArray[Any]:
    """An arrow array of fixed-size lists, none of them missing, as a matrix (n, list size); read-only if one block."""
    width = column.type.list_size
    chunks = column.chunks if isinstance(column, pa.ChunkedArray) else [column]
    blocks = [numbers_of(chunk.values.slice(chunk.offset * width, len(chunk) * width)) for chunk in chunks]
    if len(blocks) != 1:
        blocks = [np.concatenate([np.empty(0, column.type.value_type.to_pandas_dtype()), *blocks])]
    return blocks[0].reshape(-1, width)


def without_missing(rows: Rows) -> Rows:
    """Rows as they are; raises ArrowInvalid if any column lacks a value."""
    lacking = [name for name, column in zip(rows.schema.names, rows.columns, strict=True) if column.null_count]
    if lacking:
        raise pa.ArrowInvalid(f"values of {', '.join(lacking)} are missing")
    return rows
