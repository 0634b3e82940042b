"""h5ad files of AnnData before 0.7, shown as those of today are laid out.

Their tables of cells and genes are structured HDF5 datasets, whose first field is the index. Categories lie in ``uns``
as ``<column>_categories``, the codes in the column; what was kept before filtering lies in ``raw.X`` and ``raw.var``.
AnnData itself reads them so (`anndata._io.h5ad.read_dataframe_legacy`, `anndata.compat._clean_uns`).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray

_RAW = {"raw/X": "raw.X", "raw/var": "raw.var"}


def as_of_today(root: h5py.File) -> Any:
    """The root of an h5ad as it is or, of an old file, a `LegacyRoot` of it."""
    old = any(_is_table(root.get(name)) for name in ("obs", "var")) or ("raw.X" in root and "raw" not in root)
    return LegacyRoot(root) if old else root


def _is_table(node: Any) -> bool:
    return isinstance(node, h5py.Dataset) and node.dtype.names is not None and len(node.shape) == 1


class LegacyRoot(Mapping[str, Any]):
    """An old file by the names of today: ``obs``, ``obs/COLUMN``, ``raw/X``; nodes that did not change are HDF5's own.

    Parameters
    ----------
    root
        The open file.
    """

    def __init__(self, root: h5py.File) -> None:
        self._root = root
        self.attrs = root.attrs
        self._tables: dict[str, LegacyTable] = {}

    def __getitem__(self, name: str) -> Any:
        if name in ("obs", "var", "raw/var"):
            return self._table(name)
        table, _, column = name.rpartition("/")
        if column and table in ("obs", "var", "raw/var"):
            return self._table(table)[column]
        return self._root[_RAW.get(name, name)]

    def _table(self, name: str) -> Any:
        node = self._root[_RAW.get(name, name)]
        if not _is_table(node):
            return node
        if name not in self._tables:
            # Of raw.var, AnnData looks for no categories.
            uns = self._root.get("uns") if name != "raw/var" else None
            self._tables[name] = LegacyTable(node, uns if isinstance(uns, h5py.Group) else {})
        return self._tables[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._root)

    def __len__(self) -> int:
        return len(self._root)


class LegacyTable(Mapping[str, Any]):
    """A structured dataset as a group of columns with the attributes of a ``dataframe``.

    Parameters
    ----------
    dataset : (n_rows,) structured dataset
    uns
        Where categories may be.
    """

    def __init__(self, dataset: h5py.Dataset, uns: Any) -> None:
        self._dataset, self._uns = dataset, uns
        index, *columns = dataset.dtype.names
        self.attrs = {**_encoding("dataframe"), "_index": index, "column-order": columns}
        self._categorical: dict[str, LegacyCategorical | None] = {}

    def __getitem__(self, name: str) -> Any:
        if name not in self._dataset.dtype.names:
            raise KeyError(name)
        column = LegacyColumn(self._dataset, name)
        if name not in self._categorical:
            self._categorical[name] = self._as_categorical(name, column)
        return self._categorical[name] or column

    def _as_categorical(self, name: str, column: LegacyColumn) -> LegacyCategorical | None:
        """None if there are no categories that go with the column: obs and var may have columns of the same name."""
        if column.dtype.kind not in "iu" or f"{name}_categories" not in self._uns:
            return None
        values = np.atleast_1d(self._uns[f"{name}_categories"][()])  # of a single one, not in an array
        codes = column[()]
        if values.ndim != 1 or not np.all(codes < len(values)):
            return None
        return LegacyCategorical(LegacyArray(codes), LegacyArray(_decoded(values)))

    def __iter__(self) -> Iterator[str]:
        return iter(self._dataset.dtype.names)

    def __len__(self) -> int:
        return len(self._dataset.dtype.names)


class LegacyColumn:
    """A field of a structured dataset as an array of its own."""

    chunks = None

    def __init__(self, dataset: h5py.Dataset, field: str) -> None:
        self._dataset, self._field = dataset, field
        stored = dataset.dtype[field]
        self.dtype = np.dtype(object) if stored.kind in "OSU" else stored
        self.shape = dataset.shape
        self.attrs = _encoding("string-array" if self.dtype == object else "array")

    def __getitem__(self, rows: Any) -> NDArray[Any]:
        return _decoded(self._dataset.fields(self._field)[rows])

    def __len__(self) -> int:
        return int(self.shape[0])


class LegacyArray:
    """An array in memory with the attributes of a stored one."""

    chunks = None

    def __init__(self, values: NDArray[Any]) -> None:
        self._values = values
        self.dtype, self.shape = values.dtype, values.shape
        self.attrs = _encoding("string-array" if values.dtype == object else "array")

    def __getitem__(self, rows: Any) -> NDArray[Any]:
        return np.asarray(self._values[rows])


class LegacyCategorical(dict[str, LegacyArray]):
    """Codes and categories with the attributes of a ``categorical``."""

    def __init__(self, codes: LegacyArray, categories: LegacyArray) -> None:
        super().__init__(codes=codes, categories=categories)
        self.attrs = {**_encoding("categorical"), "ordered": False}


def _encoding(kind: str) -> dict[str, Any]:
    return {"encoding-type": kind, "encoding-version": "0.2.0"}


def _decoded(values: Any) -> NDArray[Any]:
    """Names as strings, numbers as they are."""
    values = np.asarray(values)
    if values.dtype.kind not in "OSU":
        return values
    return np.array([v.decode("utf-8") if isinstance(v, bytes) else str(v) for v in values.ravel()], dtype=object)
