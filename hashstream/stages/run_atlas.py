"""The atlas that a run encoded, opened again."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

import numpy as np

from hashstream.atlas import Atlas, ObsStore, names_digests, open_atlas, open_obs
from hashstream.errors import InputError
from hashstream.kernels import encode_rows
from hashstream.locations import is_lost
from hashstream.runtime.run import Run

_MOST_CELLS = 1 << 16  # of a store that are all encoded again
_MANY_ROWS, _MANY_BYTES = 1 << 10, 1 << 25  # of these at a time
_BLOCKS, _BLOCK_ROWS = 8, 16  # cells of a store that are encoded again, to see whether they are the run's


def open_run_atlas(
    run: Run, paths: str | Path | Sequence[str | Path] | None = None, *, thorough: bool = False
) -> Atlas:
    """The atlas of a run, with the counts from where the run took them.

    Parameters
    ----------
    thorough
        Encode all cells of stores of up to 65,536 again, not some.

    Raises
    ------
    InputError
        If it is gone, has another number of cells, or other cells: some are encoded again and compared.
    """
    listed = _paths(run, paths)
    layers: list[str | None] = [str(name) for name in run.meta["input"]["matrix"]]
    if len(layers) != len(listed):  # the stores were put together since, or taken apart
        layers = [layers[0] if len(set(layers)) == 1 else None] * len(listed)
    atlas = open_atlas(listed, layer=layers)
    _check_number(run, atlas.n_cells, listed)
    _check_cells(run, atlas, thorough=thorough)
    return atlas


def open_run_obs(run: Run, paths: str | Path | Sequence[str | Path] | None = None) -> list[ObsStore]:
    """The tables of cells of the atlas of a run; its counts need not be there any more.

    Raises
    ------
    InputError
        If it is gone, has another number of cells, or other cells, or these in another order.
    """
    listed = _paths(run, paths)
    stores = open_obs(listed)
    _check_number(run, sum(store.n_cells for store in stores), listed)
    if _have_other_names(run, stores):
        try:
            # Whatever cells are called, these are the ones if their codes are.
            open_run_atlas(run, listed, thorough=True)
        except InputError as error:
            raise InputError(
                f"{', '.join(listed)}: the cells have other names than those that {run.path} encodes, or these in "
                "another order. Say with --atlas where the encoded atlas is (its stores in the same order), or encode "
                "again."
            ) from error
    return stores


def _have_other_names(run: Run, stores: Sequence[ObsStore]) -> bool:
    """Whether some cells are called otherwise than when they were encoded, as far as that can be told."""
    cells, known = (run.meta["input"].get(key, []) for key in ("cells", "cell_names"))
    if sum(cells) != run.n_cells or len(known) != len(cells):
        return False
    found = names_digests(stores, cells)
    return any(None not in (a, b) and a != b for a, b in zip(known, found, strict=True))


def _paths(run: Run, paths: str | Path | Sequence[str | Path] | None) -> list[str]:
    given = [paths] if isinstance(paths, str | Path) else paths
    listed = [str(path) for path in given] if given else run.input_paths
    for path in listed:
        if is_lost(path):
            raise InputError(f"{path}: the atlas of {run.path} is not there any more; say where it is with --atlas.")
    return listed


def _check_number(run: Run, n_cells: int, paths: list[str]) -> None:
    if n_cells != run.n_cells:
        raise InputError(f"{', '.join(paths)}: {n_cells} cells, but {run.path} encodes {run.n_cells}.")


def refuse_other_cell(run: Run, atlas: Atlas, cell: int) -> NoReturn:
    """Raises InputError: a cell of the atlas has another code than in the run."""
    raise InputError(
        f"{', '.join(atlas.paths)}: cell {cell} has another code than in {run.path}: the atlas has changed since, or "
        "is another one. Say with --atlas where the one that was encoded is, or encode again."
    )


def _check_cells(run: Run, atlas: Atlas, *, thorough: bool) -> None:
    """Raise InputError where some cells have other codes than in the run."""
    hasher = run.hasher()
    for store, offset in zip(atlas.stores, atlas.offsets, strict=False):
        # The run was encoded with as few genes as these, so they are enough.
        bound = hasher.bind(store.gene_columns, where=str(store.path), min_overlap=0.0)
        n = store.n_cells
        if thorough and n <= _MOST_CELLS:
            rows = max(1, min(_MANY_ROWS, _MANY_BYTES // store.matrix.max_row_bytes))
            starts = [*range(0, n, rows)]
        else:
            starts = np.unique(np.linspace(0, max(n - _BLOCK_ROWS, 0), _BLOCKS).astype(np.int64)).tolist()
            rows = _BLOCK_ROWS
        for start in starts:
            chunk = store.matrix.read_rows(start, min(start + rows, n))
            codes = encode_rows(chunk.indptr, chunk.indices, chunk.data, bound.genes, bound.weights).codes
            known = run.codes(offset + start, offset + start + chunk.n_rows)
            different = np.flatnonzero((codes != known).any(axis=1))
            if len(different):
                refuse_other_cell(run, atlas, offset + start + int(different[0]))
