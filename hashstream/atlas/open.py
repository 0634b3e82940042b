"""Open AnnData stores lazily: one store, or several as one virtual atlas."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from hashstream.atlas._roots import Paths, Root, open_roots, opening
from hashstream.atlas.counts import choose_counts
from hashstream.atlas.genes import VAR_NAMES, PackedNames, gene_columns, packed, read_gene_columns, unpacked
from hashstream.atlas.matrix import RowMatrix, open_matrix
from hashstream.atlas.obs import ObsStore, joined_column, stated_rows
from hashstream.errors import HashStreamError, InputError

if TYPE_CHECKING:
    import pandas as pd

MOST_GENES = 1 << 24
#: An open file with what its library keeps of it, and the map of a gene to that of a Hasher.
_OPEN_BYTES, _BOUND_GENE_BYTES = 1 << 20, 4


@dataclass
class Store(ObsStore):
    """One AnnData file or folder with its counts, opened lazily.

    Attributes
    ----------
    matrix : RowMatrix
        The raw counts, cells x genes.
    matrix_name : str
        Where they are: ``X``, ``layers/NAME`` or ``raw/X``.
    """

    matrix: RowMatrix
    matrix_name: str

    @property
    def n_cells(self) -> int:
        return self.matrix.shape[0]

    @property
    def n_genes(self) -> int:
        return self.matrix.shape[1]

    @cached_property
    def var(self) -> pd.DataFrame:
        """The gene table that belongs to the matrix (``raw/var`` for ``raw/X``)."""
        return self._read_var()

    def _read_var(self) -> pd.DataFrame:
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

    @property
    def gene_columns(self) -> dict[str, NDArray[np.object_]]:
        """What may identify genes: the index of `var` as ``var_names``, and its text columns, (n_genes,) strings each.

        The table itself is not read for it where its columns are plain.
        """
        return {name: unpacked(values) for name, values in self._gene_text.items()}

    @cached_property
    def _gene_text(self) -> dict[str, PackedNames]:
        # Of an atlas of many stores all are kept, a tenth as large as their strings.
        columns = self._read(self._var_name, self.n_genes, read_gene_columns)
        if columns is None or any(len(values) != self.n_genes for values in columns.values()):
            columns = gene_columns(self._read_var())
        return {name: packed(values) for name, values in columns.items()}

    @property
    def gene_names(self) -> NDArray[np.object_]:
        return unpacked(self._gene_text[VAR_NAMES])

    def var_columns(self) -> list[str]:
        """Names of the columns of `var`, without the index."""
        return self._columns(self._var_name)

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

    @property
    def open_bytes(self) -> int:
        """About what all stores but the first take while they are open and a Hasher is bound to them."""
        later = self.stores[1:]
        texts = {id(text): len(text) for store in later for text in store._gene_text.values()}
        return sum(texts.values()) + sum(_OPEN_BYTES + _BOUND_GENE_BYTES * store.n_genes for store in later)

    def obs_column(self, key: str) -> pd.Series:
        """One column of obs over all stores, as strings or numbers: (n_cells,)."""
        return joined_column(self.stores, key)

    def fingerprint(self) -> str:
        return hashlib.sha256("".join(store.fingerprint() for store in self.stores).encode()).hexdigest()


def open_atlas(paths: Paths, *, layer: str | Sequence[str | None] | None = None) -> Atlas:
    """Open one AnnData store, or several as one virtual atlas.

    Parameters
    ----------
    paths
        h5ad files, AnnData zarr folders (zarr format 2 or 3), or URLs of such folders; see
        `hashstream.locations`.
    layer
        Where the raw counts are: ``X``, ``raw`` or the name of a layer, for all stores or for each. None: the first of
        ``X``, ``layers["counts"]`` and ``raw.X`` that holds counts.

    Raises
    ------
    InputError
        If a path is missing or given twice, is no AnnData store, is empty, holds no raw counts, or repeats gene names;
        if a URL cannot be read.
    MissingDependencyError
        If a URL is given, and what reads it is not installed.
    """
    roots = open_roots(paths)
    layers = [layer] * len(roots) if layer is None or isinstance(layer, str) else layer
    return Atlas(tuple(_open_store(root, one) for root, one in zip(roots, layers, strict=True)))


def open_store(path: str | Path, *, layer: str | None = None) -> Store:
    """Open one AnnData store; see `open_atlas`."""
    return open_atlas(path, layer=layer).stores[0]


def _open_store(opened: Root, layer: str | None) -> Store:
    path = opened.path
    with opening(path):
        candidates = _open_candidates(opened, layer)
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
    name, seen = choose_counts(candidates, path=str(path))
    if seen.unsorted:
        candidates[name].sort_rows()
    store = Store(path, opened.format, opened.root, matrix=candidates[name], matrix_name=name)
    _check_genes(store)
    with opening(path):
        _check_cells(store)
    return store


def names_of(layer: str | None) -> list[str]:
    """Where to look for the counts; a layer may be named as it is listed (``layers/counts``, ``raw/X``), too."""
    if layer is None:
        return ["X", "layers/counts", "raw/X"]
    if layer == "X":
        return ["X"]
    return ["raw/X"] if layer in ("raw", "raw.X", "raw/X") else [f"layers/{layer.removeprefix('layers/')}"]


def _open_candidates(opened: Root, layer: str | None) -> dict[str, RowMatrix]:
    path, root = opened.path, opened.root
    names = names_of(layer)
    candidates: dict[str, RowMatrix] = {}
    refused: HashStreamError | None = None
    for name in names:
        if name not in root:
            continue
        try:
            candidates[name] = open_matrix(root[name], where=f"{path}/{name}", is_group=opened.is_group)
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
    n_rows = stated_rows(store.root["obs"])
    if n_rows not in (None, store.n_cells):
        raise InputError(
            f"{store.path}: obs lists {n_rows} cells but {store.matrix_name} has {store.n_cells} rows. The file is "
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
