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
