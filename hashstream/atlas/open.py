"""Open AnnData stores lazily: one store, or several as one virtual atlas."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from hashstream.atlas._elements import read_element, text_blocks
from hashstream.atlas.counts import choose_counts
from hashstream.atlas.genes import VAR_NAMES, gene_columns, read_gene_columns
from hashstream.atlas.layout import check_lengths
from hashstream.atlas.matrix import RowMatrix, open_matrix
from hashstream.errors import HashStreamError, InputError
from hashstream.locations import locate

if TYPE_CHECKING:
    import pandas as pd

    from hashstream.atlas.remote import Transfers

MOST_GENES = 1 << 24
_NAMES_AT_ONCE = 1 << 17
_HDF5_SIGNATURE = b"\x89HDF\r\n\x1a\n"


@dataclass
class Store:
    """One AnnData file or folder, opened lazily.

    Attributes
    ----------
    path : Path or str
        A URL is a string.
    format : {"h5ad", "zarr"}
    root
        The open zarr or HDF5 group.
    matrix : RowMatrix
        The raw counts, cells x genes.
    matrix_name : str
        Where they are: ``X``, ``layers/NAME`` or ``raw/X``.
    """

    path: Path | str
    format: str
    root: Any
    matrix: RowMatrix
    matrix_name: str
    _frames: dict[str, Any] = field(default_factory=dict, repr=False)

    @property
    def n_cells(self) -> int:
        return self.matrix.shape[0]

    @property
    def n_genes(self) -> int:
        return self.matrix.shape[1]

    @cached_property
    def var(self) -> pd.DataFrame:
        """The gene table that belongs to the matrix (``raw/var`` for ``raw/X``)."""
        import pandas as pd

        name = self._var_name
        frame = self._read_element(name, self.n_genes)
        if not isinstance(frame, pd.DataFrame):
            raise InputError(f"{self.path}: {name} is not a table of genes, found {type(frame).__name__}.")
        if len(frame) != self.n_genes:
            raise InputError(
                f"{self.path}: {name} lists {len(frame)} genes but {self.matrix_name} has {self.n_genes} columns."
            )
        return frame

    @property
    def _var_name(self) -> str:
        return "raw/var" if self.matrix_name == "raw/X" else "var"

    @cached_property
    def gene_columns(self) -> dict[str, NDArray[np.object_]]:
        """What may identify genes: the index of `var` as ``var_names``, and its text columns, (n_genes,) strings each.

        The table itself is not read for it where its columns are plain.
        """
        columns = self._read(self._var_name, self.n_genes, read_gene_columns)
        if columns is None or any(len(values) != self.n_genes for values in columns.values()):
            return gene_columns(self.var)
        return columns

    @property
    def gene_names(self) -> NDArray[np.object_]:
        return self.gene_columns[VAR_NAMES]

    def obs_columns(self) -> list[str]:
        """Names of the columns of obs, without the index."""
        return self._columns("obs")

    def var_columns(self) -> list[str]:
        """Names of the columns of `var`, without the index."""
        return self._columns(self._var_name)

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

    def fingerprint(self) -> str:
        """SHA-256 over shape, dtype, gene names and a few blocks of rows: enough to notice a changed input."""
        digest = hashlib.sha256()
        digest.update(repr((self.matrix.shape, str(self.matrix.dtype), self.matrix.nnz, self.matrix_name)).encode())
        digest.update("\n".join(self.gene_names).encode())
        for start in np.unique(np.linspace(0, max(self.n_cells - 64, 0), 8).astype(np.int64)):
            chunk = self.matrix.read_rows(int(start), min(int(start) + 64, self.n_cells))
            for array in (chunk.indptr, chunk.indices.astype(np.int64), chunk.data.astype(np.float64)):
                digest.update(np.ascontiguousarray(array).tobytes())
        return digest.hexdigest()

    def stamp(self) -> list[int]:
        """Number, bytes and newest change (nanoseconds) of the files that hold the counts.

        A fingerprint looks at some rows; this notices that any other was written since.
        """
        if isinstance(self.path, str):
            return [int(n) for n in self.root.store.stamp(self.matrix_name)]
        files = [self.path] if self.path.is_file() else list((self.path / self.matrix_name).rglob("*"))
        stats = [p.stat() for p in files if p.is_file()]
        return [len(stats), sum(s.st_size for s in stats), max((s.st_mtime_ns for s in stats), default=0)]

    @property
    def network_bytes(self) -> int:
        """What reading takes beside the chunks: 0 for files of this machine. Stores of an atlas share it."""
        return int(self.root.store.transfers.max_bytes) if isinstance(self.path, str) else 0

    def _node(self, name: str) -> Any:
        with _opening(self.path):
            try:
                return self.root[name]
            except KeyError as error:
                raise InputError(f"{self.path}: not an AnnData store: it has no {name!r}.") from error

    def _read_element(self, name: str, n_rows: int) -> Any:
        return self._read(name, n_rows, read_element)

    def _read(self, name: str, n_rows: int, how: Callable[[Any], Any]) -> Any:
        node = self._node(name)
        with _opening(self.path):
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


@dataclass(frozen=True)
class Atlas:
    """One store, or several whose rows follow each other; nothing is copied.

    Attributes
    ----------
    stores : tuple of Store
        At least one. Each keeps its own genes; a Hasher is bound to each by gene name.
    """

    stores: tuple[Store, ...]

    @property
    def n_cells(self) -> int:
        return sum(store.n_cells for store in self.stores)

    @property
    def offsets(self) -> list[int]:
        """First row of each store in the atlas, and the end: (n_stores + 1,)."""
        return [0, *np.cumsum([store.n_cells for store in self.stores]).tolist()]

    @property
    def paths(self) -> list[str]:
        return [str(store.path) for store in self.stores]

    def obs_column(self, key: str) -> pd.Series:
        """One column of obs over all stores, as strings or numbers: (n_cells,)."""
        columns = [store.obs_column(key) for store in self.stores]
        if len(columns) == 1:
            return columns[0]
        import pandas as pd

        return pd.concat([c.astype(object) for c in columns], ignore_index=True).astype("category")

    def fingerprint(self) -> str:
        return hashlib.sha256("".join(store.fingerprint() for store in self.stores).encode()).hexdigest()


def open_atlas(paths: str | Path | Sequence[str | Path], *, layer: str | None = None) -> Atlas:
    """Open one AnnData store, or several as one virtual atlas.

    Parameters
    ----------
    paths
        h5ad files, AnnData zarr folders (zarr format 2 or 3), or URLs of such folders; see
        `hashstream.locations`.
    layer
        Where the raw counts are: ``X``, ``raw`` or the name of a layer. None: the first of ``X``,
        ``layers["counts"]`` and ``raw.X`` that holds counts.

    Raises
    ------
    InputError
        If a path is missing, is no AnnData store, is empty, holds no raw counts, or repeats gene names; if a URL cannot
        be read.
    MissingDependencyError
        If a URL is given, and what reads it is not installed.
    """
    listed = [paths] if isinstance(paths, str | Path) else list(paths)
    if not listed:
        raise InputError("no atlas given; name at least one AnnData store (.zarr or .h5ad).")
    places = [locate(path) for path in listed]
    transfers = _transfers() if any(isinstance(place, str) for place in places) else None
    return Atlas(tuple(_open_store(place, layer, transfers) for place in places))


def open_store(path: str | Path, *, layer: str | None = None) -> Store:
    """Open one AnnData store; see `open_atlas`."""
    return open_atlas(path, layer=layer).stores[0]


def _transfers() -> Transfers:
    """What stores at URLs share, so that what they hold does not grow with their number."""
    from hashstream.atlas._remote_client import RemoteSettings
    from hashstream.atlas.remote import Transfers

    return Transfers(RemoteSettings.from_environment())


def _open_store(path: Path | str, layer: str | None, transfers: Transfers | None) -> Store:
    root, format_, is_group = _open_root(path, transfers)
    with _opening(path):
        for name in ("obs", "var"):
            if name not in root:
                raise InputError(f"{path}: not an AnnData store: it has no {name!r}.")
        candidates = _open_candidates(root, path, layer, is_group)
    for name, matrix in candidates.items():
        if 0 in matrix.shape:
            raise InputError(
                f"{path}: {name} is empty ({matrix.shape[0]} cells x {matrix.shape[1]} genes); expected at least one "
                "cell and one gene."
            )
        if matrix.shape[1] > MOST_GENES:
            raise InputError(
                f"{path}: {name} states {matrix.shape[1]:,} genes, expected at most {MOST_GENES:,}. The file is "
                "damaged: rebuild it from its source."
            )
    name = choose_counts(candidates, path=str(path))
    store = Store(path=path, format=format_, root=root, matrix=candidates[name], matrix_name=name)
    _check_genes(store)
    with _opening(path):
        _check_cells(store)
    return store


@contextmanager
def _opening(path: Path | str) -> Iterator[None]:
    """Whatever a storage library raises at metadata that it cannot make sense of becomes an InputError."""
    try:
        yield
    except (HashStreamError, MemoryError):
        raise
    except Exception as error:
        raise InputError(
            f"{path}: cannot be opened ({type(error).__name__}: {error}). The store is damaged, or not written by "
            "AnnData: copy it again, or rebuild it from its source with `hashstream ingest`."
        ) from error


def _open_root(path: Path | str, transfers: Transfers | None) -> tuple[Any, str, Any]:
    if isinstance(path, str):
        import zarr

        from hashstream.atlas.remote import open_remote

        return open_remote(path, transfers), "zarr", lambda node: isinstance(node, zarr.Group)
    if not path.exists():
        raise InputError(f"{path}: no such file or folder; expected an AnnData store (.zarr or .h5ad).")
    if path.is_dir():
        return _open_zarr(path)
    with path.open("rb") as handle:
        signature = handle.read(len(_HDF5_SIGNATURE))
    if signature != _HDF5_SIGNATURE:
        raise InputError(
            f"{path}: neither a zarr folder nor an HDF5 file. Other formats (loom, 10x, mtx, csv) are converted once "
            "with `hashstream ingest SOURCE ATLAS.zarr`."
        )
    import h5py

    from hashstream.atlas._hdf5_links import check_self_contained

    try:
        root = h5py.File(path, "r")
    except OSError as error:
        raise InputError(f"{path}: cannot be opened as HDF5 ({error}). The file is truncated or damaged.") from error
    with _opening(path):
        check_self_contained(path, root)
    return root, "h5ad", lambda node: isinstance(node, h5py.Group)


def _open_zarr(path: Path) -> tuple[Any, str, Any]:
    import zarr

    from hashstream.runtime.pipeline import use_fastest_pipeline

    use_fastest_pipeline()
    if not any((path / name).exists() for name in ("zarr.json", ".zgroup", ".zattrs")):
        raise InputError(f"{path}: a folder, but not a zarr store (no zarr.json or .zgroup in it).")
    try:
        return zarr.open_group(path, mode="r"), "zarr", lambda node: isinstance(node, zarr.Group)
    except Exception as error:
        raise InputError(f"{path}: cannot be opened as zarr ({type(error).__name__}: {error}).") from error


def _open_candidates(root: Any, path: Path | str, layer: str | None, is_group: Any) -> dict[str, RowMatrix]:
    names = {None: ["X", "layers/counts", "raw/X"], "X": ["X"], "raw": ["raw/X"]}.get(layer, [f"layers/{layer}"])
    candidates: dict[str, RowMatrix] = {}
    refused: HashStreamError | None = None
    for name in names:
        if name not in root:
            continue
        try:
            candidates[name] = open_matrix(root[name], where=f"{path}/{name}", is_group=is_group)
        except HashStreamError as error:
            refused = refused or error
    if candidates:
        return candidates
    if refused is not None:
        raise refused
    present = [n for n in ("X", "raw/X") if n in root]
    present += [f"layers/{n}" for n in root["layers"]] if "layers" in root else []
    raise InputError(f"{path}: no matrix at {' or '.join(names)}; the store has {', '.join(present) or 'none'}.")


def _check_cells(store: Store) -> None:
    """Raise InputError if obs is of another number of cells, as far as its index tells without being read."""
    obs = store.root["obs"]
    index = dict(obs.attrs).get("_index", "_index") if hasattr(obs, "keys") else None
    names = obs if index is None else obs[index] if isinstance(index, str) and index in obs else None
    shape = getattr(names, "shape", None)
    if shape and shape[0] != store.n_cells:
        raise InputError(
            f"{store.path}: obs lists {shape[0]} cells but {store.matrix_name} has {store.n_cells} rows. The file is "
            "damaged: rebuild it from its source."
        )


def _check_genes(store: Store) -> None:
    names = store.gene_names
    if len(set(names)) != len(names):
        repeated = [name for name, times in Counter(names).items() if times > 1]
        raise InputError(
            f"{store.path}: {len(repeated)} gene name(s) appear more than once in var (for example "
            f"{', '.join(map(repr, repeated[:3]))}); expected unique names. Make them unique first "
            "(AnnData.var_names_make_unique), or ingest with --make-unique."
        )
