"""The table of cells (obs) of AnnData stores, whatever their matrices hold."""

from __future__ import annotations

import hashlib
from bisect import bisect_left, bisect_right
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from hashstream.atlas._elements import as_strings, read_element, text_array, text_blocks
from hashstream.atlas._roots import Paths, open_roots, opening
from hashstream.atlas.layout import check_lengths
from hashstream.atlas.values import joined_columns
from hashstream.errors import HashStreamError, InputError

if TYPE_CHECKING:
    import pandas as pd

_NAMES_AT_ONCE = 1 << 17
_MOST_NAMES_A_CHUNK = 1 << 18
_DIGEST_ALL = 1 << 16  # names that are all looked at
_DIGEST_BLOCKS, _DIGEST_ROWS = 4, 16  # of more


@dataclass
class ObsStore:
    """One AnnData file or folder, opened lazily, of which the table of cells is wanted.

    Attributes
    ----------
    path : Path or str
        A URL is a string.
    format : {"h5ad", "zarr"}
    root
        The open zarr or HDF5 group.
    """

    path: Path | str
    format: str
    root: Any

    @property
    def n_cells(self) -> int:
        """Cells that the table states."""
        n_rows = stated_rows(self._node("obs"))
        if n_rows is None:
            raise InputError(f"{self.path}: obs has no index, so that its cells cannot be counted.")
        return n_rows

    def obs_columns(self) -> list[str]:
        """Names of the columns of obs, without the index."""
        return self._columns("obs")

    def _columns(self, table: str) -> list[str]:
        node = self._node(table)
        order = dict(node.attrs).get("column-order")
        names = list(node.keys()) if order is None else [n.decode() if isinstance(n, bytes) else str(n) for n in order]
        index = dict(node.attrs).get("_index", "_index")
        return [name for name in names if name != index]

    def obs_column(self, key: str) -> pd.Series:
        """One column of obs, whole: (n_cells,).

        Raises
        ------
        InputError
            If there is no such column.
        """
        if key not in self.obs_columns():
            raise InputError(
                f"{self.path}: obs has no column {key!r}; it has {', '.join(map(repr, self.obs_columns())) or 'none'}."
            )
        import pandas as pd

        values = pd.Series(self._read_element(f"obs/{key}", self.n_cells))
        if len(values) != self.n_cells:
            raise InputError(f"{self.path}: obs[{key!r}] has {len(values)} rows, expected {self.n_cells}.")
        return values

    def obs_names(self) -> NDArray[np.object_]:
        return np.concatenate([np.empty(0, object), *self.iter_obs_names()])

    def iter_obs_names(self) -> Iterator[NDArray[np.object_]]:
        """Names of the cells as strings, in blocks: all of them can take more memory than anything else.

        Raises
        ------
        InputError
            If they cannot be read, or there are more or fewer than cells.
        """
        name = f"obs/{dict(self._node('obs').attrs).get('_index', '_index')}"
        blocks: Iterator[NDArray[np.object_]] = self._read(name, self.n_cells, lambda n: text_blocks(n, _NAMES_AT_ONCE))
        n_read = 0
        while (block := self._read(name, self.n_cells, lambda _: next(blocks, None))) is not None:
            n_read += len(block)
            yield block
        if n_read != self.n_cells:
            raise InputError(f"{self.path}: {name} has {n_read} rows, expected {self.n_cells}.")

    def index_key(self) -> str:
        """What the index of obs is called, in the file; ``_index`` if it has no name."""
        key = dict(self._node("obs").attrs).get("_index", "_index")
        return key if isinstance(key, str) else "_index"

    def names_between(self, start: int, stop: int) -> list[str] | None:
        """Names of cells `start` to `stop`; None where they cannot be read without most of the others."""
        node = self._node("obs")
        if not hasattr(node, "keys"):
            return None
        index = dict(node.attrs).get("_index", "_index")
        if not isinstance(index, str) or index not in node:
            return None

        def some(names: Any) -> list[str] | None:
            array = text_array(names)
            if array is None or (array.chunks or (1,))[0] > _MOST_NAMES_A_CHUNK:
                return None
            return [str(name) for name in as_strings(array)[start:stop]]

        try:
            found: list[str] | None = self._read(f"obs/{index}", self.n_cells, some)
        except InputError:  # whoever needs them says so
            return None
        return found

    def _node(self, name: str) -> Any:
        with opening(self.path):
            try:
                return self.root[name]
            except KeyError as error:
                raise InputError(f"{self.path}: not an AnnData store: it has no {name!r}.") from error

    def _read_element(self, name: str, n_rows: int) -> Any:
        return self._read(name, n_rows, read_element)

    def _read(self, name: str, n_rows: int, how: Callable[[Any], Any]) -> Any:
        node = self._node(name)
        with opening(self.path):
            check_lengths(node, n_rows, f"{self.path}: {name}")
        try:
            return how(node)
        except HashStreamError:
            raise
        except Exception as error:
            raise InputError(
                f"{self.path}: {name} cannot be read ({type(error).__name__}: {error}). "
                "The file is damaged, or not written by AnnData."
            ) from error


