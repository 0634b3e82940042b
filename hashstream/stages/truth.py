"""Bring a column of obs to the buckets of a run: how many cells of each value every bucket holds."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from hashstream.annotate import UNKNOWN
from hashstream.atlas import joined_column
from hashstream.atlas.values import numbered_texts
from hashstream.errors import InputError
from hashstream.runtime.run import Run
from hashstream.stages.pairs import PairCounter, Pairs
from hashstream.stages.run_atlas import open_run_obs

if TYPE_CHECKING:
    import pandas as pd


#: Texts that stand for no value in columns that once had missing ones.
NOT_A_VALUE = ("", "nan", "NaN", "<NA>")
#: A column of more different values than both of these, the share being of its cells, is none of categories; one of
#: fractions (days such as 8.5 may be groups) of more than the first.
_MOST_NAMES, _MOST_SHARE = 100, 0.5


def run_column(run: Run, key: str, *, atlas: Sequence[str | Path] | None = None) -> tuple[NDArray[np.int32], list[str]]:
    """A column of the obs of the atlas that a run encoded, as categories.

    Parameters
    ----------
    atlas
        Where the atlas is now, if not where it was encoded.

    Returns
    -------
    codes : (n_cells,) int32
        -1 where the value is missing.
    names : list of str
        Sorted.

    Raises
    ------
    InputError
        If the atlas is gone, has another number of cells, or no such column.
    """
    stores = open_run_obs(run, atlas)
    column = joined_column(stores, key)
    codes, names = categories(column, key)
    if not names:
        raise InputError(f"{', '.join(str(store.path) for store in stores)}: obs[{key!r}] holds no values.")
    return codes, names


def run_labels(run: Run, key: str, *, atlas: Sequence[str | Path] | None = None) -> tuple[NDArray[np.int32], list[str]]:
    """As `run_column`, for a column of types: 'unknown' is none, as it is what cells without a label are called."""
    codes, names = without_unknown(*run_column(run, key, atlas=atlas))
    if not names:
        raise InputError(
            f"obs[{key!r}] of the atlas of {run.path} holds no label but {UNKNOWN!r}; name another column."
        )
    return codes, names


def without_unknown(codes: NDArray[np.int32], names: list[str]) -> tuple[NDArray[np.int32], list[str]]:
    """Categories without 'unknown', whose cells have no value then."""
    if UNKNOWN not in names:
        return codes, names
    left_out = names.index(UNKNOWN)
    codes = np.where(codes == left_out, np.int32(-1), codes - (codes > left_out)).astype(np.int32)
    return codes, [name for name in names if name != UNKNOWN]


def categories(column: pd.Series, key: str) -> tuple[NDArray[np.int32], list[str]]:
    """A column of obs as categories: (n_cells,) int32, -1 where the value is missing, and their names, sorted.

    What missing values are called once they were made text (`NOT_A_VALUE`) is none either.

    Raises
    ------
    InputError
        If it holds many fractions, or hardly any two cells have the same value: these are no categories.
    """
    if column.dtype.kind == "f" and (column.dropna() % 1 != 0).any() and column.nunique() > _MOST_NAMES:
        raise InputError(
            f"obs[{key!r}] holds {column.nunique():,} fractions; expected a column of categories, such as types or "
            "batches."
        )
    numbers, texts = numbered_texts(column)
    found = numbers.astype(np.int32)
    used = np.bincount(found[found >= 0], minlength=len(texts)) > 0
    names = sorted({text for text, there in zip(texts, used, strict=True) if there} - {*NOT_A_VALUE})
    place = {name: i for i, name in enumerate(names)}
    codes = np.array([*(place.get(text, -1) for text in texts), -1], dtype=np.int32)[found]
    n_cells = int(np.count_nonzero(codes >= 0))
    if len(names) > max(_MOST_NAMES, _MOST_SHARE * n_cells):
        raise InputError(
            f"obs[{key!r}] has {len(names):,} different values among {n_cells:,} cells; expected a column of "
            "categories, such as types or batches."
        )
    return codes, names


def bucket_counts(run: Run, codes: NDArray[np.int32], n_values: int) -> NDArray[np.int64]:
    """Cells of each bucket and value: (n_buckets, n_values) int64; cells without a value are left out."""
    pairs = bucket_pairs(run, codes, n_values)
    counts = np.zeros((run.n_buckets, n_values), dtype=np.int64)
    counts[pairs.first, pairs.second] = pairs.counts
    return counts


def bucket_pairs(run: Run, codes: NDArray[np.int32], n_values: int) -> Pairs:
    """As `bucket_counts`: the buckets and values of which there are cells."""
    counter, start = PairCounter(n_values), 0
    for buckets in run.cell_buckets():
        values = codes[start : start + len(buckets)]
        known = values >= 0
        counter.add(buckets[known], values[known])
        start += len(buckets)
    return counter.pairs()
