"""NumPy to arrow and back, against what pyarrow does by way of pandas."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest

from hashstream.runtime.arrow import (
    category_array,
    list_array,
    matrix_of,
    number_array,
    numbers_of,
    string_array,
    without_missing,
)

DTYPES = [np.int32, np.int64, np.uint64, np.float32]
MATRIX = np.arange(24, dtype=np.int64).reshape(8, 3)


@pytest.mark.parametrize("dtype", DTYPES)
def test_numbers(dtype: type) -> None:
    for values in (np.arange(7, dtype=dtype), np.arange(14, dtype=dtype)[::2], np.empty(0, dtype)):
        array = number_array(values)
        array.validate(full=True)
        assert array.equals(pa.array(values))
        assert numbers_of(array).dtype == dtype
        np.testing.assert_array_equal(numbers_of(array), values)
        np.testing.assert_array_equal(numbers_of(array[2:5]), values[2:5])


@pytest.mark.parametrize("n_chunks", [0, 1, 3])
def test_numbers_in_chunks(n_chunks: int) -> None:
    column = pa.chunked_array([number_array(MATRIX[i]) for i in range(n_chunks)], type=pa.int64())
    found = numbers_of(column)
    assert found.dtype == np.int64
    np.testing.assert_array_equal(found, MATRIX[:n_chunks].ravel())


def test_numbers_that_are_missing() -> None:
    for column in (pa.array([1, None, 3]), pa.chunked_array([[1], [None]])):
        with pytest.raises(pa.ArrowInvalid, match="1 numbers are missing"):
            numbers_of(column)


@pytest.mark.parametrize("strings", [[], ["a"], ["", "µ", "two words", ""]])
def test_strings(strings: list[str]) -> None:
    array = string_array(strings)
    array.validate(full=True)
    assert array.to_pylist() == strings
    assert array.equals(pa.array(strings, type=pa.string()))


def test_categories() -> None:
    array = category_array(["b", "a"], np.array([1, 0, 0, 1]))
    array.validate(full=True)
    assert array.to_pylist() == ["a", "b", "b", "a"]
    assert array.type == pa.dictionary(pa.int32(), pa.string())


@pytest.mark.parametrize("dtype", [np.int64, np.float32, np.uint64])
def test_lists(dtype: type) -> None:
    matrix = MATRIX.astype(dtype)
    type_ = pa.list_(pa.from_numpy_dtype(dtype), 3)
    for values in (matrix, matrix[:, ::-1], matrix.astype(np.float64).astype(dtype), matrix[:0]):
        array = list_array(values, type_)
        array.validate(full=True)
        assert array.type == type_
        assert array.to_pylist() == values.tolist()
        np.testing.assert_array_equal(matrix_of(array), values)


@pytest.mark.parametrize("cuts", [[], [0, 8], [0, 3, 3, 8], [2, 7]])
def test_lists_in_chunks(cuts: list[int]) -> None:
    whole = list_array(MATRIX, pa.list_(pa.int64(), 3))
    chunks = [whole[a:b] for a, b in zip(cuts, cuts[1:], strict=False)]
    found = matrix_of(pa.chunked_array(chunks, type=whole.type))
    assert found.shape == (sum(map(len, chunks)), 3)
    np.testing.assert_array_equal(found, MATRIX[cuts[0] : cuts[-1]] if cuts else MATRIX[:0])


def test_missing_values_are_named() -> None:
    rows = pa.table({"a": [1, 2], "b": [1, None], "c": [[1], None]})
    with pytest.raises(pa.ArrowInvalid, match="values of b, c are missing"):
        without_missing(rows)
    assert without_missing(rows.select(["a"])).num_rows == 2
