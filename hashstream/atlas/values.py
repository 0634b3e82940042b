"""Values of columns of obs as text and as categories: the same for the same values, however a file stores them.

A column of whole numbers becomes one of floats where a file lacks a value, and one of texts in another file: 1, 1.0 and
"1" are one category.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    import pandas as pd

_EXACT = float(1 << 53)  # up to here a float says which integer it is


def value_text(value: Any) -> str:
    """A value as text: of a float that is a whole number without its decimals."""
    if isinstance(value, float | np.floating):
        number = float(value)
        if number.is_integer() and abs(number) <= _EXACT:
            return str(int(number))
    return str(value)


def numbered_texts(column: pd.Series) -> tuple[NDArray[np.integer], list[str]]:
    """For each value of a column the number of its text, -1 where it is missing: (n,) integer, and the texts.

    Texts of values that differ in type only may come twice, and those of categories without cells are among them.
    """
    import pandas as pd

    if isinstance(column.dtype, pd.CategoricalDtype):
        numbers, values = column.cat.codes.to_numpy(), column.cat.categories
    elif column.dtype.kind in "mM":
        numbers, values = pd.factorize(column.astype("string"))
    else:
        numbers, values = pd.factorize(column)
    return numbers, [value_text(value) for value in values]


def as_text(column: pd.Series) -> NDArray[np.object_]:
    """A column as texts: (n,) object, None where a value is missing."""
    numbers, texts = numbered_texts(column)
    return np.array([*texts, None], dtype=object)[numbers]


def united_categories(columns: Sequence[pd.Series], *, keep_order: bool = False) -> pd.Categorical:
    """Columns of categories one after the other: their categories in the order in which they come.

    Categories of different types become texts; a column of none, whose type says nothing, takes that of the others.

    Parameters
    ----------
    keep_order
        Ordered categories stay ordered; then all columns must have the same.
    """
    import pandas as pd

    types = {column.cat.categories.dtype: None for column in columns if len(column.cat.categories)}
    if len(types) > 1:
        return pd.Categorical(np.concatenate([as_text(column) for column in columns]))
    if not keep_order:
        none = pd.Index([], dtype=next(iter(types), columns[0].cat.categories.dtype))
        columns = [c if len(c.cat.categories) else c.cat.set_categories(none) for c in columns]
    return pd.api.types.union_categoricals(columns, ignore_order=not keep_order)


def joined_columns(parts: Sequence[pd.Series | None], sizes: Sequence[int]) -> Any:
    """Columns of several tables one after the other, as an array that AnnData stores: (sum of sizes,).

    Columns of different kinds become texts.

    Parameters
    ----------
    parts
        The column of each table; None where it has none, and values are missing then. One at least is there.
    sizes
        Rows of each table.
    """
    import pandas as pd

    there = [part for part in parts if part is not None]
    whole = len(there) == len(parts)
    if all(isinstance(part.dtype, pd.CategoricalDtype) for part in there):
        none = pd.Categorical.from_codes([-1], dtype=there[0].dtype)
        filled = [
            part if part is not None else pd.Series(none.take(np.zeros(size, np.intp)))
            for part, size in zip(parts, sizes, strict=True)
        ]
        same = all(part.dtype == filled[0].dtype for part in filled)
        return united_categories(filled, keep_order=same)
    if whole and len({part.dtype for part in there}) == 1 and there[0].dtype != object:
        return pd.concat(there).array
    if all(pd.api.types.is_bool_dtype(part.dtype) for part in there):
        return _stacked(parts, sizes, "boolean")
    if all(pd.api.types.is_numeric_dtype(part.dtype) and not pd.api.types.is_bool_dtype(part.dtype) for part in there):
        return _stacked(parts, sizes, "float64") if not whole else pd.concat(there).array
    texts = np.concatenate(
        [np.full(size, None) if part is None else as_text(part) for part, size in zip(parts, sizes, strict=True)]
    )
    return texts if not pd.isna(texts).any() else pd.Categorical(texts)


def _stacked(parts: Sequence[pd.Series | None], sizes: Sequence[int], dtype: str) -> Any:
    import pandas as pd

    def missing(size: int) -> Any:
        if dtype == "boolean":
            return pd.arrays.BooleanArray(np.zeros(size, np.bool_), np.ones(size, np.bool_))
        return np.full(size, np.nan)

    arrays = [
        missing(size) if part is None else part.astype(dtype).array for part, size in zip(parts, sizes, strict=True)
    ]
    return pd.concat([pd.Series(array) for array in arrays]).array