def open_obs(paths: Paths) -> list[ObsStore]:
    """The tables of cells of one or several stores; no counts are looked for.

    Raises
    ------
    InputError
        If a path is missing or no AnnData store; if a URL cannot be read.
    """
    return [ObsStore(opened.path, opened.format, opened.root) for opened in open_roots(paths)]


def names_digests(stores: Sequence[ObsStore], sizes: Sequence[int]) -> list[str | None]:
    """SHA-256 of the names of the first ``sizes[0]`` cells of some stores, the next ``sizes[1]``, ...: of their order.

    Of more than 65,536 cells it is that of some of the names. None where these cannot be read without most of the
    others. The sizes add up to the cells of the stores, but need not be theirs.
    """
    ends = np.cumsum([store.n_cells for store in stores]).tolist()
    firsts = np.cumsum([0, *sizes]).tolist()
    return [_names_digest(stores, ends, first, n) for first, n in zip(firsts, sizes, strict=False)]


def _names_digest(stores: Sequence[ObsStore], ends: list[int], first: int, n_cells: int) -> str | None:
    digest = hashlib.sha256()
    rows, blocks = (n_cells, 1) if n_cells <= _DIGEST_ALL else (_DIGEST_ROWS, _DIGEST_BLOCKS)
    for start in np.unique(np.linspace(0, n_cells - rows, blocks).astype(np.int64)).tolist():
        low, high = first + start, first + start + rows
        for number in range(bisect_right(ends, low), bisect_left(ends, high) + 1):
            begin = ends[number - 1] if number else 0
            names = stores[number].names_between(max(low, begin) - begin, min(high, ends[number]) - begin)
            if names is None:
                return None
            digest.update("".join(f"{name}\0" for name in names).encode())
    return digest.hexdigest()


def stated_rows(obs: Any) -> int | None:
    """How many rows a table states, by its index; None where it does not tell without being read."""
    index = dict(obs.attrs).get("_index", "_index") if hasattr(obs, "keys") else None
    names = obs if index is None else obs[index] if isinstance(index, str) and index in obs else None
    if names is not None and hasattr(names, "keys"):  # categories, or strings of which some are missing
        names = next((names[part] for part in ("codes", "values") if part in names), None)
    shape = getattr(names, "shape", None)
    return int(shape[0]) if shape else None


def joined_column(stores: Sequence[ObsStore], key: str) -> pd.Series:
    """A column of obs over some stores: (n_cells,). Where it is of different kinds in them, as texts.

    Values are missing in stores that do not have it.

    Raises
    ------
    InputError
        If none has it.
    """
    having = [key in store.obs_columns() for store in stores]
    if len(stores) == 1 or not any(having):
        return stores[0].obs_column(key)
    import pandas as pd

    columns = [store.obs_column(key) if has else None for store, has in zip(stores, having, strict=True)]
    return pd.Series(joined_columns(columns, [store.n_cells for store in stores]))
