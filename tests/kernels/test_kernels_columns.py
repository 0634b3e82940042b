"""Column indices in two bytes, against their NumPy meaning."""

from __future__ import annotations

import numpy as np
import pytest

from hashstream.kernels import reference
from hashstream.kernels.columns import MOST_COLUMNS, join_bytes, narrow_columns


@pytest.mark.parametrize("dtype", ["i4", "u4", "i8", "u8"])
@pytest.mark.parametrize("n", [0, 1, 33, 1000])
def test_what_is_no_column_is_the_last_number(dtype: str, n: int) -> None:
    rng = np.random.default_rng(n)
    values = rng.integers(0, MOST_COLUMNS, n).astype(dtype)
    odd = np.array([65_534, 65_535, 65_536, 65_541, 2**31 - 1, *([-1, -65_531] if dtype[0] == "i" else [])])
    odd = np.concatenate([odd, [2**32 + 5, 2**48 + 7]]) if dtype[1] == "8" else odd
    values[: len(odd)] = odd[:n].astype(dtype)
    found, expected = np.empty(n, np.uint16), np.empty(n, np.uint16)
    narrow_columns(values, found)
    reference.narrow_columns(values, expected)
    assert np.array_equal(found, expected)
    if n == 1000:
        assert found[0] == 65_534
        assert (found[1 : len(odd)] == 65_535).all()


@pytest.mark.parametrize("n", [0, 1, 33, 1000])
def test_low_and_high_bytes_make_a_number(n: int) -> None:
    low, high = np.random.default_rng(n).integers(0, 256, (2, n)).astype(np.uint8)
    found, expected = np.empty(n, np.uint16), np.empty(n, np.uint16)
    join_bytes(low, high, found)
    reference.join_bytes(low, high, expected)
    assert np.array_equal(found, expected)


def test_lengths_must_agree() -> None:
    with pytest.raises(ValueError, match="places"):
        narrow_columns(np.zeros(3, np.int32), np.zeros(4, np.uint16))
    with pytest.raises(ValueError, match="places"):
        join_bytes(np.zeros(3, np.uint8), np.zeros(2, np.uint8), np.zeros(3, np.uint16))
